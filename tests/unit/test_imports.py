"""The shape of the source: imports run one way and change nothing, files and functions stay short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = ("kd", "launch", "evaluation", "demo")
LAYERS = (
    ("errors", "files", "manifest", "text_metrics"),
    ("config",),
    ("distributed",),
    ("data",),
    ("losses",),
    ("zero",),
    ("models",),
    ("rollout",),
    ("methods",),
    ("train", "plan"),
    # The Python API, which is kd itself, and the command line.
    ("kd",),
    ("cli", "__main__"),
)
"""Of kd: a module may import from its own layer and from those before it."""
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
FAMILY_TABLES = {"kd/rollout/tensor_parallel.py": "_OWN_PLANS.get(config.model_type)"}
"""The only reader of a model's family. (kd/models/logits.py names settings, not families.)"""


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Path and syntax tree of every module, by its dotted name."""
    found = {}
    for path in (path for top in PROJECT for path in sorted((ROOT / top).rglob("*.py"))):
        # DeepSpeed puts scripts of its own into checkpoints.
        if ROOT / "demo" / "runs" in path.parents:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def place(module: str, node: ast.AST) -> str:
    return f"{sources()[module][0].relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from runtime_nodes(child)


@cache
def imports_of(module: str) -> tuple[str, ...]:
    """The project's modules that a module imports, also inside functions."""
    found = []
    for node in runtime_nodes(sources()[module][1]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{place(module, node)}: relative import"
            # `from kd import trainer` names a module in its second half.
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [part if part in sources() else node.module for part in parts]
    return tuple(name for name in dict.fromkeys(found) if name.split(".")[0] in (*PROJECT, "tests"))


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else module
    for index, layer in enumerate(LAYERS):
        if part in layer:
            return index
    raise AssertionError(f"{module} has no layer; add it to LAYERS where it belongs")


def test_imports_of_kd_run_one_way() -> None:
    wrong = []
    for module in (module for module in sources() if module.split(".")[0] == "kd"):
        for imported in imports_of(module):
            top = imported.split(".")[0]
            if (top == "kd" and layer_of(imported) > layer_of(module)) or (top != "kd" and module != "kd.cli"):
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_other_packages_import_in_order() -> None:
    may_import = {"evaluation": {"kd", "evaluation"}, "launch": {"kd", "evaluation", "launch"}}
    wrong = []
    for module in sources():
        allowed = may_import.get(module.split(".")[0], set(PROJECT))
        wrong += [f"{module} imports {other}" for other in imports_of(module) if other.split(".")[0] not in allowed]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    graph = {module: set(imports_of(module)) - {module} for module in sources()}
    # Raises CycleError, which has the modules.
    TopologicalSorter(graph).prepare()


def test_losses_import_nothing_of_the_project() -> None:
    losses = [module for module in sources() if module.startswith("kd.losses")]
    assert [name for module in losses for name in imports_of(module) if not name.startswith("kd.losses")] == []


IMPORT_EVERYTHING = """
import importlib, os, sys
import datasets, deepspeed, peft, torch, transformers, pyarrow.parquet

def state():
    backends = torch.backends
    return os.environ | {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "seed": torch.initial_seed(),
        "precision": (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "algorithms": (torch.are_deterministic_algorithms_enabled(), backends.cudnn.benchmark, backends.mkldnn.enabled),
        "linear": torch.nn.functional.linear,
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
changed = [name for name in before | after if before.get(name) != after.get(name)]
assert not changed, changed
"""


def test_imports_change_neither_the_environment_nor_torch() -> None:
    modules = [name for name in sources() if name.split(".")[0] == "kd" and name != "kd.__main__"]
    command = [sys.executable, "-c", IMPORT_EVERYTHING, *modules]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]


def test_only_kd_distributed_reads_ranks_from_the_environment() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_", "OMPI_", "PMI_")
    readers = set()
    for module, (_, tree) in sources().items():
        for node in ast.walk(tree):
            text = _text(node)
            if text is not None and (text in names or text.startswith(names[3:])):
                readers.add(module)
    assert {module for module in readers if not module.startswith("kd.distributed")} == set()


def test_files_and_functions_are_short() -> None:
    long = []
    for module, (path, tree) in sources().items():
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            long.append(f"{path.relative_to(ROOT)} has {num_lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{place(module, node)}: {node.name} has {length} lines")
    assert long == []


def test_no_error_is_caught_whatever_it_is() -> None:
    caught = []
    for module, (_, tree) in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                names = {part.id for part in ast.walk(node.type or ast.Name("Exception")) if isinstance(part, ast.Name)}
                caught += [place(module, node)] if names & {"Exception", "BaseException"} else []
    assert caught == []


def test_no_branch_on_a_model_family() -> None:
    """A family's name is read for messages only, but for the known table."""
    readers, tables = [], set()
    for module, (path, tree) in sources().items():
        exempt = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        table = FAMILY_TABLES.get(str(path.relative_to(ROOT)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node) == table:
                tables.add(table)
                exempt |= set(ast.walk(node))
            # An attribute, a variable, or a key; an import of one family's classes.
            names = {getattr(node, kind, None) for kind in ("attr", "id")} | {_text(node)}
            imports_family = isinstance(node, ast.ImportFrom) and str(node.module).startswith("transformers.models.")
            if imports_family or ("model_type" in names and node not in exempt):
                readers.append(place(module, node))
    assert readers == []
    assert tables == set(FAMILY_TABLES.values())


def _text(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_folders_with_borrowed_names_do_not_exist() -> None:
    names = {part for module in sources() for part in module.split(".")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
