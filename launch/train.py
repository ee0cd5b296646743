"""Train with any method: deepspeed launch/train.py --config FILE [section.field=value …]"""

import sys
from typing import get_args

from kd.command_line import main
from kd.config_fields import MethodName

if __name__ == "__main__":
    sys.exit(main(description=__doc__, methods=get_args(MethodName)))
