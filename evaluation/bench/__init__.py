"""Bench of a training step, of decoding and of the loss; part of the source tree, not of the installed package."""
