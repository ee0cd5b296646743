"""python -m evaluation.bench: see --help."""

import sys
from collections.abc import Sequence

from evaluation.bench.options import DecodingOptions, LossOptions, ScalingOptions, StepOptions, parse_options
from kd.distributed import exit_with_user_error
from kd.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line (`sys.argv` if None) says, and return the exit code."""
    try:
        # Imported where they are needed: --help and a typing error should not wait for DeepSpeed.
        match parse_options(sys.argv[1:] if argv is None else argv):
            case StepOptions() as options:
                from evaluation.bench.bench import run_bench

                run_bench(options)
            case ScalingOptions() as options:
                from evaluation.bench.scaling import run_scaling

                run_scaling(options)
            case DecodingOptions() as options:
                from evaluation.bench.decoding import run_decoding

                run_decoding(options)
            case LossOptions() as options:
                from evaluation.bench.loss import run_loss

                run_loss(options)
    except UserError as error:
        return exit_with_user_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
