"""The judge and a server that fails, stalls and talks nonsense; interruptions, and where the key must not appear."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.judge.__main__ import main
from tests.integration.judge.judged import (
    KEY,
    SOON,
    always,
    arguments,
    command,
    command_environment,
    judgements,
    read,
    score_of,
    write_evaluation,
)
from tests.integration.tiny_run import ROOT
from tests.judge_server import Behavior, JudgeServer, Request, Script


@pytest.mark.parametrize(
    "trouble",
    [
        Behavior(status=429, body="slow down", headers=SOON),
        Behavior(status=500, body="<html>sorry</html>", headers=SOON | {"Content-Type": "text/html"}),
        Behavior(status=503, body="", headers=SOON),
        Behavior(drops=True),
        Behavior(text="1 1", wait_seconds=1.0),
    ],
    ids=["429", "500", "503", "dropped", "stalled"],
)
def test_a_request_that_fails_is_made_again(
    tmp_path: Path, served: Callable[[Script], JudgeServer], trouble: Behavior
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    server = served(lambda request: Behavior(text="8 10") if request.num_before == 2 else trouble)
    assert main(arguments(tmp_path, server.url, "--timeout-seconds", "0.3")) == 0
    assert len(server.requests) == 3
    assert score_of(tmp_path)["score"] == 80.0
    assert read(tmp_path)["usage"]["num_asked"] == 1


def test_a_server_that_trickles_is_not_waited_for(
    tmp_path: Path, served: Callable[[Script], JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte satisfies the client's own timeout, so that only the limit of the complete request ends it."""
    monkeypatch.setattr("evaluation.judge.endpoint._LONGEST_PAUSE_SECONDS", 0.2)
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    server = served(always(Behavior(trickles=True)))
    assert main(arguments(tmp_path, server.url, "--timeout-seconds", "0.3", "--retries", "0")) == 1
    assert judgements(tmp_path)[0]["reason"] == "timed out"


def test_the_rate_holds_for_repeated_requests_too(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=4, seeds=(10,))
    server = served(
        lambda request: Behavior(text="5 5") if request.num_before else Behavior(status=429, body="", headers=SOON)
    )
    assert main(arguments(tmp_path, server.url, "--requests-per-minute", "300", "--concurrency", "4")) == 0
    seconds = [request.seconds for request in server.requests]
    assert len(seconds) == 8
    # Seven pauses of 0.2 s; a busy machine may see the first request late.
    assert seconds[-1] - seconds[0] > 1.0


@pytest.mark.parametrize("nonsense", ["8/7", "Assistant 1: 8", "", "8", "I would say 8 7", "11 5", "8 7 6"])
def test_nonsense_is_asked_for_again_and_a_score_then_counts(
    tmp_path: Path, served: Callable[[Script], JudgeServer], nonsense: str
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    server = served(lambda request: Behavior(text="6 8" if request.num_before == 2 else nonsense))
    assert main(arguments(tmp_path, server.url)) == 0
    assert len(server.requests) == 3
    assert score_of(tmp_path)["score"] == 75.0
    assert judgements(tmp_path)[0]["responses"] == [nonsense, nonsense, "6 8"]
    assert read(tmp_path)["usage"]["num_responses"] == 3


def test_nonsense_without_end_is_counted_and_reported(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=2, seeds=(10,))
    server = served(lambda request: Behavior(text="9/10" if "Ask 1." in request.prompt else "9 10"))
    assert main(arguments(tmp_path, server.url)) == 0
    score = score_of(tmp_path)
    assert (score["score"], score["num_judged"], score["num_rejected"]) == (90.0, 1, 1)
    assert "1 of 2 comparisons are rejected" in capsys.readouterr().err
    rejected = judgements(tmp_path)[1]
    assert (rejected["status"], rejected["scores"], len(rejected["responses"])) == ("rejected", None, 3)
    asked = len(server.requests)
    assert main(arguments(tmp_path, server.url)) == 0
    assert len(server.requests) == asked
    assert main(arguments(tmp_path, server.url, "--attempts", "4")) == 0
    assert len(server.requests) == asked + 1


@pytest.mark.parametrize(
    "body",
    ["", "no JSON", "[]", "{}", '{"choices": []}', '{"choices": [{}]}', '{"choices": [{"message": {"content": 7}}]}'],
)
def test_a_response_that_is_no_completion_is_not_kept(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str], body: str
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=2, seeds=(10,))
    server = served(lambda request: Behavior(body=body) if "Ask 1." in request.prompt else Behavior(text="5 5"))
    assert main(arguments(tmp_path, server.url)) == 1
    assert score_of(tmp_path)["num_unanswered"] == 1
    assert "1 of 2 comparisons are unanswered" in capsys.readouterr().err
    # It was not kept: the next call asks again.
    server.script = always(Behavior(text="6 5"))
    assert main(arguments(tmp_path, server.url)) == 0
    assert read(tmp_path)["usage"]["num_asked"] == 1


