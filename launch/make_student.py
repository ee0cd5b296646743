"""Make a student of some of a teacher's layers: python launch/make_student.py --teacher DIR --layers 0,2,4 --out DIR"""

import sys

from kd.cli import make_student

if __name__ == "__main__":
    sys.exit(make_student(sys.argv[1:]))
