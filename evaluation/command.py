"""The command line of all commands: a configuration as training has it, whose fields are flags too.

A command has a dataclass of sections and fields. Values come from `--config FILE` (YAML), from `section.field=value`,
and from flags: `--field value` is short for `section.field=value`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Generic, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml

from kd.config.load import Names, Values, build, describe_fields, merge_layers, read_layers
from kd.distributed import World, exit_with_user_error
from kd.distributed.session import joined_world
from kd.errors import UserError

ConfigType = TypeVar("ConfigType")

# A name becomes a key of the results, a label of a picture, or a directory; it may have a step, as in sft:100.
_NAMED = re.compile(r"(\w[\w.+-]*(?::\d+)?)=(.+)")
_NO_NAMES = Names(renamed={}, removed=())


@dataclass(frozen=True, kw_only=True)
class Command(Generic[ConfigType]):
    """One command: the type of its configuration, and its help."""

    config: type[ConfigType]
    program: str
    description: str
    flags: Mapping[str, str] = field(default_factory=dict)
    """Flags that are not named after their fields, by the name of the field."""
    run_values: Callable[[Any], Values] | None = None
    """From the field `run`, the directory of a training, to values by name for fields that are not given."""

    def read(self, argv: Sequence[str] | None = None) -> ConfigType:
        """Read the configuration from a command line (`sys.argv` if None).

        Raises:
            UserError: an unknown flag or field, a missing value, or one of the wrong type or range.
        """
        given = vars(self._parser().parse_intermixed_args(argv))
        path, overrides = given.pop("config"), given.pop("overrides")
        given.pop("local_rank")
        layers = read_layers(path, overrides=overrides, names=_NO_NAMES, notify=print)
        values = merge_layers([*layers, _nested(given)])
        names = _field_types(self.config)
        # A section is there even if none of its fields is given: the first missing field can be named then.
        sections: Values = {name.split(".")[0]: {} for name in names if "." in name}
        run = values.get("run")
        found = {} if self.run_values is None or run is None else self.run_values(run)
        defaults = _nested({name: value for name, value in found.items() if name in names and value is not None})
        values = merge_layers([sections, defaults, values])
        return build(self.config, values, source=path or "command line")

    def run(self, work: Callable[[ConfigType], int | None], argv: Sequence[str] | None = None) -> int:
        """Do `work` in this process, and return its exit code, or 2 after one line about a user's mistake."""
        try:
            return work(self.read(argv)) or 0
        except UserError as error:
            return exit_with_user_error(error)

    def run_on_ranks(self, work: Callable[[ConfigType, World], None], argv: Sequence[str] | None = None) -> int:
        """Do `work` on all ranks of the launcher together, and return the exit code.

        A user error of one rank, such as a file that only this rank cannot read, ends all of them.
        """
        if argv is None:
            argv = sys.argv[1:]
        if {"-h", "--help"} & set(argv):
            self.read(argv)
        try:
            with joined_world() as world:
                with world.agreed():
                    config = self.read(argv)
                work(config, world)
        except UserError as error:
            return exit_with_user_error(error)
        return 0

    def _parser(self) -> "_Parser":
        kinds = _field_types(self.config)
        flags = {name: self.flags.get(name, f"--{name.rpartition('.')[2].replace('_', '-')}") for name in kinds}
        described = [(f"{name}, {flags[name]}", *rest) for name, *rest in describe_fields(self.config)]
        width = max(len(name) for name, *_ in described)
        lines = [f"  {name:<{width}}  {text} [{default}]" for name, default, text in described]
        parser = _Parser(
            prog=self.program,
            usage=f"{self.program} [--config FILE] [section.field=value …] [--field value …]",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="fields of the configuration, each with its flag and default:\n" + "\n".join(lines),
            allow_abbrev=False,
        )
        parser.add_argument("--config", metavar="FILE", help="YAML file with fields of the configuration")
        parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the configuration")
        # DeepSpeed's launcher passes it; ranks are read from the environment.
        parser.add_argument("--local_rank", help=argparse.SUPPRESS)
        for name, kind in kinds.items():
            parser.add_argument(
                flags[name], dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **_read(kind)
            )
        return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _field_types(kind: Any, *, prefix: str = "") -> dict[str, Any]:
    """The type of every field by its name, such as `data.rows`, in the order of the sections."""
    found: dict[str, Any] = {}
    for name, inner in get_type_hints(kind).items():
        if is_dataclass(inner):
            found |= _field_types(inner, prefix=f"{name}.")
        elif not name.startswith("_"):
            found[f"{prefix}{name}"] = inner
    return found


def _read(kind: Any) -> dict[str, Any]:
    """How argparse reads the flag of a field of this type."""
    alternatives = [part for part in get_args(kind) if part is not type(None)]
    plain = alternatives[0] if type(None) in get_args(kind) else kind
    match get_origin(plain) or plain:
        case kind if kind is bool:
            return {"action": "store_true"}
        case kind if kind is dict:
            return {"action": _AddNamed, "metavar": "NAME=PATH"}
        case kind if kind is tuple and get_args(plain)[0] is str:
            return {"action": "extend", "nargs": "+"}
        case kind if kind is tuple:
            return {"type": lambda text: _yaml(f"[{text}]")}
        case kind if kind in (int, float, Mapping):
            return {"type": _yaml}
        case _:
            return {}


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


class _AddNamed(argparse.Action):
    """Adds NAME=PATH to a dictionary."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, text: Any, *_: object) -> None:
        match = _NAMED.fullmatch(text)
        if match is None:
            parser.error(
                f"{self.option_strings[0]}: {text!r} is not NAME=PATH with a NAME of letters, digits, dots, +, - and _"
            )
        named = getattr(namespace, self.dest, {})
        if match[1] in named:
            parser.error(f"{self.option_strings[0]}: the name {match[1]} is given twice")
        setattr(namespace, self.dest, named | {match[1]: match[2]})


def _nested(given: Values) -> Values:
    """From names such as `data.rows` to sections."""
    values: Values = {}
    for name, value in given.items():
        section, _, last = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = value
    return values
