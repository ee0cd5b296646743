"""Tables of what `python -m evaluation.bench gpu` has measured, one for each device."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evaluation.bench.results import GIB, describe_briefly
from evaluation.results import read_json
from kd.files import write_atomically

BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
PAGE = "gpu.md"
Result = Mapping[str, Any]


def write_tables(out: Path) -> str:
    """Write a table of each gpu_DEVICE.json in `out` into its gpu.md, between the markers, and return them.

    Raises:
        UserError: a file cannot be read or written.
    """
    files = sorted(out.glob("gpu_*.json"))
    tables = "\n\n".join(_table(read_json(file, advice="delete it")) for file in files)
    page = out / PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    write_atomically(page, f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}")
    return tables


def _table(values: Result) -> str:
    rows = [
        f"| {part} | {name} | {_cells(part, variants)} |"
        for part, names in values["parts"].items()
        for name, variants in names.items()
    ]
    return "\n".join([f"{describe_briefly(values['machine'])}", "", "| part | case | result |", "|---|---|---|", *rows])


def _cells(part: str, variants: Mapping[str, Result]) -> str:
    """The results of a row's variants, such as dtypes, or why they have none."""
    done = {name: entry["result"] for name, entry in variants.items() if entry["state"] == "done"}
    return "; ".join(
        f"{name}: {_CELLS[part](done[name], done) if name in done else entry['state'].replace('|', '/')}"
        for name, entry in variants.items()
    )


def _compared(result: Result, _: Result) -> str:
    name, largest = max(result["differences"].items(), key=lambda item: item[1])
    return f"{_verdict(result)}, {largest:.1e} of {result['tolerance']:.0e} ({name})"


def _trained(result: Result, _: Result) -> str:
    return f"{_verdict(result)}, loss {' '.join(f'{loss:.3f}' for loss in result['losses'])}"


def _verdict(result: Result) -> str:
    skipped = f" with {result['skipped_updates']} updates skipped" if result["skipped_updates"] else ""
    return ("pass" if result["passed"] else "**FAIL**") + skipped


def _step(result: Result, _: Result) -> str:
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result["seconds"].items())
    speed = f"{result['tokens_per_second']:,.0f} tokens/s on {result['num_ranks']} ranks"
    peak = f"peak {result['peak']['allocated'] / GIB:.1f} GiB (planned {result['planned_bytes'] / GIB:.1f})"
    return f"{result['step_seconds']:.2f} s ({phases}), {speed}, {peak}"


def _decoding(result: Result, _: Result) -> str:
    roofline = result["roofline_tokens_per_second"]
    rates = ", ".join(
        f"{name} {rate:,.0f} ({rate / roofline:.1%})" for name, rate in result["tokens_per_second"].items()
    )
    return f"tokens/s (share of the roofline of {result['bandwidth'] / 1e12:.2f} TB/s): {rates}"


def _same_responses(result: Result, _: Result) -> str:
    return (
        f"{'pass' if result['passed'] else '**FAIL**'}, {result['different']} of {result['responses']} responses differ"
    )


def _loss(result: Result, done: Result) -> str:
    relative = f", {result['seconds'] / done['gemms']['seconds']:.2f} × the GEMMs" if "gemms" in done else ""
    return f"{1000 * result['seconds']:.1f} ms{relative}, {result['extra_bytes'] / GIB:.2f} GiB"


_CELLS: dict[str, Callable[[Result, Result], str]] = {
    "reference": lambda *_: "done",
    "two steps": _compared,
    "training": _trained,
    "resume": lambda result, _: f"largest difference {result['largest_difference']:.1e}",
    "graphs": _same_responses,
    "step": _step,
    "decoding": _decoding,
    "loss": _loss,
}
