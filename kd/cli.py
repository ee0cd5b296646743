"""The command line of training: a YAML file, overrides, and help for each field."""

import argparse
import sys
from collections.abc import Sequence

from kd.config.load import describe_fields, to_yaml
from kd.config.schema import Config
from kd.distributed import exit_with_user_error, select_accelerator
from kd.errors import UserError
from kd.methods import METHODS, config_type, load_config


def main(*, description: str, methods: Sequence[str] | None = None, argv: Sequence[str] | None = None) -> int:
    """Read the configuration, train, and return the exit code; user errors are one line and exit code 2."""
    arguments = _parser(description).parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, overrides=arguments.overrides)
        _check_method(config, methods)
        if arguments.print_config:
            print(to_yaml(config), end="")
            return 0
        select_accelerator()
        # Imported here: --help and a typing error should not wait for DeepSpeed.
        from kd.train.assemble import run

        run(config, command=sys.argv)
        return 0
    except UserError as error:
        return exit_with_user_error(error)


def _check_method(config: Config, methods: Sequence[str] | None) -> None:
    if methods is not None and config.method not in methods:
        raise UserError(
            f"method is {config.method}, but this script runs {' or '.join(methods)} only; use launch/train.py"
        )


def _parser(description: str) -> argparse.ArgumentParser:
    described = list(describe_fields(config_type(METHODS["promptkd"])))
    width = max(len(name) for name, _, _ in described)
    lines = [f"  {name:<{width}}  {text} [{default}]" for name, default, text in described]
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields of the configuration, with their defaults:\n" + "\n".join(lines),
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="YAML file of the run; `extends: FILE` in it names another to start from",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields that differ from the file")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser
