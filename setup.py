"""Packaging of the PromptKD toolkit: what it needs, in ranges; constraints.txt has the tested versions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "([^"]+)"', Path(__file__).with_name("kd").joinpath("__init__.py").read_text())
# Folders of a checkout that are installed below kd, by the names that kd/config/packaged.py looks for.
DATA_FOLDERS = {"kd.ds_configs": "ds_configs", "kd.presets": "launch/experiments"}

setup(
    name="promptkd",
    version=VERSION[1],
    description="Distillation of large language models with a prompt-tuned teacher, on DeepSpeed",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        *find_packages(
            include=["kd", "kd.*", "evaluation", "evaluation.*"],
            # They need a checkout: they reproduce the paper and measure the cost of a step.
            exclude=["evaluation.paper", "evaluation.paper.*", "evaluation.bench", "evaluation.bench.*"],
        ),
        *DATA_FOLDERS,
    ],
    package_dir=DATA_FOLDERS,
    package_data={
        "kd": ["py.typed"],
        "kd.plan": ["models.yaml"],
        "evaluation": ["py.typed"],
        "evaluation.report": ["templates/*"],
        "kd.ds_configs": ["*.json"],
        "kd.presets": ["**/*.yaml"],
    },
    entry_points={"console_scripts": ["promptkd = kd.cli:main"]},
    install_requires=[
        "torch>=2.11",
        # kd/zero uses private names of it.
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.17,<6",
        # transformers asks for it when it loads directly into ZeRO-3 partitions.
        "accelerate>=1.1",
        "datasets>=4",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        # Ranks under an MPI whose environment variables do not give them; its wheel installs without an MPI.
        "mpi4py>=4",
        "numpy>=1.26",
        "pandas>=2.2",
        # LoRA on teacher and student.
        "peft>=0.18",
        "psutil>=5.9",
        "pyarrow>=18",
        "pydantic>=2.9,<3",
        "pyyaml>=6",
        "rich>=13",
        "rouge-score>=0.1.2",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        # Tokenizers of the Llama family; transformers reads their files with protobuf.
        "protobuf>=5",
        "sentencepiece>=0.2",
    ],
    extras_require={
        "dev": [
            "beartype>=0.20",
            "mypy>=1.15",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.7",
            "ruff>=0.12",
            # A test builds the wheel with what is installed.
            "setuptools>=77",
            "types-PyYAML",
        ],
        # The demo's curves and bars.
        "demo": ["matplotlib>=3.9"],
        # Feedback of a language model, from any OpenAI-compatible server.
        "judge": ["openai>=1.109"],
        # What evaluation.bench draws with, and the implementation that it compares with.
        "bench": ["matplotlib>=3.9", "trl>=1.16"],
        # Teachers in 4 or 8 bits; kd/models/quantization.py uses a private name of it.
        "quantized": ["bitsandbytes>=0.45,<0.51", "compressed-tensors>=0.20,<0.21"],
        "report": ["matplotlib>=3.9"],
        "tracking": ["tensorboard>=2.19"],
        # Real weights from a GGUF file, as in launch/experiments/smollm2.
        "smollm2": ["gguf>=0.17"],
    },
)
