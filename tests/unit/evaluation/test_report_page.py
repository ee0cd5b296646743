"""The page: one file that needs nothing else, the same for the same inputs, whatever models say."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from evaluation.report.__main__ import main
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

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything, whose names and texts look like HTML, and four trainings for comparisons."""
    directory = tmp_path_factory.mktemp("outputs")
    decisions = {
        "_base": {},
        "<b>short": {"prompt": {"length": 5}},
        "free": {"prompt": {"regularization": "none"}},
        "$forward$": {"prompt": {"kd_divergence": "forward_kl"}},
        "lora": {"prompt": {"regularization": "none"}, "teacher_lora": {"rank": 2}},
    }
    for name, sections in decisions.items():
        run = write_training(directory / name, **sections)
        scores = {"vicuna": [[1.0, 2.0, 3.0], [2.0, 3.0, 5.0]], "mine": [[4.0, 5.0], [4.0, 6.0]]}
        write_evaluation(run / "evaluation", model=run / "final", scores=scores, response=EVIL)
    write_exposure_bias(directory / "exposure_bias", names=["_base", "sft"])
    write_friendliness(directory / "friendliness", response=EVIL)
    write_judgement(directory / "judge", a=5, b=6)
    write_cost(directory / "cost")
    return directory


@pytest.fixture(scope="module")
def written(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "report of all.html"
    assert main(["--runs", str(outputs), "--out", str(page), "--title", f"All {EVIL}", "--samples", "2"]) == 0
    return page


@pytest.fixture(scope="module")
def page(written: Path) -> Elements:
    return Elements(written.read_text())


def test_every_section_is_there_and_nothing_is_missing(page: Elements) -> None:
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [
        "scores",
        "training",
        "exposure-bias",
        "student-friendliness",
        "feedback",
        "costs",
        "ablations",
        "samples",
        "settings",
    ]
    for number in (1, 3, 4, 6, 9, 11, 12):
        assert f"Table {number}: " in page.text
    for figure in ("Figure 1:", "Figure 3(a):", "Figure 3(b):", "Figure 4:"):
        assert figure in page.text
    assert "What is missing" not in page.text


def test_nothing_is_loaded_and_no_script_runs(page: Elements) -> None:
    loading = {
        "script",
        "link",
        "img",
        "image",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "source",
        "base",
        "form",
    }
    assert not loading & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_links_lead_into_the_page_or_to_the_files_beside_it(written: Path, page: Elements) -> None:
    targets = [*page.values("href"), *page.values("xlink:href")]
    ids = page.values("id")
    files = set()
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in ids
        else:
            file = written.parent / target.replace("%20", " ")
            assert file.is_file(), target
            files.add(file.name)
    # And every file has its link.
    beside = written.parent / "report of all_files"
    assert files == {path.name for path in beside.iterdir()}
    assert {path.suffix for path in beside.iterdir()} == {".svg", ".pdf", ".csv", ".tex"}
    assert set(re.findall(r"url\(([^)]*)\)", written.read_text())) <= {f"#{name}" for name in ids}
    assert len(set(ids)) == len(ids)


def test_what_models_say_is_shown_and_not_obeyed(written: Path, page: Elements) -> None:
    assert page.text.count(EVIL) >= 2 + 5 * 2 * 2 + 1
    text = written.read_text()
    assert "<script" not in text and "<img" not in text and "<b>short" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_names_of_runs_are_shown_as_they_are(written: Path, page: Elements) -> None:
    assert "<b>short" in page.text
    drawn = (written.parent / "report of all_files" / "curve-student-kd.svg").read_text()
    words = "".join(ElementTree.fromstring(drawn).itertext())
    assert all(name in words for name in ("_base", "<b>short", "$forward$"))


def test_pictures_have_the_colours_of_the_page_and_a_description(written: Path) -> None:
    pictures = re.findall(r"<svg .*?</svg>", written.read_text(), flags=re.DOTALL)
    assert len(pictures) > 6
    for picture in pictures:
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", picture)
        assert re.match(r'<svg [^>]*role="img" aria-label="[^"]+"', picture)
        assert "<metadata" not in picture
        ElementTree.fromstring(picture.replace("xlink:", ""))
    style = written.read_text().split("<style>")[1].split("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    used = {name for picture in pictures for name in re.findall(r"var\((--[\w-]+)\)", picture)}
    assert used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_equal_inputs_give_equal_bytes(outputs: Path, written: Path, tmp_path: Path) -> None:
    again = tmp_path / written.name
    main(["--runs", str(outputs), "--out", str(again), "--title", f"All {EVIL}", "--samples", "2"])
    first, second = (
        {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (written.parent, tmp_path)
    )
    assert first == second


def test_files_for_papers_are_what_they_say(written: Path) -> None:
    for path in (written.parent / "report of all_files").iterdir():
        if path.suffix == ".svg":
            ElementTree.parse(path)
        elif path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF-1.4") and b"CreationDate" not in path.read_bytes()
        elif path.suffix == ".tex":
            assert path.read_text().rstrip().endswith(r"\end{tabular}")


def test_a_page_of_one_training_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_training(tmp_path / "a")
    assert main(["--runs", str(tmp_path / "a"), "--out", str(tmp_path / "r.html")]) == 0
    page = Elements((tmp_path / "r.html").read_text())
    assert "Table 1 and Figure 1" in page.text and "Table 1: " not in page.text
    assert f"--model {tmp_path}/a/final" in page.text
    assert "not there: Table 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "nowhere", "--out", "a.html"], "--runs nowhere: is no directory"),
        (["--runs", ".", "--out", "a.html"], "--runs .: no output there or below; looked for config.yaml"),
        (["--runs", ".", "--out", "a.pdf"], "--out a.pdf: is no name of a page"),
        (["--out", "a.html"], "the following arguments are required: --runs"),
        (["--runs", "run", "--out", "run/config.yaml/a.html"], "run/config.yaml/a_files"),
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
    write_training(tmp_path / "run") if "run" in arguments else None
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
