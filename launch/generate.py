"""Write the teacher's responses for SeqKD: deepspeed launch/generate.py --config FILE [section.field=value …]"""

import sys

from kd.cli import generate

if __name__ == "__main__":
    sys.exit(generate(sys.argv[1:]))
