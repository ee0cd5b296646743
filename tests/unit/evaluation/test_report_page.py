"""The report's page is one file that needs nothing else, whatever the names and responses in it."""

import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from evaluation.report.__main__ import main
from evaluation.report.page import Table
from tests.unit.evaluation.report_inputs import (
    write_cost,
    write_evaluation,
    write_exposure_bias,
    write_friendliness,
    write_judgement,
    write_training,
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;"


class Elements(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything; names and responses look like HTML, and one run has a method of another package."""
    directory = tmp_path_factory.mktemp("outputs")
    runs = {"_base": {}, "<b>short": {"prompt": {"length": 5}}, "$own$": {"method": "my_package.methods:Skewed"}}
    for name, sections in runs.items():
        run = write_training(directory / name, **sections)
        scores = {"vicuna": [[1.0, 2.0, 3.0], [2.0, 3.0, 5.0]], "mine": [[4.0, 5.0], [4.0, 6.0]]}
        write_evaluation(run / "evaluation", model=run / "final", scores=scores, response=EVIL)
    write_exposure_bias(directory / "exposure_bias", names=["base", "sft"])
    write_friendliness(directory / "friendliness")
    write_judgement(directory / "judge", a=5, b=6)
    write_cost(directory / "cost")
    return directory


def write_report(outputs: Path, page: Path) -> Path:
    assert main(["--runs", str(outputs), "--out", str(page), "--title", f"All {EVIL}", "--samples", "2"]) == 0
    return page


@pytest.fixture(scope="module")
def written(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(outputs, tmp_path_factory.mktemp("page") / "report of all.html")


@pytest.fixture(scope="module")
def page(written: Path) -> Elements:
    return Elements(written.read_text())


def test_every_section_is_there(page: Elements) -> None:
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [
        "scores", "training", "exposure-bias", "student-friendliness", "judge", "costs", "samples", "settings"
    ]  # fmt: skip


def test_nothing_is_loaded_and_no_script_runs(page: Elements) -> None:
    loading = {"script", "link", "iframe", "object", "embed", "video", "audio", "source", "base", "form"}
    assert not loading & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img")
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_links_lead_into_the_page_or_to_the_files_beside_it(written: Path, page: Elements) -> None:
    targets = [attributes["href"].replace("%20", " ") for _, attributes in page.tags if "href" in attributes]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    beside = {f"report of all_files/{path.name}" for path in written.with_name("report of all_files").iterdir()}
    assert {target for target in targets if not target.startswith("#")} == beside
    assert {Path(name).suffix for name in beside} == {".svg", ".pdf", ".csv", ".tex"}


def test_names_and_responses_are_escaped(written: Path, page: Elements) -> None:
    # The title, and two rows of two benchmarks for three models.
    assert page.text.count(EVIL) == 2 + 2 * 2 * 3
    assert "<script" not in written.read_text() and "<b>short" not in written.read_text()
    assert "<b>short" in page.text
    latex = written.with_name("report of all_files").joinpath("scores.tex").read_text()
    assert r"\$own\$ & 6 & Skewed & " in latex and r"\_base" in latex


def test_pictures_have_a_description_and_name_all_runs(page: Elements) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 5 and all(picture["alt"] for picture in pictures)
    (curve,) = (picture["src"] for picture in pictures if picture["alt"].startswith("student_kd"))
    words = "".join(ElementTree.fromstring(base64.b64decode(curve.partition(",")[2])).itertext())
    assert all(name in words for name in ("_base", "<b>short", "$own$"))


def test_colours_of_the_page_exist_in_light_and_dark(written: Path) -> None:
    style = written.read_text().split("<style>")[1].split("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_equal_inputs_give_equal_bytes(outputs: Path, written: Path, tmp_path: Path) -> None:
    again = write_report(outputs, tmp_path / written.name)
    first, second = (
        {path.relative_to(parent): path.read_bytes() for path in parent.rglob("*") if path.is_file()}
        for parent in (written.parent, again.parent)
    )
    assert first == second


TABLE = Table(
    key="t",
    title="",
    frame=pd.DataFrame(
        {
            "a_b": ["x_1", "{z}", "u"],
            "score": [12.3456789, -0.04, 23916.0],
            "score ±": [0.25, None, None],
            "gap": [None, -1.5, None],
            "gap low": [None, -2.0, None],
            "gap high": [None, 0.25, None],
        }
    ),
    best=pd.DataFrame({"score": [True, False, False]}),
)


def test_a_table_shows_spreads_behind_numbers() -> None:
    cells = re.findall(r"<td[^>]*>(.*?)</td>", TABLE.html)
    assert cells == ["x_1", "12.3 ± 0.2", "–", "{z}", "0.0", "-1.5 [-2.0, 0.2]", "u", "23,916.0", "–"]
    assert TABLE.html.count("font-weight: bold") == 1


def test_csv_has_numbers_and_spreads_in_columns() -> None:
    assert list(csv.reader(TABLE.csv.splitlines())) == [
        ["a_b", "score", "score ±", "gap", "gap low", "gap high"],
        ["x_1", "12.3457", "0.25", "", "", ""],
        ["{z}", "-0.04", "", "-1.5", "-2", "0.25"],
        ["u", "23916", "", "", "", ""],
    ]


def test_latex_escapes_commands_and_marks_the_best() -> None:
    lines = TABLE.latex.splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}" and lines[-1] == r"\end{tabular}"
    assert lines[2] == r"a\_b & score & gap \\"
    assert lines[4:6] == [r"x\_1 & \bfseries 12.3 ± 0.2 & – \\", r"\{z\} & 0.0 & -1.5 [-2.0, 0.2] \\"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "nowhere", "--out", "a.html"], "--runs nowhere: is not a directory"),
        (
            ["--runs", "empty", "--out", "a.html"],
            "--runs empty: has no outputs, in it or below; expected one of: me",
        ),
        (["--runs", "run", "--out", "a.pdf"], "out is a.pdf; expected a name that ends with .html"),
        (["--out", "a.html"], "runs is missing"),
        (["--runs", "run", "--out", "run/config.yaml/a.html"], "run/config.yaml/a_files"),
        (["--runs", "run", "--out", "a.html", "--base", "b"], "--base b: no evaluated model has this name"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    write_training(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
