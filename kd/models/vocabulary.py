"""What teacher and student must share before anything heavy is loaded."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from kd.config.schema import Config
from kd.data.files import one_line
from kd.distributed import on_gpu
from kd.errors import UserError
from kd.models.adapter_folder import base_of, tokenizer_of
from kd.models.causal_lm import read_model_config
from kd.models.checkpoint_files import find_broken_json
from kd.models.quantization import check_quantized_teacher, check_unquantized


@dataclass(frozen=True, kw_only=True)
class SharedVocabulary:
    """The student's tokenizer, and the number of entries that both models know."""

    tokenizer: PreTrainedTokenizerBase
    size: int
    eos_id: int
    """Ends a response of the data."""
    end_ids: tuple[int, ...]
    """End a rollout: `eos_id`, and the end tokens of both models' generation_config.json."""

    @property
    def pad_id(self) -> int:
        """Fills slots that lengths, not ids, mask; any id would do."""
        return self.eos_id

    def describe_ends(self) -> str:
        """One line about the end tokens."""
        tokens = {end_id: repr(self.tokenizer.convert_ids_to_tokens(end_id)) for end_id in self.end_ids}
        return f"responses of the data end in {tokens[self.eos_id]}; rollouts end at {' or '.join(tokens.values())}"


def load_tokenizer(
    name: str, *, trust_remote_code: bool, end_of_sequence: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; `end_of_sequence` replaces its own end-of-sequence token.

    Raises:
        UserError: none at `name`, it has no end-of-sequence token, or no entry `end_of_sequence`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_of(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, TypeError, LookupError, AttributeError) as error:
        # The last ones come from JSON files of another form.
        broken = find_broken_json(tokenizer_of(name), *_TOKENIZER_JSON)
        reason = broken or f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"tokenizer of {name}: cannot be read ({reason[:200]}); expected tokenizer files there"
        ) from None
    if end_of_sequence is not None:
        if end_of_sequence not in tokenizer.get_vocab():
            raise UserError(
                f"data.end_of_sequence is {end_of_sequence!r}, which is no entry of the tokenizer of {name}; its"
                f" special tokens are {', '.join(map(repr, tokenizer.all_special_tokens))}"
            )
        tokenizer.eos_token = end_of_sequence
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer of {name}: has no end-of-sequence token, which ends every response; set eos_token in its"
            " tokenizer_config.json, or data.end_of_sequence"
        )
    return tokenizer


# Files that are read to load a tokenizer.
_TOKENIZER_JSON = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
# What a tokenizer consists of, whatever its kind.
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "*.tiktoken",
)
_FILES_WITH_END = ("tokenizer_config.json", "special_tokens_map.json")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, *, name: str, directory: Path) -> None:
    """Put the tokenizer of `name` into `directory` as it was published, but with its present end-of-sequence token."""
    source = Path(tokenizer_of(name))
    files = [path for pattern in _TOKENIZER_FILES for path in source.glob(pattern)] if source.is_dir() else []
    if not files:
        tokenizer.save_pretrained(directory)
    # Copied where that can be done: transformers 5 saves a class name that transformers 4 does not know.
    for path in files:
        shutil.copyfile(path, directory / path.name)
        if path.name in _FILES_WITH_END:
            _set_end(directory / path.name, token=str(tokenizer.eos_token))


