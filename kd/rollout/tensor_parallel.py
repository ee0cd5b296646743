"""Tensor parallelism (arXiv 1909.08053, §3): the split of a model's linear layers over a process group.

A column-split layer computes some of the outputs on each rank; the row-split layer behind it computes a partial sum
of all outputs, which is all-reduced. Attention divides by heads. Everything else, such as embeddings and head, is
replicated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from kd.distributed import ProcessGroup


class UnsplittableError(Exception):
    """No split of the model over this many ranks is known; the message says why."""


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The layers of a family that divide; names below the base model, with * for a layer's number."""

    styles: Mapping[str, str]
    """transformers' word for each module: colwise, rowwise, or one of `_REPLICATED`."""
    head_counts: tuple[str, ...] = ()
    """Attributes with a number of heads that the family's forward pass reads."""


# Families for which transformers has no plan.
_OWN_PLANS = {
    "opt": SplitPlan(
        styles={
            "decoder.layers.*.self_attn.q_proj": "colwise",
            "decoder.layers.*.self_attn.k_proj": "colwise",
            "decoder.layers.*.self_attn.v_proj": "colwise",
            "decoder.layers.*.self_attn.out_proj": "rowwise",
            "decoder.layers.*.fc1": "colwise",
            "decoder.layers.*.fc2": "rowwise",
        },
        head_counts=("decoder.layers.*.self_attn.num_heads",),
    )
}

# Of a weight [outputs, inputs].
_DIMENSIONS = {"colwise": 0, "rowwise": 1}
# transformers' names for replicated modules; the second differs in training only.
_REPLICATED = ("replicate", "replicated_with_grad_allreduce")


class RowSplitLinear(nn.Module):
    """A linear layer of which this rank has some of the inputs; the bias is added to the sum."""

    def __init__(self, layer: nn.Linear, *, group: ProcessGroup) -> None:
        """Use the parameters of `layer`."""
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self._group = group

    def forward(self, inputs: Tensor) -> Tensor:
        """From this rank's inputs [..., in / ranks] to all outputs [..., out], the same on all ranks of the group."""
        outputs = self._group.sum_across_ranks(functional.linear(inputs, self.weight))
        return outputs if self.bias is None else outputs + self.bias


def split_dimensions(model: PreTrainedModel, *, num_ranks: int) -> dict[str, int]:
    """The dimension along which each parameter divides, by name; parameters without one are replicated.

    Raises:
        UnsplittableError: there is no plan for the family, or its heads or widths are no multiple of `num_ranks`.
    """
    plan = _plan_for(model.config)
    for setting in ("num_attention_heads", "num_key_value_heads"):
        value = getattr(model.config, setting, None)
        # Families in which queries, keys and values have the same heads name the first only.
        if isinstance(value, int) and value % num_ranks:
            raise UnsplittableError(f"{setting}={value} does not divide")
    dimensions: dict[str, int] = {}
    for name, module in model.named_modules():
        style = plan.styles.get(_generic_name(name, model=model))
        if style is None or style in _REPLICATED:
            continue
        dimension = _DIMENSIONS[style]
        # Others compute something of their own with their weights.
        if type(module) is not nn.Linear:
            raise UnsplittableError(f"{name} is no plain linear layer but {type(module).__name__}")
        width = (module.out_features, module.in_features)[dimension]
        if width % num_ranks:
            raise UnsplittableError(f"the {width} {('outputs', 'inputs')[dimension]} of {name} do not divide")
        dimensions[f"{name}.weight"] = dimension
        if module.bias is not None and style == "colwise":
            dimensions[f"{name}.bias"] = 0
    if not dimensions:
        raise UnsplittableError("it has none of the layers that the plan of its family names")
    return dimensions


def split_layers(model: PreTrainedModel, *, group: ProcessGroup) -> None:
    """Replace the layers that compute with parts of the weights; the caller puts these in, see `split_dimensions`."""
    plan = _plan_for(model.config)
    for name, module in list(model.named_modules()):
        generic = _generic_name(name, model=model)
        if plan.styles.get(generic) == "rowwise":
            assert isinstance(module, nn.Linear)
            model.set_submodule(name, RowSplitLinear(module, group=group))
        for count in plan.head_counts:
            owner, _, attribute = count.rpartition(".")
            if owner == generic:
                setattr(module, attribute, getattr(module, attribute) // group.size)


def _plan_for(config: PretrainedConfig) -> SplitPlan:
    published: dict[str, str] | None = getattr(config, "base_model_tp_plan", None)
    plan = _OWN_PLANS.get(config.model_type) if published is None else SplitPlan(styles=published)
    if plan is None:
        raise UnsplittableError(f"there is no plan for the family {config.model_type}")
    unknown = sorted(set(plan.styles.values()) - {*_DIMENSIONS, *_REPLICATED})
    if unknown:
        raise UnsplittableError(
            f"the plan of the family {config.model_type} has parts that are not supported ({unknown[0]})"
        )
    return plan


def _generic_name(name: str, *, model: PreTrainedModel) -> str:
    """A module's name as plans write it."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name.removeprefix(f"{model.base_model_prefix}."))
