"""Train with any method: deepspeed launch/train.py --config FILE [section.field=value …]"""

import sys
from typing import get_args

from kd.cli import main
from kd.config.fields import MethodName

if __name__ == "__main__":
    sys.exit(main(description=__doc__, methods=get_args(MethodName)))
