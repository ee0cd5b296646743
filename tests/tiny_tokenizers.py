"""A tokenizer small enough to be trained inside a test."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
NUM_ENTRIES = 400

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

_TEXTS = (
    "Below is an instruction that describes a task.",
    "Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context.",
    "### Instruction:\nSort these words: river, apple, stone.\n\n### Response:\napple, river, stone",
    "### Instruction:\nWhich is the odd one out?\n\n### Input:\ncat, dog, spoon\n\n### Response:\nspoon",
    "### Instruction:\nHow many metres are two kilometres?\n\n### Response:\nTwo thousand metres.",
    "### Instruction:\nName the capital of this country.\n\n### Input:\nFrance\n\n### Response:\nParis",
    "Suppose you are a student. The teacher answers, and the student repeats it in short words.",
    "The quick brown fox jumps over the lazy dog, and twelve wizards pack five boxes of jugs.",
)


def save_tiny_tokenizer(directory: str | Path, *, chat_template: bool = False) -> None:
    """Train a byte-level BPE of 400 entries and save it for `AutoTokenizer.from_pretrained(directory)`.

    Any text can be encoded and comes back unchanged. The padding token is the end-of-sequence token,
    as in the GPT-2 family.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_ENTRIES,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXTS, trainer=trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(directory))
