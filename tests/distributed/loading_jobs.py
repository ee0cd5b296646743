"""What the ranks do in the tests of loading."""

from pathlib import Path

import torch

from kd.distributed import World
from kd.errors import UserError
from kd.methods import load_config
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.models.handle import ModelContext
from kd.models.student import Student
from kd.models.vocabulary import share_vocabulary
from kd.zero.recorder import Recorder
from kd.zero.residency import is_gathered
from tests.distributed.harness import full_weights
from tests.peak_memory import watched


def peak_bytes_while_loading(world: World, *, model: Path, deepspeed_config: dict[str, object]) -> dict[str, int]:
    """Largest growth of this rank's anonymous memory while it loads, and the bytes that it keeps."""
    with watched() as growth:
        config = read_model_config(str(model), trust_remote_code=False)
        loaded = load_causal_lm(
            str(model),
            config=config,
            dtype="fp32",
            deepspeed_config=deepspeed_config,
            keep_dropout=False,
            trust_remote_code=False,
        )
    kept = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in loaded.parameters())
    checksum = 0.0
    for parameter in loaded.parameters():
        part = parameter.ds_tensor.double().sum()
        checksum += float(world.sum_across_ranks(part.clone()))
    assert torch.isfinite(torch.tensor(checksum))
    return {"peak": growth.peak, "kept": kept, "checksum": int(checksum * 1000)}


def loaded_weights(world: World, *, model: Path, deepspeed_config: dict[str, object]) -> dict[str, torch.Tensor]:
    """All weights of a model as it is loaded, gathered, after a check that what ZeRO-3 loads is partitioned."""
    loaded = load_causal_lm(
        str(model),
        config=read_model_config(str(model), trust_remote_code=False),
        dtype="fp32",
        deepspeed_config=deepspeed_config,
        keep_dropout=False,
        trust_remote_code=False,
    )
    assert all(is_gathered(parameter) != bool(deepspeed_config) for parameter in loaded.parameters())
    return full_weights(loaded)


def load_student(world: World, *, config_file: Path) -> str | None:
    """The message of the user error, if loading raises one."""
    try:
        config = load_config(config_file)
        vocabulary, recorder = share_vocabulary(config), Recorder(world.device)
        Student(ModelContext(config=config, vocabulary=vocabulary, recorder=recorder))
    except UserError as error:
        return str(error)
    return None
