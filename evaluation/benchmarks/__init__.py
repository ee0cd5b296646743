"""The instruction sets of the paper's Table 1: the parts of `python -m evaluation.benchmarks`."""
