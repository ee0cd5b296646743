"""PromptKD: distillation of large language models with a prompt-tuned teacher (arXiv 2402.12842)."""

import os

# Large tensors on a CPU in huge pages, which torch reads at its first allocation: a step there has a tenth of the page
# faults. THP_MEM_ALLOC_ENABLE=0 in the environment keeps torch's own default.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# oneDNN compiles a kernel for each shape and keeps 1,024 of them, at half a megabyte each; a step has a few hundred.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

__version__ = "0.1.0"
