"""One page of everything that was measured, beside the paper's numbers: the parts of `python -m evaluation.report`."""