def _set_end(path: Path, *, token: str) -> None:
    """Replace the end-of-sequence token in a JSON file, unless it is this token already."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    published = settings.get("eos_token")
    # Either a text, or an added token with properties.
    if token != (published.get("content") if isinstance(published, dict) else published):
        path.write_text(json.dumps(settings | {"eos_token": token}, indent=2, ensure_ascii=False), encoding="utf-8")


def share_vocabulary(config: Config, *, teacher_slots: int = 0) -> SharedVocabulary:
    """Check the pair of models without loading their weights.

    `teacher_slots` soft prompt tokens precede the teacher's sequences.

    Raises:
        UserError: tokenizers that differ, a vocabulary that a model does not cover, sequences
            longer than a model's positions, weights quantized where they cannot be, or a precision that the device
            lacks.
    """
    check_dtype(config.model.dtype)
    trust = config.model.trust_remote_code
    student = read_model_config(config.model.student, trust_remote_code=trust)
    check_unquantized(student, name=config.model.student, reason="the student's weights are trained")
    end = config.data.end_of_sequence
    tokenizer = load_tokenizer(config.model.student, trust_remote_code=trust, end_of_sequence=end)
    size = vocabulary_size(tokenizer)
    ends = read_ends(config.model.student, config=student)
    check_model(student, name=config.model.student, vocabulary=size, longest=config.data.max_sequence_tokens)
    if config.model.teacher is not None:
        teacher = read_model_config(config.model.teacher, trust_remote_code=trust)
        check_quantized_teacher(teacher, config=config)
        longest = config.data.max_sequence_tokens + teacher_slots
        check_model(teacher, name=config.model.teacher, vocabulary=size, longest=longest)
        check_same_entries(
            tokenizer, load_tokenizer(config.model.teacher, trust_remote_code=trust, end_of_sequence=end)
        )
        ends = {*ends, *read_ends(config.model.teacher, config=teacher)}
    return SharedVocabulary(
        tokenizer=tokenizer, size=size, eos_id=int(tokenizer.eos_token_id), end_ids=end_ids(tokenizer, ends)
    )


def read_ends(name: str, *, config: PretrainedConfig) -> set[int]:
    """The end tokens of a checkpoint, from generation_config.json, else from config.json, as in `generate`.

    Raises:
        UserError: generation_config.json is broken.
    """
    base = base_of(name)
    broken = find_broken_json(base, "generation_config.json")
    if broken is None:
        try:
            return published_ends(GenerationConfig.from_pretrained(base))
        except OSError:
            return published_ends(config)
        except (ValueError, TypeError) as error:
            broken = one_line(error)
    raise UserError(f"model {base}: cannot read generation_config.json ({broken[:200]}); correct or remove it")


def published_ends(settings: GenerationConfig | PretrainedConfig | None) -> set[int]:
    """The end tokens in a configuration, which may have one, several or none.

    Raises:
        UserError: it has something else.
    """
    found: Any = getattr(settings, "eos_token_id", None)
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(end, int) for end in ends):
        raise UserError(
            f"eos_token_id is {found!r} in generation_config.json or config.json; expected a token's id or a list of"
            " ids; correct it"
        )
    return set(ends)


def end_ids(tokenizer: PreTrainedTokenizerBase, published: set[int]) -> tuple[int, ...]:
    """The tokenizer's end token first, then the published ones that are entries of it."""
    first, size = int(tokenizer.eos_token_id), vocabulary_size(tokenizer)
    return (first, *sorted(end_id for end_id in published - {first} if 0 <= end_id < size))


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Largest token id plus one: the real entries, without the padding columns of a head."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_same_entries(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Compare two tokenizers entry by entry.

    Raises:
        UserError: they differ; names the first differing entry.
    """
    of_student = {index: token for token, index in student.get_vocab().items()}
    of_teacher = {index: token for token, index in teacher.get_vocab().items()}
    for index in range(max(*of_student, *of_teacher) + 1):
        if of_student.get(index) != of_teacher.get(index):
            raise UserError(
                f"tokenizers of teacher and student differ: entry {index} is {of_teacher.get(index)!r} for the"
                f" teacher and {of_student.get(index)!r} for the student; the pair must share one tokenizer"
            )
    if student.eos_token_id != teacher.eos_token_id:
        raise UserError(
            f"tokenizers of teacher and student differ: end of sequence is {teacher.eos_token!r} for the teacher"
            f" and {student.eos_token!r} for the student; set data.end_of_sequence to the one that responses end in"
        )


_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
"""Names of the number of positions in the configurations of transformers' families."""


def check_model(config: PretrainedConfig, *, name: str, vocabulary: int, longest: int) -> None:
    """Check that a model has an entry for each token of a tokenizer, and a position for each of `longest` tokens.

    Raises:
        UserError: it has fewer.
    """
    if config.vocab_size < vocabulary:
        raise UserError(
            f"model {name}: its head has {config.vocab_size} entries, the tokenizer {vocabulary};"
            " resize the model's embeddings or use the tokenizer it was trained with"
        )
    positions = next((found for key in _POSITION_KEYS if isinstance(found := getattr(config, key, None), int)), None)
    if positions is not None and positions < longest:
        raise UserError(
            f"model {name}: has {positions} positions, the longest sequence with its soft prompt needs {longest};"
            " lower data.max_sequence_tokens, or data.max_prompt_tokens and generation.max_new_tokens"
        )


def check_dtype(dtype: str) -> None:
    """Check that the device supports fp32, bf16 or fp16.

    Raises:
        UserError: it does not.
    """
    if dtype == "fp16" and not on_gpu():
        raise UserError("model.dtype=fp16 needs a GPU; use fp32 (or bf16) on a CPU")
    if dtype == "bf16" and on_gpu() and not torch.cuda.is_bf16_supported():
        raise UserError("model.dtype=bf16 is not supported by this GPU; use fp16")
