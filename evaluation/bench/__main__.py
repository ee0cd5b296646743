"""python -m evaluation.bench: see --help."""

import sys
from collections.abc import Sequence

from evaluation.bench.options import DecodingOptions, LossOptions, parse_options
from kd.distributed import exit_with_user_error
from kd.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Do what the command line says, and return the exit code."""
    try:
        # Imported where they are needed: --help and a typing error should not wait for DeepSpeed.
        match parse_options(argv):
            case DecodingOptions() as options:
                from evaluation.bench.decoding import run_decoding

                run_decoding(options)
            case LossOptions() as options:
                from evaluation.bench.loss import run_loss

                run_loss(options)
            case options:
                from evaluation.bench.bench import run_bench

                run_bench(options)
    except UserError as error:
        return exit_with_user_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
