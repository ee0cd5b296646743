"""Makes `python -m kd` the console script, for launchers that start modules: torchrun -m kd train --config FILE"""

import sys

from kd.cli import main

if __name__ == "__main__":
    sys.exit(main())
