"""Rollouts: responses sampled from the student, and from any model in evaluation."""
