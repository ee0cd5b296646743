"""The page and its files: one HTML file that needs nothing else, with tables and pictures for papers beside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from evaluation.report.findings import Findings, Section
from evaluation.report.missing import Missing
from evaluation.results import write_atomically
from kd.errors import UserError

FILES_SUFFIX = "_files"


def files_directory(out: Path) -> Path:
    """Where the files beside a page are."""
    return out.with_name(f"{out.stem}{FILES_SUFFIX}")


def write_page(
    out: Path, *, title: str, findings: Findings, sections: Sequence[Section], missing: Sequence[Missing]
) -> None:
    """Write the page and its files; equal inputs give equal bytes.

    Raises:
        UserError: a file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evaluation.report"),
        # What models say may look like HTML.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    directory = files_directory(out)
    for name, content in _files(sections):
        _write(directory / name, content)
    text = environment.get_template("page.html.jinja").render(
        title=title, findings=findings, sections=sections, missing=missing, files=directory.name
    )
    write_atomically(out, text)


def _files(sections: Sequence[Section]) -> Iterator[tuple[str, bytes]]:
    for section in sections:
        for picture in section.pictures:
            yield f"{picture.key}.svg", picture.svg.encode()
            yield f"{picture.key}.pdf", picture.pdf
        for table in section.tables:
            yield f"{table.key}.csv", table.csv().encode()
            yield f"{table.key}.tex", table.latex().encode()


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable --out") from None
