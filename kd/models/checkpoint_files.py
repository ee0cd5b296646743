"""What lies in a model's directory, where transformers would guess in silence or fail without a clear line."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from kd.data.files import one_line
from kd.errors import UserError


def find_broken_json(name: str, *files: str) -> str | None:
    """What is wrong with the first of a directory's JSON files that is broken; None if all are objects or not there."""
    for path in (Path(name) / file for file in files):
        # Unlike Path's methods, os.path has no error for names that the system refuses.
        if os.path.isfile(path):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                return f"{path.name} is not valid JSON: {one_line(error)}"
            if not isinstance(content, dict):
                return f"{path.name} is not a JSON object"
    return None


def check_tied_head(model: PreTrainedModel, *, name: str) -> None:
    """Refuse a checkpoint whose own output head would be replaced by the embeddings.

    Raises:
        UserError: config.json ties them, and the files have a head with other values.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False) or head is None:
        return
    tensors = [_stored(Path(name), f"{_name_of(model, module)}.weight") for module in (embeddings, head)]
    if None not in tensors and not tensors[0].equal(tensors[1]):
        raise UserError(
            f"model {name}: config.json says tie_word_embeddings, but the checkpoint has an output head of its own,"
            " which would be lost; set tie_word_embeddings to false in config.json"
        )


def _name_of(model: PreTrainedModel, wanted: Any) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _stored(directory: Path, key: str) -> Any:
    """The tensor of that name in the directory's safetensors files, if there is one."""
    index = directory / "model.safetensors.index.json"
    files = [directory / "model.safetensors"]
    if index.is_file():
        files = [directory / name for name in [json.loads(index.read_text())["weight_map"].get(key)] if name]
    for path in files:
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if key in file.keys():  # noqa: SIM118 (a file of safetensors is no mapping)
                    return file.get_tensor(key)
    return None
