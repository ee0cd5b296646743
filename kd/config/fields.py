"""Types and ranges of configuration fields, and how a field documents itself."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field

T = TypeVar("T")

# Strict: true is not a count.
Count = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
MixtureShare = Annotated[float, Field(ge=0, lt=1)]


def option(default: T, *, help: str) -> T:
    """A field with a default and its line in `--help`."""
    made: T = field(default=default, metadata={"help": help})
    return made


def required(*, help: str) -> Any:
    """A field that must be set, with its line in `--help`."""
    return field(metadata={"help": help})


class Section:
    """A group of fields; a key that no field claims is an error."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def help_text(text: str) -> dict[str, str]:
    """Metadata of a field: its line in `--help`."""
    return {"help": text}
