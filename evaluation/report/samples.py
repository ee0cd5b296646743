"""Responses side by side: rows spread evenly over a benchmark, not chosen by their responses."""

from collections.abc import Sequence

import pandas as pd

from evaluation.report.findings import Findings
from evaluation.report.models import Model
from evaluation.report.outputs import Output
from evaluation.report.page import Section, Table
from evaluation.responses import Generation
from evaluation.results import generations_file, read_generations

_ALPACA_START, _ALPACA_END = "### Instruction:\n", "\n\n### Response:\n"
_SPEAKERS = {
    "prompt": "prompt",
    "reference": "reference",
    "teacher_without_prompt": "teacher without prompt",
    "teacher_with_prompt": "teacher with prompt",
    "initial_student": "student before training",
    "final_student": "student after training",
}


def samples_section(findings: Findings) -> Section:
    """Rows of every benchmark with all models' responses of the first seed; empty without an evaluation.

    Raises:
        UserError: a file of generations is broken.
    """
    tables = [_benchmark_table(findings, name) for name in findings.benchmarks] if findings.num_samples else []
    return Section(
        key="samples",
        title="Responses",
        text="Rows spread evenly over those that all models have; the responses of one seed, with their ROUGE-L.",
        tables=[table for table in tables if not table.frame.empty],
    )


def _benchmark_table(findings: Findings, benchmark: str) -> Table:
    models = [model for model in findings.models if benchmark in model.benchmarks]
    found = {model.name: _first_seed(model, benchmark) for model in models}
    templates = [model.benchmarks[benchmark]["decoding"]["template"] for model in models]
    # Models with other tokenizers may have dropped other rows, and other files have other rows.
    everywhere = sorted(set.intersection(*(set(rows) for rows in found.values())))
    shared = [row for row in everywhere if _is_one_prompt([rows[row] for rows in found.values()], templates=templates)]
    samples = [
        {
            "row": str(row),
            "prompt": instruction_of(found[models[0].name][row].prompt, template=templates[0]),
            "reference": "\n\n".join(found[models[0].name][row].references),
            **{name: f"[{rows[row].rougeL:.0f}] {rows[row].response}" for name, rows in found.items()},
        }
        for row in spread(shared, findings.num_samples)
    ]
    return Table(key=f"samples-{benchmark}", title=benchmark, frame=pd.DataFrame(samples), content="texts")


def _first_seed(model: Model, benchmark: str) -> dict[int, Generation]:
    seed = next(
        seed
        for one in model.benchmarks[benchmark].values()
        if isinstance(one, dict)
        for seed in one.get("per_seed", ())
    )
    generations = read_generations(generations_file(model.directory(benchmark) / "generations" / benchmark, int(seed)))
    return {generation.row: generation for generation in generations}


def _is_one_prompt(generations: Sequence[Generation], *, templates: Sequence[str]) -> bool:
    """Whether references are equal, and prompts too where one template made them."""
    # The template chat is the tokenizer's own: its prompts for one row differ between models.
    prompts = {
        (template, one.prompt) for template, one in zip(templates, generations, strict=True) if template != "chat"
    }
    return len({one.references for one in generations}) == 1 and len(prompts) == len({name for name, _ in prompts})


def spread(rows: Sequence[int], number: int) -> list[int]:
    """`number` rows at equal distances, the first and the last among them; all rows if there are fewer."""
    if number >= len(rows):
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / max(1, number - 1))] for place in range(number)]


def instruction_of(prompt: str, *, template: str) -> str:
    """The instruction in a prompt of the template alpaca; prompts of other templates as they are."""
    if template != "alpaca" or _ALPACA_START not in prompt:
        return prompt
    return prompt.split(_ALPACA_START, maxsplit=1)[1].removesuffix(_ALPACA_END)


def friendliness_samples(outputs: Sequence[Output], *, limit: int) -> Table:
    """Responses of the teacher with and without its prompt, and of the student before and after its training."""
    examples = [example for output in outputs for example in output.results["examples"][:limit]]
    frame = pd.DataFrame(examples, columns=list(_SPEAKERS)).rename(columns=_SPEAKERS)
    frame["prompt"] = frame["prompt"].map(lambda prompt: instruction_of(prompt, template="alpaca"))
    return Table(key="student-friendliness-samples", title="Unseen rows", frame=frame, content="texts")
