"""Plan a run's memory: python launch/plan_memory.py --config FILE --gpus N --gpu-memory 80GB [section.field=value …]"""

import sys

from kd.cli import plan

if __name__ == "__main__":
    sys.exit(plan(sys.argv[1:]))
