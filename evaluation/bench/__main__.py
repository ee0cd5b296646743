"""python -m evaluation.bench: see --help."""

import sys
from collections.abc import Sequence

from evaluation.bench.bench import COMMAND, run_bench, separate_fields
from evaluation.bench.decoding import DECODING, run_decoding
from evaluation.bench.families import FAMILIES, run_families
from evaluation.bench.gpu import GPU, run_gpu
from evaluation.bench.loss import LOSS, run_loss
from evaluation.bench.memory import MEMORY, run_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names, and return the exit code."""
    match sys.argv[1:] if argv is None else list(argv):
        case ["decoding", *words]:
            return DECODING.run(run_decoding, words)
        case ["loss", *words]:
            return LOSS.run(run_loss, words)
        case ["memory", *words]:
            return MEMORY.run_on_ranks(run_memory, words)
        case ["families", *words]:
            return FAMILIES.run(run_families, words)
        case ["gpu", *words]:
            return GPU.run(run_gpu, words)
        case words:
            return COMMAND.run_on_ranks(run_bench, separate_fields(words))


if __name__ == "__main__":
    sys.exit(main())
