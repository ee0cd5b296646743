"""Losses of every method: divergences per token, loss terms, and the fused loss that reads outputs chunk by chunk.

Imports torch, jaxtyping and the standard library only: ranks, engines and micro-batches are unknown here.
"""
