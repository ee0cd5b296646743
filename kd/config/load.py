"""A YAML file and `section.field=value` overrides become a `Config`."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kd.config.schema import Config
from kd.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML in which 24:00:00 is a text; YAML 1.1 reads a number to the base 60."""

    def construct_int_or_time(self, node: yaml.ScalarNode) -> int | str:
        return str(node.value) if ":" in node.value else self.construct_yaml_int(node)


_EXTENDS = "extends"
"""The key of a file that names another one to start from."""

_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int_or_time)


def read_config(path: str | Path, *, overrides: Sequence[str] = ()) -> Config:
    """Read a run's configuration.

    Args:
        path: YAML file with the sections of `kd.config.schema.Config`; with `extends: FILE` (relative to itself) it says
            only what is different from that file.
        overrides: `section.field=value`, each value in YAML notation; they win over the file.

    Raises:
        UserError: unreadable file, broken YAML, files that extend each other, unknown key, value of the wrong type
            or range.
    """
    values = _read_extended(Path(path))
    for override in overrides:
        _apply_override(values, override)
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error.errors()[0])}") from None


def to_yaml(config: Config) -> str:
    """The resolved configuration, readable again by `read_config`."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def describe_fields() -> Iterator[tuple[str, str, str]]:
    """Yield (name, default, meaning) of every field, in the order of the sections."""
    for section in fields(Config):
        if is_dataclass(section.type):
            for entry in fields(section.type):
                yield f"{section.name}.{entry.name}", _default(entry), entry.metadata["meaning"]
        else:
            yield section.name, _default(section), section.metadata["meaning"]


def _default(entry: "Field[Any]") -> str:
    if entry.default is MISSING:
        return "required"
    return yaml.safe_dump(entry.default, default_flow_style=True).removesuffix("...\n").strip()


def _read_extended(path: Path, *, extending: Sequence[Path] = ()) -> dict[str, Any]:
    """The values of a file over those of the files that it extends; `extending` lead to this one."""
    values = _read_mapping(path, extending=extending)
    parent = values.pop(_EXTENDS, None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: {_EXTENDS} is {parent!r}; expected the path of one YAML file, relative to this one")
    chain = [*extending, path]
    target = path.parent / parent
    if target.resolve() in [member.resolve() for member in chain]:
        circle = " → ".join(str(member) for member in (*chain, target))
        raise UserError(f"{path}: {_EXTENDS} {parent} leads back to itself ({circle}); remove one of these lines")
    return _merge(_read_extended(target, extending=chain), values)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `base`, section by section; a section that is left empty changes nothing."""
    merged = dict(base)
    for name, value in values.items():
        inner = base.get(name)
        if isinstance(inner, dict) and (value is None or isinstance(value, dict)):
            merged[name] = _merge(inner, value or {})
        else:
            merged[name] = value
    return merged


def _read_mapping(path: Path, *, extending: Sequence[Path]) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        asked = f"{extending[-1]}: {_EXTENDS} {path}, which" if extending else f"--config {path}:"
        raise UserError(f"{asked} cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); mend that place") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected a mapping with sections such as model and data, found {type(values).__name__}"
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r}: expected section.field=value, such as schedule.steps=500")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML; quote it") from None
    *sections, last = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {section} is a value, not a section")
        values = inner
    values[last] = value


def _explain(error: ErrorDetails) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        known = [name for name, _, _ in describe_fields()] + [section.name for section in fields(Config)]
        nearest = difflib.get_close_matches(location, known, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"unknown key {location}{hint} (--help lists every key)"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{location} is missing; set it in the file or as {location}=VALUE (--help says what it means)"
    expected = error["msg"][:1].lower() + error["msg"][1:]
    return f"{location} is {error['input']!r}; {expected}"
