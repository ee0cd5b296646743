"""What teacher and student must share before anything heavy is loaded."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from kd.config.schema import Config
from kd.distributed import on_gpu
from kd.errors import UserError
from kd.models.causal_lm import read_model_config


@dataclass(frozen=True, kw_only=True)
class SharedVocabulary:
    """The student's tokenizer, and the number of entries that both models know."""

    tokenizer: PreTrainedTokenizerBase
    size: int
    eos_id: int

    @property
    def pad_id(self) -> int:
        """Fills slots that lengths, not ids, mask; any id would do."""
        return self.eos_id


def load_tokenizer(name: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        UserError: none at `name`, or it has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"tokenizer of {name}: cannot be read ({reason[:200]}); expected tokenizer files there"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer of {name}: has no end-of-sequence token, which ends every response; set eos_token in its"
            " tokenizer_config.json"
        )
    return tokenizer


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


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, *, name: str, directory: Path) -> None:
    """Put the tokenizer of `name` into `directory` as it was published."""
    source = Path(name)
    files = [path for pattern in _TOKENIZER_FILES for path in source.glob(pattern)] if source.is_dir() else []
    if not files:
        tokenizer.save_pretrained(directory)
    # Copied where that can be done: transformers 5 saves a class name that transformers 4 does not know.
    for path in files:
        shutil.copyfile(path, directory / path.name)


def share_vocabulary(config: Config, *, teacher_slots: int = 0) -> SharedVocabulary:
    """Check the pair of models without loading their weights.

    `teacher_slots` soft prompt tokens precede the teacher's sequences.

    Raises:
        UserError: tokenizers that differ, a vocabulary that a model does not cover, sequences
            longer than a model's positions, or a precision that the device lacks.
    """
    check_dtype(config.model.dtype)
    trust = config.model.trust_remote_code
    student = read_model_config(config.model.student, trust_remote_code=trust)
    tokenizer = load_tokenizer(config.model.student, trust_remote_code=trust)
    size = vocabulary_size(tokenizer)
    check_model(student, name=config.model.student, vocabulary=size, longest=config.data.max_sequence_tokens)
    if config.model.teacher is not None:
        teacher = read_model_config(config.model.teacher, trust_remote_code=trust)
        longest = config.data.max_sequence_tokens + teacher_slots
        check_model(teacher, name=config.model.teacher, vocabulary=size, longest=longest)
        check_same_entries(tokenizer, load_tokenizer(config.model.teacher, trust_remote_code=trust))
    return SharedVocabulary(tokenizer=tokenizer, size=size, eos_id=int(tokenizer.eos_token_id))


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
            f" and {student.eos_token!r} for the student; the pair must share one tokenizer"
        )


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
    positions = getattr(config, "max_position_embeddings", None)
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
