"""A tiny model and rows for evaluate.py."""

from pathlib import Path

import pytest

from tests.integration.evaluated import ROWS, write_rows
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "gpt2", seed=3, padding=8)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)
