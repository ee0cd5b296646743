"""Teacher and student under DeepSpeed, side by side on the same ranks."""

import os

import torch

if not torch.cuda.is_available():
    # Said before DeepSpeed is imported, or every process warns that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
