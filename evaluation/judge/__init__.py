"""Feedback of a language model on responses: the parts of `evaluation.judge`."""
