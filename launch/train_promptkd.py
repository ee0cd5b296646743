"""Distil with PromptKD: deepspeed launch/train_promptkd.py --config FILE [section.field=value …]"""

import sys

from kd.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:], only="promptkd"))
