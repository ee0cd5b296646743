"""README and docs: commands have the options and fields of that very command, files exist, examples are valid."""

import ast
import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import yaml

from kd import load_config
from kd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
LAUNCHERS = {
    "deepspeed": ("--num_gpus", "--master_port", "--hostfile"),
    "torchrun": ("--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--master_port"),
    "mpirun": ("-n", "-np", "-x", "--host", "-H"),
    "srun": ("-n", "--ntasks", "--gpus-per-task"),
    "sbatch": ("--nodes", "--gpus-per-node", "--ntasks-per-node", "--partition", "--time"),
}
"""Programs that start another one, with their options, each of which takes a value."""
PROGRAMS = {*LAUNCHERS, "python", "promptkd", "make", "bash"}
TRAINING = ("kd", "launch/train.py", "launch/train_promptkd.py", "launch/generate.py", "launch/slurm/train.sbatch")
TRACKED = tuple(f"{name}/" for name in ("launch", "docs", "ds_configs", "tests", "evaluation", "kd", "demo"))
# Commands run in this process, after their packages were imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of a page's blocks; indented ones have no language."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = [(language or "sh", body) for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return fenced + [("", block) for block in re.findall(r"(?:^ {4,}\S.*\n)+", rest, re.M)]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that starts one of the programs, without variables set for it."""
    found = []
    for page in PAGES:
        for line in (
            line for language, block in blocks(page) if language in ("", "sh", "bash") for line in block.splitlines()
        ):
            command = re.sub(r"^\s*(?:[A-Z_]+=\S* )*|\s#.*$", "", line)
            if command.split()[:1] and command.split()[0] in PROGRAMS:
                found.append((page.name, command))
    return found


def split_launcher(words: list[str]) -> list[str]:
    """The words after a launcher and its options."""
    options = LAUNCHERS[words[0]]
    rest = words[1:]
    while rest[0].startswith("-") and rest[0] not in ("-m", "--module"):
        assert rest[0].split("=")[0] in options, f"{words[0]} has no option {rest[0]} in this test"
        rest = rest[1:] if "=" in rest[0] else rest[2:]
    return rest[1:] if rest[0] == "python" else rest


def parse(command: str) -> tuple[str, list[str]]:
    """The module or script that a command runs, and its arguments."""
    words = shlex.split(command)
    if words[0] == "promptkd":
        return "kd", words[1:]
    rest = split_launcher(words) if words[0] in LAUNCHERS else words[1:]
    return (rest[1], rest[2:]) if rest[0] in ("-m", "--module") else (rest[0], rest[1:])


@cache
def help_of(program: str, *subcommand: str) -> str:
    """What `--help` of a module or script prints."""
    if program.endswith(".sbatch"):
        return help_of("launch/train.py")
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [program, *subcommand, "--help"])
        start = (
            partial(runpy.run_path, str(ROOT / program))
            if program.endswith(".py")
            else partial(runpy.run_module, program)
        )
        with pytest.raises(SystemExit) as ended:
            start(run_name="__main__")
    assert ended.value.code in (0, None), f"{program} {' '.join(subcommand)} has no help"
    return output.getvalue()


@pytest.mark.parametrize(("page", "command"), commands(), ids=str)
def test_a_command_has_what_it_names(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    missing = [word for word in words if word.startswith(TRACKED) and "demo/runs" not in word]
    assert [word for word in missing if not Path(word).exists()] == []
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", Path("Makefile").read_text(), re.M)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        return
    if words[0] == "bash":
        assert Path(words[1]).is_file()
        return
    program, arguments = parse(command)
    if program == "-c":
        compile(arguments[0], command, "exec")
        return
    subcommand = arguments[:1] if arguments and re.fullmatch(r"[a-z][a-z-]*", arguments[0]) else []
    shown = help_of(program, *subcommand)
    options = {word.split("=")[0] for word in arguments if word.startswith("--")}
    assert options <= {*re.findall(r"--[a-z][\w-]*", shown), "--help"}
    overrides = [word for word in arguments if re.match(r"([a-z_]+\.[a-z_]+|method)=", word)]
    is_own_method = any(":" in word for word in overrides if word.startswith("method="))
    names = [word.split("=")[0] for word in overrides if not is_own_method]
    fields = shown if program != "evaluation.bench" else help_of("kd", "train")  # of the methods that it times
    assert [name for name in names if not re.search(rf"^\s*{re.escape(name)}\b", fields, re.M)] == []
    if program in TRAINING and "--config" in arguments:
        file = arguments[arguments.index("--config") + 1]
        if file != "FILE":
            load_config(file, overrides=overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page_are_valid(page: Path) -> None:
    for language, block in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("kd", "evaluation"):
                    module = importlib.import_module(str(node.module))
                    assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif language == "json":
            assert [json.loads(line) for line in block.splitlines()]
        elif language == "yaml" or re.match(r"\s*\w+:( |$)", block, re.M):
            assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()] == []


def test_deviations_name_tests_that_exist() -> None:
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    files = list(ROOT.glob("tests/**/*.py"))
    defined = {name for path in files for name in re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.M)}
    defined |= {path.stem for path in files}
    named = set(re.findall(r"\btest_\w+", text))
    assert named and named - defined == set()
    paths = re.findall(r"`(tests/[\w/.]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_this_test_sees_mistakes() -> None:
    """Commands of another program's options, fields or files."""
    for command in (
        "python -m evaluation.compare --greedy",
        "deepspeed launch/train.py --config FILE schedule.stepps=3",
        "promptkd train --config launch/experiments/none.yaml",
        "deepspeed --num_gpu 2 launch/train.py --config FILE",
        "make everything",
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises((AssertionError, UserError)):
            test_a_command_has_what_it_names("", command, patch)
