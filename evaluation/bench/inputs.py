"""What a measurement reads: random checkpoints, a tokenizer of single words, and rows of known lengths."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from evaluation.bench.presets import ROLES, Preset
from kd.models.causal_lm import DTYPES

NUM_ROWS = 512
FILE_BYTES = 2**30
"""Weights are made, written and dropped in files of about this size."""
_WEIGHT_SPREAD = 0.02
_END = "<|endoftext|>"


def write_inputs(directory: Path, preset: Preset, *, seed: int, device: torch.device) -> None:
    """Write teacher/, student/, rows.jsonl and template.jinja into `directory`, on one rank."""
    tokenizer = word_tokenizer(preset.vocabulary)
    for number, role in enumerate(ROLES):
        generator = torch.Generator(device).manual_seed(2 * seed + number)
        config = preset.model_config(role)
        write_random_checkpoint(directory / role, config, dtype=DTYPES[preset.dtype], generator=generator)
        tokenizer.save_pretrained(directory / role)
    _write_rows(directory / "rows.jsonl", preset, generator=np.random.default_rng(seed))
    (directory / "template.jinja").write_text("{{ instruction }}", encoding="utf-8")


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Entry i is the word `w<i>`; the last one ends a sequence, pads and stands for the unknown."""
    words = {f"w{index}": index for index in range(vocabulary - 1)} | {_END: vocabulary - 1}
    plain = Tokenizer(models.WordLevel(words, unk_token=_END))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=_END, pad_token=_END)


def write_random_checkpoint(
    directory: Path, config: PretrainedConfig, *, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Write a checkpoint of random weights without ever holding the model.

    The names and shapes come from the model on the meta device; a file's tensors are made on the
    generator's device, written and dropped before those of the next file are made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # The loader ties again what is tied; buffers that a checkpoint holds are made by the model itself.
    shapes = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    files = list(_file_names(shapes))
    places: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {name: _random_values(name, shapes[name], generator=generator) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _file_names(shapes: dict[str, Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    num_bytes = 0
    for name, tensor in shapes.items():
        size = tensor.numel() * tensor.element_size()
        if names and num_bytes + size > FILE_BYTES:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += size
    yield names


def _random_values(name: str, like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Normal matrices; vectors of a fresh model: scales of 1, biases of 0."""
    if like.ndim == 1:
        return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=like.dtype)
    values = torch.empty(like.shape, dtype=like.dtype, device=generator.device)
    return values.normal_(std=_WEIGHT_SPREAD, generator=generator).cpu()


def _write_rows(path: Path, preset: Preset, *, generator: np.random.Generator) -> None:
    def text(num_words: int) -> str:
        return " ".join(f"w{index}" for index in generator.integers(0, preset.end_id, num_words))

    shortest, longest = preset.prompt_tokens
    with path.open("w", encoding="utf-8") as file:
        for length in generator.integers(shortest, longest + 1, NUM_ROWS):
            # The response's last token is the end token, which the reader appends.
            row = {"instruction": text(int(length)), "output": text(preset.new_tokens - 1)}
            file.write(json.dumps(row) + "\n")
