"""The teacher's responses to all requests, written once for SeqKD: shared out over the ranks, resumable at the row."""

import json
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.config.schema import Config
from kd.data.batch import TokenIds, split_prompts
from kd.data.encoding import Example
from kd.distributed import RankGroup, World
from kd.errors import UserError
from kd.methods.seqkd import SeqKDSettings
from kd.models.causal_lm import CausalLM
from kd.models.teacher import Teacher
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.placement import choose_placement
from kd.rollout.sampler import Sampler
from kd.zero.recorder import Recorder

Answers = dict[tuple[int, int], dict[str, Any]]
"""Lines of the file by (row id, number of the sample)."""


class ResponseFile:
    """data.responses while it is being written: what it is made of, and what each rank has finished."""

    def __init__(self, config: Config, *, rank: int) -> None:
        assert config.data.responses is not None
        self._path = Path(config.data.responses)
        self._settings = {
            "model": {"teacher": config.model.teacher, "dtype": config.model.dtype},
            "data": {
                name: getattr(config.data, name) for name in ("train", "template", "max_prompt_tokens", "overlong")
            },
            "generation": {
                name: getattr(config.generation, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")
            },
            "seqkd": {"samples": config.section(SeqKDSettings).samples},
            "run": {"seed": config.run.seed},
        }
        self._settings_path = self._path.with_name(f"{self._path.name}.settings.json")
        self._own_path = self._path.with_name(f"{self._path.name}.rank-{rank}.partial")

    @property
    def is_complete(self) -> bool:
        return self._path.exists()

    def begin(self) -> None:
        """Note what the responses are made of, or check that an earlier start made them of the same; main rank only.

        Raises:
            UserError: other settings, a file of unknown origin, or a directory that cannot be written.
        """
        if self._settings_path.exists():
            self._compare(json.loads(self._settings_path.read_text(encoding="utf-8")))
            return
        if self.is_complete:
            raise UserError(
                f"data.responses {self._path}: exists already and was not written by this script; choose another name"
            )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._settings_path, json.dumps(self._settings, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"data.responses {self._path}: cannot be written ({error.strerror}); choose a writable directory"
            ) from None

    def _compare(self, begun: Mapping[str, Mapping[str, object]]) -> None:
        for section, fields in self._settings.items():
            for name, value in fields.items():
                old = begun[section][name]
                if old != value:
                    raise UserError(
                        f"data.responses {self._path}: was begun with {section}.{name}={old}, now it is {value};"
                        f" restore it, or delete {self._path.name}* to write other responses"
                    )

    def append(self, answers: Answers) -> None:
        """Add finished answers to this rank's part."""
        lines = [json.dumps({"row": row, **answer}, ensure_ascii=False) for (row, _), answer in answers.items()]
        with self._own_path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    def read_parts(self) -> Answers:
        """The finished answers that can be seen from here; a line that a kill has torn is cut off for good."""
        answers: Answers = {}
        for path in self._parts():
            content = path.read_bytes()
            *lines, torn = content.split(b"\n")
            if path == self._own_path and torn:
                with path.open("r+b") as file:
                    file.truncate(len(content) - len(torn))
            for answer in map(json.loads, lines):
                answers[answer.pop("row"), answer["sample"]] = answer
        return answers

    def finish(self, answers: Answers) -> int:
        """Write the file in the order of the rows and remove all parts; returns how many answers were empty."""
        said = [answer for _, answer in sorted(answers.items()) if answer["response"].strip()]
        _replace(self._path, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in said))
        for path in self._parts():
            path.unlink(missing_ok=True)
        return len(answers) - len(said)

    def _parts(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.name}.rank-*.partial"))


def write_responses(
    config: Config,
    examples: Sequence[Example],
    *,
    file: ResponseFile,
    vocabulary: SharedVocabulary,
    world: World,
    say: Callable[[str], None],
) -> None:
    """Sample the teacher's responses to `examples` and write data.responses; all ranks call it together.

    A response depends on the seed, the number of the sample, the row and the teacher, but for rounding errors in its
    batch: not on the number of ranks or on an interruption.

    Raises:
        UserError: the teacher cannot be loaded, or memory ran out.
    """
    answers = _merge(world.gather_objects(file.read_parts()))
    total = len(examples) * config.section(SeqKDSettings).samples
    if answers:
        say(f"going on after {len(answers)} of {total} responses")
    if len(answers) < total:
        num_done = len(answers)
        with _teacher_sampler(config, vocabulary=vocabulary, world=world, say=say) as sampler:
            for number, block in _blocks(config, examples, done=set(answers), num_ranks=world.size):
                own = block[world.rank :: world.size]
                # All ranks sample together: one without a row answers the first for show.
                sampled = sampler.sample(own or block[:1], seed=config.run.seed, step=number).sequences
                finished = {
                    (row.row_id, number): _answer(row, sequence.response_ids, number=number, vocabulary=vocabulary)
                    for row, sequence in zip(own, sampled, strict=False)
                }
                file.append(finished)
                answers |= finished
                num_done += len(block)
                say(f"{num_done} of {total} responses")
    answers = _merge(world.gather_objects(answers))
    if world.is_main:
        num_empty = file.finish(answers)
        if num_empty:
            say(f"left out {num_empty} empty responses")
    world.barrier()


def _merge(shares: Sequence[Answers]) -> Answers:
    return {key: answer for share in shares for key, answer in share.items()}


def _blocks(
    config: Config, examples: Sequence[Example], *, done: Container[tuple[int, int]], num_ranks: int
) -> Iterator[tuple[int, list[Example]]]:
    """What is still to do: the number of a sample, and rows that all ranks decode at once."""
    for number in range(config.section(SeqKDSettings).samples):
        missing = [row for row in examples if (row.row_id, number) not in done]
        for block in split_prompts(
            missing,
            slots_per_row=config.generation.max_new_tokens,
            max_batch_tokens=config.generation.max_batch_tokens * num_ranks,
        ):
            yield number, block


def _answer(row: Example, ids: TokenIds, *, number: int, vocabulary: SharedVocabulary) -> dict[str, Any]:
    # As the teacher wrote it: a clean-up of spaces would be a correction.
    text = vocabulary.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ended = bool(ids[-1] == vocabulary.eos_id)
    return {"prompt": row.prompt, "response": str(text), "ended": ended, "sample": number, "source": row.source}


@dataclass(frozen=True, kw_only=True)
class _HeldWeights:
    """Weights that never change: made ready once, for all that is sampled."""

    view: CausalLM
    is_collective: bool
    group: RankGroup | None

    def ready(self) -> AbstractContextManager[CausalLM]:
        return nullcontext(self.view)


@contextmanager
def _teacher_sampler(
    config: Config, *, vocabulary: SharedVocabulary, world: World, say: Callable[[str], None]
) -> Iterator[Sampler]:
    teacher = Teacher(config, vocabulary=vocabulary, recorder=Recorder(world.device))
    weights, sentence = choose_placement(teacher, settings=config.generation, world=world, role="teacher")
    say(sentence)
    with weights.ready() as view:
        held = _HeldWeights(view=view, is_collective=weights.is_collective, group=weights.group)
        yield Sampler(held, settings=config.generation, vocabulary=vocabulary, world=world, say=say)


def _replace(path: Path, text: str) -> None:
    """Write beside and move: a kill leaves no half of a file."""
    partial = path.with_name(f"{path.name}.writing")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
