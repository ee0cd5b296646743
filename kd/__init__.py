"""PromptKD: distillation of large language models with a prompt-tuned teacher (arXiv 2402.12842)."""

__version__ = "0.1.0"
