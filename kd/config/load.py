"""YAML files and `section.field=value` overrides become a configuration.

A configuration is a dataclass of sections, which are dataclasses of fields. Training and the commands of
`evaluation/` read theirs with the same functions.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kd.errors import UserError
from kd.files import list_repeated

Values = dict[str, Any]
ConfigType = TypeVar("ConfigType")

# The key of a file that names another file to start from.
_EXTENDS = "extends"


class _Loader(yaml.SafeLoader):
    """YAML in which no mapping has a key twice, and 24:00:00 is a string; YAML 1.1 reads it in base 60."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before keys of `<<` are merged, which others may replace. PyYAML would take the last one in silence.
        if repeated := list_repeated(str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            raise yaml.constructor.ConstructorError(None, None, f"{repeated} more than once", node.start_mark)
        return super().construct_mapping(node, deep=deep)

    def construct_int_or_time(self, node: yaml.ScalarNode) -> int | str:
        return str(node.value) if ":" in node.value else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int_or_time)
_BROKEN_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""Text in another encoding, dates that do not exist and numbers of thousands of digits are a ValueError."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Fields that were renamed or removed, each written `section.field`."""

    renamed: Mapping[str, str]
    """Old names that still work, with the new ones."""
    removed: Collection[str]
    """Sections and fields that no longer have an effect and are ignored."""


def read_layers(
    path: str | Path | None, *, overrides: Sequence[str] = (), names: Names, notify: Callable[[str], None]
) -> list[Values]:
    """Read the files that a YAML file extends, the file itself, and overrides: from the most general to the overrides.

    Args:
        path: a YAML file; `extends: FILE` in it (relative to itself) names a file to start from. None for no file.
        overrides: `section.field=value`, each value in YAML notation; they take precedence over the file.
        notify: receives one line for each old name.

    Raises:
        UserError: an unreadable file, broken YAML, files that extend each other, or a malformed override.
    """
    files = [] if path is None else _read_extended(Path(path))
    layers = [*files, _parse_overrides(overrides)]
    for layer in layers:
        _rename(layer, names=names, notify=notify)
    return layers


def merge_layers(layers: Sequence[Values], *, alternatives: Sequence[tuple[str, str]] = ()) -> Values:
    """The values of all layers; a later layer takes precedence.

    Args:
        alternatives: pairs of fields of which one is used: a layer that sets one of them unsets the other in the
            layers before it, so that `schedule.steps=3` on the command line replaces a file's `schedule.epochs`.
    """
    values: Values = {}
    for layer in layers:
        for pair in alternatives:
            for chosen, other in (pair, pair[::-1]):
                if _get(layer, chosen) is not None and _get(layer, other) is None:
                    _pop(values, other)
        values = _merge(values, layer)
    return values


def build(kind: type[ConfigType], values: Mapping[str, Any], *, source: str) -> ConfigType:
    """Check `values`, which come from `source`, against the types and ranges of `kind`.

    Raises:
        UserError: an unknown key, a missing value, or a value of the wrong type or range.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error.errors()[0], kind=kind)}") from None


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def describe_fields(kind: type) -> Iterator[tuple[str, str, str]]:
    """Yield (name, default, help) of every field, in the order of the sections."""
    for section in fields(kind):
        prefix, entries = "", [section]
        if is_dataclass(section.type):
            prefix, entries = f"{section.name}.", list(fields(section.type))
        for entry in entries:
            default = "required"
            if entry.default is not MISSING:
                default = yaml.safe_dump(entry.default, default_flow_style=True).removesuffix("...\n").strip()
            yield prefix + entry.name, default, entry.metadata["help"]


def _read_extended(path: Path, *, extending: Sequence[Path] = ()) -> list[Values]:
    """The values of the files that `path` extends, and its own; `extending` are the files that led to `path`."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        asked = f"{extending[-1]}: {_EXTENDS} {path}, which" if extending else f"--config {path}:"
        raise UserError(f"{asked} cannot be read ({error.strerror}); give the path of a YAML file") from None
    except _BROKEN_YAML as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"{path}: expected a mapping with sections such as model and data, found {kind}")
    parent = values.pop(_EXTENDS, None)
    if parent is None:
        return [values]
    if not isinstance(parent, str):
        raise UserError(f"{path}: {_EXTENDS} is {parent!r}; expected the path of one YAML file, relative to this one")
    chain = [*extending, path]
    target = path.parent / parent
    if target.resolve() in [member.resolve() for member in chain]:
        circle = " → ".join(str(member) for member in (*chain, target))
        raise UserError(f"{path}: {_EXTENDS} {parent} is circular ({circle}); remove one of these lines")
    return [*_read_extended(target, extending=chain), values]


def _merge(base: Values, values: Values) -> Values:
    """`values` over `base`, section by section; an empty section changes nothing."""
    merged = dict(base)
    for name, value in values.items():
        inner = base.get(name)
        if isinstance(inner, dict) and isinstance(value, dict | None):
            value = _merge(inner, value or {})
        merged[name] = value
    return merged


def _parse_overrides(overrides: Sequence[str]) -> Values:
    values: Values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"override {override!r}: expected section.field=value, such as schedule.steps=500")
        try:
            value = yaml.load(text, Loader=_Loader)
        except _BROKEN_YAML as error:
            reason = " ".join(str(error).split())
            raise UserError(f"override {override!r}: the value is not valid YAML ({reason}); quote it") from None
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise UserError(f"override {override!r}: {part} is a value, not a section")
        section[last] = value
    return values


def _section_of(values: Values, name: str) -> tuple[Values, str]:
    """The section of the field `name`, empty if `values` does not have it, and the field's name in it."""
    section, _, field = name.rpartition(".")
    inner = values.get(section) if section else values
    return inner if isinstance(inner, dict) else {}, field


def _get(values: Values, name: str) -> Any:
    section, field = _section_of(values, name)
    return section.get(field)


def _pop(values: Values, name: str) -> Any:
    section, field = _section_of(values, name)
    return section.pop(field, None)


def _rename(values: Values, *, names: Names, notify: Callable[[str], None]) -> None:
    for old, new in names.renamed.items():
        value = _pop(values, old)
        if value is not None:
            notify(f"{old} is called {new} now; the old name still works in this version")
            section, _, field = new.rpartition(".")
            values.setdefault(section, {})[field] = value
    for name in names.removed:
        value = _pop(values, name)
        if isinstance(value, str):
            raise UserError(f"{name}={value}: this version has no {name} (see CHANGELOG.md); remove it")
        if value is not None:
            notify(f"{name} has no effect in this version and is ignored; remove it")


def _explain(error: ErrorDetails, *, kind: type) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        known = [name for name, _, _ in describe_fields(kind)] + [section.name for section in fields(kind)]
        nearest = difflib.get_close_matches(location, known, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"unknown key {location}{hint} (--help lists every key)"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{location} is missing; set it in the file or as {location}=VALUE (--help describes it)"
    expected = error["msg"][:1].lower() + error["msg"][1:]
    return f"{location} is {error['input']!r}; {expected}"
