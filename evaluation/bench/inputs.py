"""Inputs of a measurement: random checkpoints, a tokenizer of single words, and rows of known lengths."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from evaluation.bench.presets import ROLES, Preset, Role
from evaluation.bench.results import DTYPES

NUM_ROWS = 512
_END = "<|endoftext|>"


def write_inputs(directory: Path, preset: Preset, *, device: torch.device) -> None:
    """Write teacher/, student/, rows.jsonl and template.jinja into `directory`, on one rank."""
    tokenizer = word_tokenizer(preset.vocabulary)
    for role in ROLES:
        random_model(preset, role, device=device).save_pretrained(directory / role)
        tokenizer.save_pretrained(directory / role)
    generator = np.random.default_rng(0)
    shortest, longest = preset.prompt_tokens
    with (directory / "rows.jsonl").open("w", encoding="utf-8") as file:
        for prompt_tokens in generator.integers(shortest, longest + 1, NUM_ROWS):
            # The response's last token is the end token, which the reader appends.
            lengths = {"instruction": prompt_tokens, "output": preset.new_tokens - 1}
            ids = {name: generator.integers(0, preset.end_id, length) for name, length in lengths.items()}
            row = {name: " ".join(f"w{index}" for index in indices) for name, indices in ids.items()}
            file.write(json.dumps(row) + "\n")
    (directory / "template.jinja").write_text("{{ instruction }}", encoding="utf-8")


def random_model(preset: Preset, role: Role, *, device: torch.device) -> PreTrainedModel:
    """Teacher or student with the random weights that its family starts training from; the same each time."""
    torch.manual_seed(ROLES.index(role))
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(preset.model_config(role), dtype=DTYPES[preset.dtype])
    model.eval()
    return model


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Tokenizer whose entry i is the word `w<i>`; the last one ends a sequence, pads and replaces unknown words."""
    words = {f"w{index}": index for index in range(vocabulary - 1)} | {_END: vocabulary - 1}
    plain = Tokenizer(models.WordLevel(words, unk_token=_END))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=_END, pad_token=_END)
