"""Train with any method: deepspeed launch/train.py --config FILE [section.field=value …]"""

import sys

from kd.cli import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__, methods=None))