def test_a_silent_content_is_a_rejected_response(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    server = served(always(Behavior(text=None)))
    assert main(arguments(tmp_path, server.url)) == 0
    assert (score_of(tmp_path)["num_rejected"], score_of(tmp_path)["score"]) == (1, None)


def test_a_server_that_keeps_failing_is_given_up(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=50, seeds=(10,))
    server = served(always(Behavior(status=500, body="down", headers=SOON)))
    assert main(arguments(tmp_path, server.url, "--retries", "1", "--concurrency", "2")) == 2
    error = capsys.readouterr().err
    assert "5 requests in a row failed, the last with: " in error
    assert error.count("\n") == 1
    assert len(server.requests) < 20


@pytest.mark.parametrize("status", [400, 413, 422])
def test_prompts_that_the_server_refuses_do_not_end_the_session(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """Twenty in a row, more than a server may fail."""
    write_evaluation(tmp_path, name="kd", num_rows=22, seeds=(10,))
    body = json.dumps({"error": {"message": "too many tokens"}})

    def script(request: Request) -> Behavior:
        is_short = "Ask 0." in request.prompt or "Ask 21." in request.prompt
        return Behavior(text="8 10") if is_short else Behavior(status=status, body=body)

    server = served(script)
    assert main(arguments(tmp_path, server.url, "--concurrency", "2")) == 1
    score = score_of(tmp_path)
    assert (score["score"], score["num_judged"], score["num_unanswered"]) == (80.0, 2, 20)
    assert len(server.requests) == 22
    assert all("too many tokens" in line["reason"] for line in judgements(tmp_path)[1:21])
    assert "20 of 22 comparisons are unanswered, such as: Error code: " in capsys.readouterr().err


def test_refused_prompts_do_not_hide_that_the_server_fails(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=30, seeds=(10,))

    def script(request: Request) -> Behavior:
        return Behavior(status=400 if len(server.requests) % 2 else 500, body="no", headers=SOON)

    server = served(script)
    assert main(arguments(tmp_path, server.url, "--retries", "0", "--concurrency", "1")) == 2
    assert "5 requests in a row failed, the last with: " in capsys.readouterr().err
    assert len(server.requests) == 10


def test_responses_before_a_failure_are_counted_and_written(
    tmp_path: Path, served: Callable[[Script], JudgeServer]
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    trouble = Behavior(status=500, body="down", headers=SOON)
    server = served(lambda request: trouble if request.num_before else Behavior(text="8/10"))
    prices = ["--price-input", "10", "--price-output", "30"]
    assert main(arguments(tmp_path, server.url, "--retries", "0", *prices)) == 1
    (judgement,) = judgements(tmp_path)
    assert (judgement["status"], judgement["responses"]) == ("unanswered", ["8/10"])
    usage = read(tmp_path)["usage"]
    assert (usage["num_asked"], usage["num_responses"], usage["input_tokens"], usage["output_tokens"]) == (
        1,
        1,
        100,
        20,
    )
    assert usage["cost"] == pytest.approx(100 * 10e-6 + 20 * 30e-6)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_ends_it_at_once_and_the_key_stays_hidden(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str], status: int
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=50, seeds=(10,))

    def script(request: Request) -> Behavior:
        """As OpenAI refuses it: the client shows this message only."""
        body = json.dumps({"error": {"message": f"no: {request.authorization}"}})
        return Behavior(status=status, body=body)

    server = served(script)
    assert main(arguments(tmp_path, server.url, "--concurrency", "2")) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {server.url}: Error code: {status}")
    assert "no: Bearer [key]" in captured.err
    assert captured.err.endswith("; check --base-url, --judge and the key, then run again\n")
    assert KEY not in captured.err + captured.out
    assert len(server.requests) <= 4


def test_the_key_is_in_no_output_and_no_file(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    """Even if the server sends it back, and the client is told to log everything."""
    write_evaluation(tmp_path, name="kd", num_rows=3, seeds=(10,))

    def script(request: Request) -> Behavior:
        if "Ask 0." in request.prompt:
            return Behavior(text=f"5 5\n{request.authorization}")
        return Behavior(text=request.authorization) if "Ask 1." in request.prompt else Behavior(body=KEY)

    done = subprocess.run(
        command(tmp_path, served(script).url),
        cwd=ROOT,
        env=command_environment() | {"OPENAI_LOG": "debug"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "HTTP" in done.stderr
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert sum("Bearer [key]" in text for text in kept) >= 2
    assert not [text for text in [*kept, done.stdout, done.stderr] if KEY in text]


def test_a_word_in_place_of_a_key_is_left_in_responses_and_taken_out_of_messages(
    tmp_path: Path,
    served: Callable[[Script], JudgeServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Servers without keys are given any; "1" is also a part of scores and of error codes."""
    monkeypatch.setenv("OPENAI_API_KEY", "1")
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    server = served(always(Behavior(text="10 8\n1st is better")))
    assert main(arguments(tmp_path, server.url)) == 0
    assert judgements(tmp_path)[0]["responses"] == ["10 8\n1st is better"]
    assert score_of(tmp_path)["score"] == 125.0
    server.script = lambda request: Behavior(
        status=401, body=json.dumps({"error": {"message": f"no: {request.authorization}"}})
    )
    assert main(arguments(tmp_path, server.url, "--temperature", "0")) == 2
    message = capsys.readouterr().err
    assert "Error code: 401" in message and "no: Bearer [key]" in message


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["int", "kill"])
def test_an_interrupted_call_resumes(
    tmp_path: Path, served: Callable[[Script], JudgeServer], number: signal.Signals, code: int
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=8, seeds=(10,))

    def script(request: Request) -> Behavior:
        """Responds to the first four requests only."""
        return Behavior(text="5 10", wait_seconds=0.0 if len(server.requests) <= 4 else 600.0)

    server = served(script)
    process = subprocess.Popen(
        command(tmp_path, server.url, "--concurrency", "2", "--timeout-seconds", "100"),
        cwd=ROOT,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As in a terminal: tests that run in the background of a shell pass on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(server.requests) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert error.decode() == "interrupted; the judge's responses so far are kept, the same command resumes\n"
    assert not (tmp_path / "out" / "judge.json").exists()
    server.script = always(Behavior(text="5 10"))
    assert main(arguments(tmp_path, server.url)) == 0
    assert len(server.requests) == 6 + 4
    assert score_of(tmp_path)["num_judged"] == 8
