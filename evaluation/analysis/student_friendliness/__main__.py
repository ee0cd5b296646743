"""What the prompt changes in the teacher: distance to the student, quality, and examples (Tables 2 and 4 of the paper).

deepspeed --num_gpus 2 --module evaluation.analysis.student_friendliness --run runs/NAME --out DIR

A run of PromptKD names everything: its teacher, the student it began with, final/ with the soft prompt, and its
training (seen) and validation (unseen) rows. Each can be given instead. Rows need an output.

Writes student_friendliness.md, a page with table and examples, and student_friendliness.json (docs/analysis.md has the
keys). Divergences are means over tokens, end token included; intervals come from resampled rows.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluation.analysis.student_friendliness.page import SHOWN_MODELS, page, table
from evaluation.analysis.student_friendliness.summary import RowSet, summarise
from evaluation.analysis.tokens import SampleSet, sample_sequences, score_tokens
from evaluation.command import Command
from evaluation.examples import print_report, read_examples
from evaluation.models import EvaluatedModel, ModelSet, find_models
from evaluation.results import write_json
from evaluation.settings import RUN_HELP, AnalysisConfig, AnalysisRows, AnalysisSampling, Loading, run_values
from evaluation.statistics import CONFIDENCE
from kd.config.fields import Count, NonNegativeInt, option, required
from kd.data.batch import TokenIds
from kd.data.encoding import Encoded, Example
from kd.distributed import World
from kd.files import make_directory, write_atomically
from kd.losses.divergences import forward_kl, reverse_kl
from kd.models.soft_prompt import SoftPrompt, load_soft_prompt

RESULTS = "student_friendliness.json"
PAGE = "student_friendliness.md"
STUDENTS = ("initial", "final")


@dataclass(frozen=True, kw_only=True)
class ModelSection(Loading):
    teacher: str = required(help="p: from_pretrained directory or hub name")
    trained_prompt: str = required(help="P: soft_prompt.safetensors of a run")
    initial: str = required(help="the student at the beginning of distillation")
    final: str = required(help="the student at its end")


@dataclass(frozen=True, kw_only=True)
class RowSection(AnalysisRows):
    seen: str = required(help="rows that were trained on, with outputs")
    unseen: str = required(help="rows that were not, with outputs")
    max_sequence_tokens: Count = option(512, help="longest prompt and output together; longer outputs are clipped")


@dataclass(frozen=True, kw_only=True)
class SamplingSection(AnalysisSampling):
    seeds: tuple[NonNegativeInt, ...] = option((10,), help="one response to each row per seed")


@dataclass(frozen=True, kw_only=True)
class FriendlinessConfig(AnalysisConfig):
    """Which models and rows to measure."""

    run: Path | None = option(None, help=RUN_HELP)
    data: RowSection
    generation: SamplingSection
    model: ModelSection
    examples: NonNegativeInt = option(8, help="unseen rows to show, from the start")
    out: Path = required(help=f"directory for {RESULTS} and {PAGE}")

    @property
    def row_files(self) -> dict[str, str]:
        return {"seen": self.data.seen, "unseen": self.data.unseen}


COMMAND = Command(
    config=FriendlinessConfig,
    program="python -m evaluation.analysis.student_friendliness",
    description=__doc__,
    flags={"model.trained_prompt": "--soft-prompt"},
    run_values=run_values,
)


def measure(config: FriendlinessConfig, *, world: World) -> None:
    """Measure both teachers against both students and write the results; all ranks call it together.

    Raises:
        UserError: on every rank, if an input cannot be used.
    """
    with world.agreed():
        models, rows, prompt = _prepare(config, world=world)
    prompted = models.load(config.model.teacher, soft_prompt=prompt)
    teachers = [replace(prompted, soft_prompt=None), prompted]

    def sample(model: EvaluatedModel, encoded: Encoded, label: str, *, num_rows: int | None = None) -> SampleSet:
        examples = encoded.examples[:num_rows]
        return sample_sequences(model, examples, sampling=config.generation, label=label)

    samples = {
        name: [sample(teacher, encoded, f"teacher on {name} rows") for teacher in teachers]
        for name, encoded in rows.items()
    }
    nats: dict[str, dict[str, np.ndarray]] = {name: {} for name in rows}
    shown = [*samples["unseen"]]
    for role in STUDENTS:
        student = models.load(getattr(config.model, role))
        for name, encoded in rows.items():
            nats[name][role] = _sums(config, student, teachers, encoded, label=f"{role} student on {name} rows")
        shown.append(sample(student, rows["unseen"], f"{role} student", num_rows=config.examples))
    with world.agreed():
        if world.is_main:
            sets = {
                name: summarise(
                    config.row_files[name],
                    encoded,
                    nats=nats[name],
                    samples=samples[name],
                    text=prompted.text,
                    num_resamples=config.resamples,
                )
                for name, encoded in rows.items()
            }
            examples = rows["unseen"].examples[: config.examples]
            _report(config, sets, _shown(examples, shown, text=prompted.text), num_ranks=world.size)


def _prepare(config: FriendlinessConfig, *, world: World) -> tuple[ModelSet, dict[str, Encoded], SoftPrompt]:
    prompt, _ = load_soft_prompt(config.model.trained_prompt)
    students = [config.model.initial, config.model.final]
    models = find_models([config.model.teacher, *students], loading=config.model, world=world)
    rows = {
        name: read_examples(
            source,
            tokenizer=models.tokenizer,
            prompts=config.data,
            max_sequence_tokens=config.data.max_sequence_tokens,
            responses="required",
        )
        for name, source in config.row_files.items()
    }
    examples = [example for encoded in rows.values() for example in encoded.examples]
    longest = max(
        max(len(example.prompt_ids) + config.generation.max_new_tokens, example.num_tokens) for example in examples
    )
    models.check_lengths(longest + prompt.num_tokens)
    if world.is_main:
        make_directory(config.out)
        for encoded in rows.values():
            print_report(encoded)
    return models, rows, prompt


def _sums(
    config: FriendlinessConfig,
    student: EvaluatedModel,
    teachers: Sequence[EvaluatedModel],
    rows: Encoded,
    *,
    label: str,
) -> Float[np.ndarray, "B 2 2"]:
    scores = score_tokens(
        student,
        teachers,
        [example.with_response() for example in rows.examples],
        divergences=[forward_kl, reverse_kl],
        micro_batch=config.generation.micro_batch,
        label=label,
    )
    return np.stack([one.divergences.sum(axis=2) for one in scores])


def _shown(
    examples: Sequence[Example], responses: Sequence[SampleSet], *, text: Callable[[TokenIds], str]
) -> list[dict[str, Any]]:
    """Rows with the first response of each of `SHOWN_MODELS`."""
    return [
        {
            "row": example.row_id,
            "prompt": example.prompt,
            "reference": example.references[0],
            **{name: text(samples[0].response_ids) for name, samples in zip(SHOWN_MODELS, of_row, strict=True)},
        }
        for example, *of_row in zip(examples, *responses, strict=False)
    ]


def _report(
    config: FriendlinessConfig, sets: Mapping[str, RowSet], examples: Sequence[Mapping[str, Any]], *, num_ranks: int
) -> None:
    """Write the files and print the table."""
    model = config.model
    models = {
        "teacher": model.teacher,
        "soft_prompt": model.trained_prompt,
        "initial": model.initial,
        "final": model.final,
    }
    results = {
        "format": "student_friendliness",
        "version": 1,
        **models,
        "num_ranks": num_ranks,
        "confidence": CONFIDENCE,
        "settings": config.settings | {"max_sequence_tokens": config.data.max_sequence_tokens},
        "sets": {name: asdict(content) for name, content in sets.items()},
        "examples": examples,
    }
    subtitle = ", ".join(f"{name.replace('_', ' ')} `{path}`" for name, path in models.items())
    write_json(config.out / RESULTS, results)
    write_atomically(config.out / PAGE, page(sets, examples, subtitle=subtitle))
    print(table(sets))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run_on_ranks(lambda config, world: measure(config, world=world), argv)


if __name__ == "__main__":
    sys.exit(main())
