"""Train the demo's byte-level BPE tokenizer, in which each fixed segment of the template is one token."""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"

TEMPLATE_SEGMENTS: tuple[str, ...] = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n",
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n",
    "\n\n### Input:\n",
    "\n\n### Response:\n",
)


def read_texts(folder: Path) -> list[str]:
    """Every instruction, input and output of the teacher's rows in `folder`."""
    with (folder / "teacher.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row[key] for row in rows for key in ("instruction", "input", "output") if row[key]]


def train_tokenizer(texts: list[str], vocabulary_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocabulary_size` entries, added tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(TEMPLATE_SEGMENTS),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    # Regular tokens, not special ones, so that decoding a prompt restores its text.
    segments = [AddedToken(segment, special=False, normalized=False) for segment in TEMPLATE_SEGMENTS]
    tokenizer.add_tokens(segments)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files that `AutoTokenizer` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Not saved by transformers: version 5 would write a class name that version 4 does not know.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer on the teacher's rows and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that make_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer's files")
    parser.add_argument("--vocabulary-size", type=int, default=1200)
    args = parser.parse_args()

    tokenizer = train_tokenizer(read_texts(args.data), args.vocabulary_size)
    save_tokenizer(tokenizer, args.out)
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
