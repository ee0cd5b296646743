"""Whether kept results are of the same models and inputs: a few characters that stand for each."""

import hashlib
import json
from pathlib import Path


def digest(value: object) -> str:
    """Sixteen characters that tell one JSON value from another."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def describe_weights(name: str) -> dict[str, str]:
    """Where a model's weights are, and a digest of their files' names, sizes and times; none of a model of the hub.

    A hash of their content would take as long as loading them.
    """
    directory = Path(name)
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])
    return {
        "model": str(directory.resolve()) if directory.is_dir() else name,
        "weights": digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]),
    }
