"""Every command in README and docs/ names files, options and fields that exist; every link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from kd.config.load import read_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHERS = ("python", "deepspeed", "torchrun", "sbatch")
# Where the options of a script or module are defined, beside its own file.
OPTION_SOURCES = (
    "kd/command_line.py",
    "evaluation/options.py",
    "evaluation/command_options.py",
)
LAUNCHER_OPTIONS = {"--num_gpus", "--nproc_per_node", "--module", "--master_port"}


def commands(page: Path) -> list[str]:
    """Lines of indented blocks, with continued lines joined and comments cut off."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines() if line.startswith("    "))
    return [re.sub(r"\s#.*", "", line) for line in lines]


def cases() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in commands(page) if line.split()[:1]]


def script_of(words: list[str]) -> Path | None:
    """The file that a launcher's command line runs."""
    for index, word in enumerate(words):
        if word in ("-m", "--module"):
            module = ROOT / words[index + 1].replace(".", "/")
            return module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
        if word.endswith((".py", ".sbatch")):
            return ROOT / word
    return None


@pytest.mark.parametrize(("page", "line"), cases())
def test_a_command_names_what_exists(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), line
    if words[0] not in LAUNCHERS:
        return
    if words[1] == "-c":
        compile(words[2], line, "exec")
        return
    script = script_of(words)
    assert script is not None and script.is_file(), line
    sources = "".join((ROOT / name).read_text() for name in OPTION_SOURCES) + script.read_text()
    for word in words:
        if word.startswith("--") and word not in LAUNCHER_OPTIONS:
            assert f'"{word}"' in sources or word == "--help", f"{script.name} has no option {word}"
    if "--config" in words and words[words.index("--config") + 1] != "FILE":
        overrides = [word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)?=.*", word)]
        read_config(ROOT / words[words.index("--config") + 1], overrides=overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_deviations_name_tests_that_exist() -> None:
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    # Of all files of a name, for some directories have the same names.
    tests: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        found = re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        tests.setdefault(path.name, set()).update(found)
    names = re.findall(r"\b(test_\w+)(?!\w|\.py)", text)
    assert names
    missing = set(names).difference(*tests.values())
    assert not missing, missing
    for file, name in re.findall(r"\b(test_\w+\.py)(?:::(test_\w+))?", text):
        assert file in tests, file
        assert not name or name in tests[file], f"{file}::{name}"
    for path in re.findall(r"`(tests/[a-z_/]+(?:\.py)?)`", text):
        assert (ROOT / path).exists(), path
