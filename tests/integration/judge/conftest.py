"""A server for each test of the judge, and the key that it should see."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.judge.judged import KEY
from tests.judge_server import JudgeServer, Script, serve


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def served() -> Iterator[Callable[[Script], JudgeServer]]:
    """served(script): a server that lasts as long as the test."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(serve(script))
