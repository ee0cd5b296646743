"""Responses side by side: rows spread evenly over a benchmark, not chosen by what was answered."""

from collections.abc import Iterator, Sequence

from evaluation.report.findings import Answer, Findings, Sample, Section
from evaluation.report.formats import FriendlinessResults
from evaluation.report.models import Scored
from evaluation.responses import Generation
from evaluation.results import generations_file, read_generations

_ALPACA_START, _ALPACA_END = "### Instruction:\n", "\n\n### Response:\n"


def samples_section(findings: Findings) -> Section:
    """Rows of every benchmark with all models' responses to the first seed; empty without an evaluation.

    Raises:
        UserError: a file of generations is broken.
    """
    return Section(
        key="samples",
        title="Responses",
        text=(
            "Rows spread evenly over those of each benchmark that all models were asked, whatever was answered; the"
            " responses of one seed, with the ROUGE-L of each.",
        ),
        samples=tuple(sample for name in findings.benchmarks for sample in _of_benchmark(findings, name)),
    )


def _of_benchmark(findings: Findings, benchmark: str) -> Iterator[Sample]:
    models = [model for model in findings.models if benchmark in model.benchmarks]
    found = {model.name: _first_seed(model.scored[benchmark]) for model in models}
    templates = [model.benchmarks[benchmark].decoding.template for model in models]
    # Models with other tokenizers may have dropped other rows, and a row of another file is another question.
    answered = sorted(set.intersection(*(set(rows) for rows in found.values())))
    shared = [row for row in answered if _is_one_question([rows[row] for rows in found.values()], templates=templates)]
    for row in spread(shared, findings.num_samples):
        first = found[models[0].name][row]
        yield Sample(
            title=f"{benchmark}, row {row}",
            prompt=request_of(first.prompt, template=templates[0]),
            references=first.references,
            answers=tuple(
                Answer(speaker=name, text=rows[row].response, score=rows[row].rougeL) for name, rows in found.items()
            ),
        )


def _first_seed(scored: Scored) -> dict[int, Generation]:
    seed = next(iter(scored.result.rougeL.per_seed))
    generations = read_generations(generations_file(scored.directory / "generations" / scored.name, seed))
    return {generation.row: generation for generation in generations}


def _is_one_question(answers: Sequence[Generation], *, templates: Sequence[str]) -> bool:
    """Whether references are equal, and prompts wherever a template, one for each answer, makes them alike."""
    # A template chat is the tokenizer's own: what it makes of one question differs between models.
    asked = {
        (template, answer.prompt) for template, answer in zip(templates, answers, strict=True) if template != "chat"
    }
    return len({answer.references for answer in answers}) == 1 and len(asked) == len({name for name, _ in asked})


def spread(rows: Sequence[int], number: int) -> list[int]:
    """The first, the last, and others in equal distances, `number` in all or as many as there are."""
    if number >= len(rows):
        return list(rows)
    if number < 2:
        return list(rows[:number])
    return [rows[round(place * (len(rows) - 1) / (number - 1))] for place in range(number)]


def request_of(prompt: str, *, template: str) -> str:
    """What was asked: a prompt of the template alpaca without the words that every one of them has."""
    if template != "alpaca" or _ALPACA_START not in prompt:
        return prompt
    return prompt.split(_ALPACA_START, maxsplit=1)[1].removesuffix(_ALPACA_END)


def prompt_samples(results: FriendlinessResults, *, limit: int) -> Iterator[Sample]:
    """What the teacher says with and without its prompt, and what the student says before and after."""
    for example in results.examples[:limit]:
        yield Sample(
            title=f"unseen row {example.row}",
            prompt=request_of(example.prompt, template="alpaca"),
            references=(example.reference,),
            answers=(
                Answer(speaker="teacher without prompt", text=example.teacher_without_prompt),
                Answer(speaker="teacher with prompt", text=example.teacher_with_prompt),
                Answer(speaker="student before", text=example.initial_student),
                Answer(speaker="student after", text=example.final_student),
            ),
        )
