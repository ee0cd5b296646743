"""The shape of the source: imports run one way, files and functions stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module may import from its own layer and from those above it in this list.
LAYERS = (
    ("kd.errors", "kd.config.fields", "kd.config.methods", "kd.config.rules", "kd.config", "kd.config.load"),
    ("kd.distributed", "kd.cpu_memory"),
    ("kd.distributed",),
    ("kd.data",),
    ("kd.losses",),
    ("kd.engines",),
    ("kd.generation",),
    ("kd.zero.recorder", "kd.methods"),
    (
        "kd.train.checkpoint",
        "kd.train.console",
        "kd.train.metric_log",
        "kd.train.run_directory",
        "kd.train.trainer",
        "kd.train.validation",
    ),
    ("kd.train.assemble",),
    ("kd.cli",),
    ("launch",),
)
# What evaluation may use, so that a student can be measured without what trained it.
EVALUATION_ALLOWED = (
    "kd.errors", "kd.config.fields", "kd.config.methods", "kd.config", "kd.config.load",
    "kd.distributed", "kd.data", "kd.losses", "kd.engines", "kd.generation", "kd.train.metric_log",
)  # fmt: skip
MAY_ASSEMBLE = ("evaluation.bench",)
SOURCES = sorted(
    path
    for top in ("kd", "launch", "evaluation", "demo")
    for path in (ROOT / top).rglob("*.py")
    # DeepSpeed puts scripts of its own into checkpoints.
    if ROOT / "demo" / "runs" not in path.parents
)
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(path: Path) -> Iterator[str]:
    """Names of the project's modules that are imported anywhere in the file, also inside functions."""
    for node in ast.walk(parse(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            module = node.module or ""
            # `from kd import trainer` names a module in its second half.
            whole = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if (ROOT / Path(*name.split("."))).with_suffix(".py").exists() else module for name in whole]
        yield from (name for name in names if name.split(".")[0] in ("kd", "launch", "evaluation", "demo", "tests"))


def is_inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer_of(module: str) -> int:
    for index, packages in enumerate(LAYERS):
        if is_inside(module, packages):
            return index
    raise AssertionError(f"{module} has no layer; add it to LAYERS where it belongs")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    importer = module_name(path)
    if importer == "kd" or importer.split(".")[0] == "demo":
        return
    for imported in imported_modules(path):
        if imported == "kd":
            continue
        what = f"{importer} imports {imported}"
        if importer.split(".")[0] == "evaluation":
            assert is_inside(imported, ("evaluation", *EVALUATION_ALLOWED)) or is_inside(importer, MAY_ASSEMBLE), what
        elif imported.split(".")[0] == "evaluation":
            trains = layer_of(importer) >= layer_of("kd.train.trainer")
            assert trains, what
            assert imported == "evaluation.rouge_l" or importer.split(".")[0] == "launch", what
        else:
            assert layer_of(imported) <= layer_of(importer), what


def test_losses_import_nothing_of_the_project() -> None:
    for path in (ROOT / "kd" / "losses").glob("*.py"):
        others = [name for name in imported_modules(path) if not is_inside(name, ("kd.losses",))]
        assert others == [], path


def test_no_source_imports_the_tests() -> None:
    assert [path for path in SOURCES if any(name.startswith("tests") for name in imported_modules(path))] == []


def test_only_one_module_reads_ranks_from_the_environment() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_", "OMPI_")
    for path in SOURCES:
        if module_name(path) == "kd.distributed":
            continue
        texts = [node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)]
        read = [text for text in texts if isinstance(text, str) and (text in names or text.startswith(names[3:]))]
        assert read == [], path


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_error_is_swallowed_whatever_it_is(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = {
                name.id for name in ast.walk(node.type or ast.Name("BaseException")) if isinstance(name, ast.Name)
            }
            assert not caught & {"Exception", "BaseException"}, f"{path}: line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_branch_on_a_model_family(path: Path) -> None:
    tests = (ast.Compare, ast.Match, ast.If, ast.IfExp)
    for node in ast.walk(parse(path)):
        if isinstance(node, tests):
            looked_at = node.subject if isinstance(node, ast.Match) else getattr(node, "test", node)
            names = {name.attr for name in ast.walk(looked_at) if isinstance(name, ast.Attribute)}
            names |= {name.id for name in ast.walk(looked_at) if isinstance(name, ast.Name)}
            assert "model_type" not in names, f"{path}: line {node.lineno}"


def test_folders_with_borrowed_names_do_not_exist() -> None:
    names = {part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
