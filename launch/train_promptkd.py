"""Distil with PromptKD: deepspeed launch/train_promptkd.py --config FILE [section.field=value …]"""

import sys

from kd.cli import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__, methods=["promptkd"]))
