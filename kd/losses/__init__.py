"""Losses of every method: pure divergences, and the chunked loss that reads hidden states and an output head.

Imports nothing but torch, jaxtyping and the standard library; ranks, engines and micro-batches are unknown
here.
"""
