"""Configurations of models that need not be there yet: a plan comes before the downloads and the fine-tuning."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PretrainedConfig

from kd.config.packaged import find_preset, list_presets
from kd.errors import UserError
from kd.methods import load_config
from kd.models.adapter_folder import base_of
from kd.models.causal_lm import read_model_config
from kd.models.quantization import check_unquantized

_RUN_FOLDERS = ("best", "final")


def model_shapes(name: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """Configuration of a model for its shapes: its config.json, or that of the model it will be made from.

    A run's best/ or final/ that does not exist yet has the shapes of the student in the preset that writes it. The last
    part of a name may be that of a published model in models.yaml.

    Raises:
        UserError: nothing of this name is known or readable.
    """
    origin = _origin(name)
    last = Path(origin).name
    if not Path(origin).is_dir():
        if last in _published():
            (_, family), *sizes = _published()[last].items()
            return AutoConfig.for_model(family, **dict(sizes))
        if last in _RUN_FOLDERS:
            raise UserError(
                f"model {origin}: no such directory yet, and no preset writes it; name the model that it will be made"
                " from, such as model.student=facebook/opt-1.3b"
            )
    config = read_model_config(origin, trust_remote_code=trust_remote_code)
    check_unquantized(config, name=origin, reason="a plan counts weights of model.dtype, an upper bound")
    return config


def has_known_shapes(name: str) -> bool:
    """Whether the shapes of a model are known without a network."""
    origin = _origin(name)
    return Path(origin).is_dir() or Path(origin).name in _published()


def _origin(name: str) -> str:
    """The model whose shapes a model has: itself, its base, or the student of the preset that will write it."""
    name = base_of(name)
    while not Path(name).is_dir() and Path(name).name in _RUN_FOLDERS:
        student = _students_of_presets().get(str(Path(name).parent))
        if student is None:
            break
        name = student
    return name


@cache
def _published() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("models.yaml").read_text(encoding="utf-8")
    shapes: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return shapes


@cache
def _students_of_presets() -> dict[str, str]:
    """The student of each preset, by its run.dir."""
    configs = [load_config(find_preset(name)) for name, _ in list_presets()]
    return {config.run.dir: config.model.student for config in configs}
