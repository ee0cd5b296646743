"""Train with any method: deepspeed launch/train.py --config FILE [section.field=value …]"""

import sys

from kd.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
