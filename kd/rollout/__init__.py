"""Sampling: the student's pseudo-targets, and any model's responses in evaluation."""
