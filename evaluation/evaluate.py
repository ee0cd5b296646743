"""Sample a model's responses to benchmarks and score them: see `python evaluation/evaluate.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, it finds the toolkit around it, and not its neighbours as top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from evaluation.scoring import main

    sys.exit(main())
