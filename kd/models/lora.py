"""LoRA (arXiv 2106.09685), by peft: small trainable matrices beside frozen ones, in the model itself."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from kd.config.schema import LoraConfig
from kd.errors import UserError
from kd.zero.residency import gathered

if TYPE_CHECKING:
    import peft
    from peft.tuners.lora import Linear as AdaptedLinear

ADAPTER = "default"
"""peft's name of the one adapter in a model."""


def add_adapters(model: PreTrainedModel, settings: LoraConfig, *, section: str, name: str, seed: int) -> None:
    """Freeze `model` and put trainable matrices beside its target layers; its outputs do not change yet.

    `section` of the configuration is for messages. The saved adapter refers to `name`, a directory or hub name.
    `seed` draws the random half of the adapters.

    Raises:
        UserError: `targets` names no layers, or the embeddings or the head.
    """
    # Imported here and below: peft takes a second that most runs need not wait.
    import peft
    from peft.tuners.lora import LoraLayer

    targets = None if settings.targets is None else list(settings.targets)
    wanted = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        # peft takes its word for every linear layer but the head as a string only.
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
    )
    try:
        inject(model, wanted, seed=seed)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{section}.targets: {reason[:200]}; name linear layers of {name}, or all-linear") from None
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(module, LoraLayer):
            raise UserError(f"{section}.targets: embeddings and head cannot be adapted; leave them out")


def inject(model: PreTrainedModel, wanted: "peft.LoraConfig", *, seed: int) -> None:
    """Freeze `model` and put matrices beside the layers that `wanted` names, drawn with `seed`.

    Raises:
        ValueError: peft finds no such layers, or does not adapt their kind.
    """
    import peft

    # Adapters are drawn on the host: the same on all ranks, and in every layout of the weights.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # peft warns that GPT-2 stores matrices transposed, which it detects itself, and that the head is tied, which
        # is refused where it matters.
        warnings.simplefilter("ignore", UserWarning)
        peft.inject_adapter_in_model(wanted, model)


def adapter_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The trainable matrices by name; none in a model without adapters."""
    return {
        f"{path}.{name}": parameter
        for path, layer in adapted_layers(model).items()
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """The model as it was before it was adapted, without gradient, inside the context."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainParameter:
    """A parameter as the published architecture has it, with the adapters' current update."""

    name: str
    base: nn.Parameter
    layer: "AdaptedLinear | None" = None

    @property
    def sources(self) -> list[nn.Parameter]:
        """The parameters that must be gathered while `value` is called."""
        if self.layer is None:
            return [self.base]
        return [self.base, *self.layer.lora_A.parameters(), *self.layer.lora_B.parameters()]

    def value(self) -> Tensor:
        """The parameter itself, or W + s·B·A in W's precision (Eq. 3 of the paper of LoRA)."""
        if self.layer is None:
            return self.base.detach()
        update: Tensor = self.layer.get_delta_weight(ADAPTER)
        return (self.base.detach().float() + update.detach().to(self.base.device).float()).to(self.base.dtype)


def plain_parameters(model: PreTrainedModel, *, remove_duplicate: bool = True) -> Iterator[PlainParameter]:
    """The parameters of the published architecture, whether `model` has adapters or not.

    `remove_duplicate` leaves out the second name of a shared parameter, such as a tied head.
    """
    layers, adapters = adapted_layers(model), adapter_parameters(model)
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        owner, _, leaf = name.rpartition(".")
        path = owner.removesuffix(".base_layer")
        if owner != path:
            layer = layers[path] if leaf == "weight" else None
            yield PlainParameter(name=f"{path}.{leaf}", base=parameter, layer=layer)
        elif name not in adapters:
            yield PlainParameter(name=name, base=parameter)


def gather_adapters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of the trainable matrices on the host of every rank; all ranks call it together."""
    values = {}
    for name, parameter in adapter_parameters(model).items():
        with gathered([parameter]):
            values[name] = parameter.detach().to("cpu", copy=True)
    return values


def adapter_writer(model: PreTrainedModel, *, folder: str) -> Callable[[Path], None]:
    """Gather the adapters, all ranks together; returns what writes them into a folder of a directory, for peft to load.

    A folder of its own: beside config.json, from_pretrained would look for the adapters' base model.
    """
    import peft

    values = gather_adapters(model)

    def write(parent: Path) -> None:
        directory = parent / folder
        directory.mkdir(parents=True)
        named: Mapping[str, Tensor] = peft.get_peft_model_state_dict(
            model, state_dict=values, adapter_name=ADAPTER, save_embedding_layers=False
        )
        tensors = {f"base_model.model.{name}": value.contiguous() for name, value in named.items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        model.peft_config[ADAPTER].save_pretrained(str(directory))

    return write


def adapted_layers(model: PreTrainedModel) -> "dict[str, AdaptedLinear]":
    """The layers with adapters by name; none in a model without adapters."""
    # Set by peft; checked first, so that models without adapters do not import it.
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import Linear

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
