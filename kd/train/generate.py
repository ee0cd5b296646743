"""The teacher's responses to all training rows, for SeqKD: distributed over the ranks, resumable at the row."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import transformers

from kd.config.schema import Config
from kd.data.batch import TokenIds, split_prompts
from kd.data.encoding import Example, encode
from kd.data.instructions import read_rows_of
from kd.data.templates import template_of
from kd.distributed import ProcessGroup, World
from kd.errors import UserError
from kd.files import parse_json, read_log, write_atomically
from kd.methods.seqkd import SeqKDSettings
from kd.models.adapter_folder import describe_adapter
from kd.models.causal_lm import CausalLM
from kd.models.handle import ModelContext
from kd.models.teacher import Teacher
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.rollout.placement import choose_placement
from kd.rollout.sampler import Sampler
from kd.zero.config import teacher_deepspeed_config
from kd.zero.engine import start_deepspeed
from kd.zero.recorder import Recorder

Responses = dict[tuple[int, int], dict[str, Any]]
"""Lines of the file by (row id, number of the sample)."""
# Fields of the configuration that the responses depend on.
_SETTINGS = (
    *("model.teacher", "model.dtype", "data.train", "data.columns", "data.turns", "data.template"),
    *("data.template_options", "data.system_prompt", "data.end_of_sequence", "data.max_prompt_tokens", "data.overlong"),
    *("generation.max_new_tokens", "generation.temperature", "generation.top_p", "generation.top_k"),
    *("seqkd.samples", "run.seed"),
)


def check_responses(config: Config) -> Path:
    """Check that the configuration asks for responses, and return the file that they go to.

    Raises:
        UserError: another method, no training rows, or responses longer than training would read.
    """
    if config.method != "seqkd":
        raise UserError(
            f"method is {config.method}; promptkd generate writes the responses that method=seqkd learns from"
        )
    if config.data.train is None:
        raise UserError("set data.train, the rows that the teacher responds to")
    config.check_response_room()
    assert config.data.responses is not None, "method=seqkd requires it"
    return Path(config.data.responses)


def run_on(world: World, config: Config) -> Path:
    """Write the responses on all ranks of `world` together, or complete an interrupted file; returns its path.

    A response depends on the seed, the number of the sample, the row and the teacher, up to rounding in its batch:
    not on the number of ranks or on an interruption.

    Raises:
        UserError: on every rank alike, before the teacher is loaded, wherever that is possible.
    """
    # Bars for loading would interrupt the lines of progress.
    transformers.utils.logging.disable_progress_bar()
    path = check_responses(config)
    assert config.data.train is not None
    file = ResponseFile(path, config=config, rank=world.rank)
    notes: list[str] = []
    with world.agreed():
        teacher_deepspeed_config(config)
        vocabulary = share_vocabulary(config)
        tokenizer = vocabulary.tokenizer
        rows = read_rows_of(config.data.train, config.data, say=notes.append)
        template = template_of(config.data, tokenizer=tokenizer, say=notes.append)
        encoded = encode(rows, tokenizer=tokenizer, template=template, data=config.data, responses="optional")
        if world.is_main:
            file.begin(encoded.examples)

    def say(line: str) -> None:
        if world.is_main:
            print(line, flush=True)

    if world.from_main(file.is_complete):
        say(f"{path}: is complete")
        return path
    for line in (*notes, *describe_adapter(config.model.teacher), *encoded.report.lines()):
        say(line)
    responses = _write_parts(config, encoded.examples, file=file, vocabulary=vocabulary, world=world, say=say)
    if world.is_main and (num_empty := file.finish(responses)):
        say(f"dropped {num_empty} empty responses")
    world.barrier()
    say(f"{path}: the teacher's responses; train with method=seqkd and this configuration")
    return path


class ResponseFile:
    """data.responses while it is being written: the settings it depends on, and what each rank has finished."""

    def __init__(self, path: Path, *, config: Config, rank: int) -> None:
        self._path = path
        # As they are read again: a template's option may be a date.
        values = {name: attrgetter(name)(config) for name in _SETTINGS}
        self._settings: dict[str, Any] = json.loads(json.dumps(values, default=str))
        self._settings_path = self._path.with_name(f"{self._path.name}.settings.json")
        self._own_path = self._path.with_name(f"{self._path.name}.rank-{rank}.partial")

    @property
    def is_complete(self) -> bool:
        # Unlike Path's methods, os.path has no error for names that the system refuses.
        return os.path.exists(self._path)

    def begin(self, examples: Sequence[Example]) -> None:
        """Write what the responses depend on, or check that it is unchanged; main rank only.

        Raises:
            UserError: other settings or prompts, a file of unknown origin, or one that cannot be read or written.
        """
        prompts = hashlib.sha256(repr([(row.row_id, row.prompt) for row in examples]).encode()).hexdigest()
        settings = self._settings | {"prompts": prompts}
        advice = f"restore it, or delete {self._path.name}* to write other responses"
        if os.path.exists(self._settings_path):
            started = self._read_started(advice=advice)
            for name, value in self._settings.items():
                if started.get(name) != value:
                    raise UserError(
                        f"data.responses {self._path}: was started with {name}={started.get(name)}, now it is {value};"
                        f" {advice}"
                    )
            if started.get("prompts") != prompts:
                raise UserError(
                    f"data.responses {self._path}: was started with other prompts, so the content of data.train or of"
                    f" the template has changed since; {advice}"
                )
        elif self.is_complete:
            raise UserError(
                f"data.responses {self._path}: exists already and was not written by this script; choose another name"
            )
        else:
            write_atomically(self._settings_path, json.dumps(settings, indent=2) + "\n")

    def _read_started(self, *, advice: str) -> dict[str, Any]:
        try:
            started = parse_json(self._settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self._settings_path}: cannot be read ({error}); {advice}") from None
        if not isinstance(started, dict):
            raise UserError(f"{self._settings_path}: expected a JSON object; {advice}")
        return started

    def append(self, responses: Responses) -> None:
        """Add finished responses to this rank's part."""
        lines = [json.dumps({"row": row, **response}, ensure_ascii=False) for (row, _), response in responses.items()]
        with self._own_path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def read_parts(self) -> Responses:
        """The finished responses that this rank can read; a partial line of a killed run is removed."""
        responses: Responses = {}
        for path in self._parts():
            records = read_log(path)
            if path == self._own_path:
                write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
            for number, record in enumerate(records, start=1):
                row, sample = record.pop("row", None), record.get("sample")
                if not (isinstance(row, int) and isinstance(sample, int) and isinstance(record.get("response"), str)):
                    raise UserError(f"{path}:{number}: expected a response with `row` and `sample`; remove that line")
                responses[row, sample] = record
        return responses

    def finish(self, responses: Responses) -> int:
        """Write the file in the order of the rows and remove all parts; returns how many responses were empty."""
        filled = [response for _, response in sorted(responses.items()) if response["response"].strip()]
        write_atomically(self._path, "".join(json.dumps(response, ensure_ascii=False) + "\n" for response in filled))
        for path in self._parts():
            path.unlink(missing_ok=True)
        return len(responses) - len(filled)

    def _parts(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.name}.rank-*.partial"))


