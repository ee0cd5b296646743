"""Excess accumulated error (Fig. 3 of the paper): the parts of `evaluation.exposure_bias`."""
