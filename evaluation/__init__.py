"""Scores of trained models: decoding of benchmarks, ROUGE-L, exact match."""