def _write_parts(
    config: Config,
    examples: Sequence[Example],
    *,
    file: ResponseFile,
    vocabulary: SharedVocabulary,
    world: World,
    say: Callable[[str], None],
) -> Responses:
    """Sample the responses that are missing; all responses, on all ranks."""
    responses = _merge(world.gather_objects(file.read_parts()))
    num_samples = config.section(SeqKDSettings).samples
    total, num_done = len(examples) * num_samples, len(responses)
    if responses:
        say(f"resuming after {num_done} of {total} responses")
    if num_done == total:
        return responses
    start_deepspeed()
    with _teacher_sampler(config, vocabulary=vocabulary, world=world, say=say) as sampler:
        for number in range(num_samples):
            missing = [row for row in examples if (row.row_id, number) not in responses]
            budget = config.generation.max_batch_tokens * world.size
            new_tokens = config.generation.max_new_tokens
            for block in split_prompts(missing, slots_per_row=new_tokens, max_batch_tokens=budget):
                own = block[world.rank :: world.size]
                # All ranks sample together: a rank without a row discards the response to the first one.
                sampled = sampler.sample(own or block[:1], seed=config.run.seed, step=number).sequences
                finished = {
                    (row.row_id, number): _format(row, sequence.response_ids, number=number, vocabulary=vocabulary)
                    for row, sequence in zip(own, sampled, strict=False)
                }
                file.append(finished)
                responses |= finished
                num_done += len(block)
                say(f"{num_done} of {total} responses")
    return _merge(world.gather_objects(responses))


def _merge(shares: Sequence[Responses]) -> Responses:
    return {key: response for share in shares for key, response in share.items()}


def _format(row: Example, ids: TokenIds, *, number: int, vocabulary: SharedVocabulary) -> dict[str, Any]:
    # Unchanged: a clean-up of spaces would alter the response.
    text = vocabulary.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ended = bool(ids[-1] in vocabulary.end_ids)
    return {"prompt": row.prompt, "response": str(text), "ended": ended, "sample": number, "source": row.source}


@dataclass(frozen=True, kw_only=True)
class _FixedWeights:
    """A placement of weights that never change, prepared once for all responses."""

    view: CausalLM
    is_collective: bool
    group: ProcessGroup | None

    def ready(self) -> AbstractContextManager[CausalLM]:
        return nullcontext(self.view)


@contextmanager
def _teacher_sampler(
    config: Config, *, vocabulary: SharedVocabulary, world: World, say: Callable[[str], None]
) -> Iterator[Sampler]:
    teacher = Teacher(ModelContext(config=config, vocabulary=vocabulary, recorder=Recorder(world.device)))
    weights, sentence = choose_placement(
        teacher, settings=config.generation, world=world, reserved_bytes=0, role="teacher"
    )
    say(sentence)
    with weights.ready() as view:
        fixed = _FixedWeights(view=view, is_collective=weights.is_collective, group=weights.group)
        yield Sampler(fixed, settings=config.generation, vocabulary=vocabulary, world=world, say=say)
