"""A tiny model and rows for evaluate.py."""

from pathlib import Path

import pytest

from kd.distributed import free_port
from tests.integration.evaluated import ROWS, write_rows
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "gpt2", seed=3, padding=8)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a single rank, for `main` in this process."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (names | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
