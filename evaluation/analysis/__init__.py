"""Analyses of trained models: divergence, exposure bias, student-friendliness, curves of a run."""
