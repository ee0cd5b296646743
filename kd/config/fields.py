"""What the fields of a configuration are made of: their types, their ranges and how they say what they mean."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

MethodName = Literal["sft", "kd", "seqkd", "gkd", "minillm", "distillm", "promptkd"]
DivergenceName = Literal["reverse_kl", "forward_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"]
GatherName = Literal["auto", "layer", "model"]
LayoutName = Literal["auto", "gathered", "tensor_parallel", "zero3"]

# Strict: true is no count.
Count = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareOfMixture = Annotated[float, Field(ge=0, lt=1)]


def means(text: str) -> dict[str, str]:
    """Metadata of a field: what `--help` says about it."""
    return {"meaning": text}


class Section:
    """A group of fields; a key that no field claims is an error, never ignored."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
