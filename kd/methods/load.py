"""The list of methods, and the configuration of a run with its method's settings."""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from kd.config.load import Names, build, merge_layers, read_layers
from kd.config.packaged import find_preset
from kd.config.schema import Config, LoraConfig
from kd.distributed.launcher import rank_from_environment
from kd.errors import UserError
from kd.methods.base import Method
from kd.methods.distillm import DistiLLM
from kd.methods.gkd import GKD
from kd.methods.kd import KD
from kd.methods.minillm import MiniLLM
from kd.methods.promptkd import PromptKD
from kd.methods.seqkd import SeqKD
from kd.methods.sft import SFT

METHODS: Mapping[str, type[Method]] = {
    "promptkd": PromptKD,
    "sft": SFT,
    "kd": KD,
    "seqkd": SeqKD,
    "gkd": GKD,
    "minillm": MiniLLM,
    "distillm": DistiLLM,
}
"""The one list of methods: choices, help, sections of the configuration and the tests follow from it."""

_NAMES = Names(renamed={"engine.pass_tokens": "engine.inference_batch_tokens"}, removed=("cluster", "data.group"))


def find_method(name: str) -> type[Method]:
    """The method of a built-in name, or of `package.module:Class`.

    Raises:
        UserError: an unknown name, a module that cannot be imported, or a class that is no `Method`.
    """
    if name in METHODS:
        return METHODS[name]
    module_name, colon, class_name = str(name).partition(":")
    if not colon:
        nearest = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(METHODS)}"
        raise UserError(f"method is {name!r}; {hint} (or package.module:Class for your own)")
    if os.getcwd() not in sys.path:
        # A script's path is that of launch/, or of the console script: the user's modules are in the working directory.
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"method {name}: cannot be imported ({error}); expected package.module:Class that Python finds from here"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {name}: expected a subclass of kd.methods.base.Method, found {found!r}")
    return found


def requested_method(arguments: Sequence[str]) -> type[Method]:
    """The method that the arguments of a command ask for, in `method=NAME` or in the file after --config.

    Its sections are part of `--help`. The default method where neither has one.
    """
    overrides = [argument for argument in arguments if argument.startswith("method=")]
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    if files and not overrides:
        layers = read_layers(find_preset(files[-1]), names=_NAMES, notify=_notify)
        return find_method(merge_layers(layers).get("method", Config.method))
    return find_method(overrides[-1].removeprefix("method=") if overrides else Config.method)


@cache
def config_type(method: type[Method]) -> type[Config]:
    """The configuration with the sections of all built-in methods, and of `method`.

    All built-in sections are known, so that a file with several of them serves for each of its methods.
    """
    sections: dict[str, Any] = {}
    for known in dict.fromkeys((*METHODS.values(), method)):
        for name, kind in known.sections.items():
            if name in Config.__dataclass_fields__ or sections.get(name, kind) is not kind:
                raise UserError(f"{known.__name__}: the section {name} exists already; choose another name")
            sections[name] = kind
    extra = [(name, kind, field(default_factory=kind)) for name, kind in sections.items()]
    return make_dataclass("Config", extra, bases=(Config,), frozen=True, kw_only=True)


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a run.

    Args:
        path: YAML file with the sections that `--help` lists; with `extends: FILE` (relative to itself) it has only
            what differs from that file.
        overrides: `section.field=value`, each value in YAML notation; they take precedence over the file.

    Raises:
        UserError: unreadable file, broken YAML, unknown key, value of the wrong type or range, or settings that
            contradict each other.
    """
    layers = read_layers(path, overrides=overrides, names=_NAMES, notify=_notify)
    method = find_method(merge_layers(layers).get("method", Config.method))
    alternatives = [("schedule.steps", "schedule.epochs")]
    if method.alternative_sources:
        alternatives.append(("data.train", "data.responses"))
    values = merge_layers(layers, alternatives=alternatives)
    config = build(config_type(method), values, source=str(path))
    check_method(config, method)
    return config


def check_method(config: Config, method: type[Method]) -> None:
    """Refuse a configuration that lacks what the method needs.

    Raises:
        UserError: the first problem.
    """
    needs = method.needs(config)
    if needs.teacher and config.model.teacher is None:
        raise UserError(f"method {config.method} needs model.teacher, a directory or hub name")
    if method.alternative_sources and (config.data.train is None) == (config.data.responses is None):
        raise UserError("give exactly one of data.train (rows) and data.responses (fixed responses)")
    _refuse_other_sections(config, method)
    method.check(config)
    if needs.rollouts and config.data.responses is None:
        config.check_response_room()


def _refuse_other_sections(config: Config, method: type[Method]) -> None:
    """Refuse adapters of another method, which would be ignored."""
    for name, value in vars(config).items():
        owners = [known for known, other in METHODS.items() if name in other.sections]
        if owners and name not in method.sections and isinstance(value, LoraConfig) and value.is_on:
            raise UserError(
                f"{name}.rank={value.rank}: method {config.method} has no such adapters; set {name}.rank=0, or"
                f" method={owners[0]}"
            )


def _notify(line: str) -> None:
    """Print a line about the configuration once per host."""
    info = rank_from_environment()
    if info is None or info.local_rank == 0:
        print(line, file=sys.stderr, flush=True)
