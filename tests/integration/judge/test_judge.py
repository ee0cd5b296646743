"""The judge and a server: scores, files, costs, and the requests it gets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.generations import generations_file
from evaluation.judge.__main__ import main
from evaluation.judge.comparisons import PROMPT
from tests.integration.judge.judged import KEY, always, arguments, by_seed, judgements, read, score_of, write_evaluation
from tests.judge_server import Behavior, JudgeServer, Request, Script


def test_scores_files_and_the_request_itself(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    write_evaluation(tmp_path, name="kd")
    server = served(by_seed)
    assert main(arguments(tmp_path, server.url, "--price-input", "10", "--price-output", "30")) == 0
    score = score_of(tmp_path)
    assert score["per_seed"] == {"10": 87.5, "20": 80.0}
    assert score["score"] == pytest.approx(83.75)
    assert score["standard_error"] == pytest.approx(3.75)
    assert score["pooled"]["value"] == pytest.approx(100 * (3 * 7 + 3 * 4) / (3 * 8 + 3 * 5))
    assert score["by_order"] == {"model_first": score["pooled"]["value"]}
    assert (score["num_judged"], score["num_rejected"], score["num_unanswered"]) == (6, 0, 0)
    usage = read(tmp_path)["usage"]
    assert (usage["num_asked"], usage["num_responses"], usage["input_tokens"], usage["output_tokens"]) == (
        6,
        6,
        600,
        120,
    )
    assert usage["cost"] == pytest.approx(600 * 10e-6 + 120 * 30e-6)
    request = next(one for one in server.requests if "kd says 1 20" in one.prompt)
    assert request.authorization == f"Bearer {KEY}"
    assert (request.content["model"], request.content["temperature"]) == ("gpt-4", 0.7)
    assert "max_tokens" not in request.content
    assert request.prompt == PROMPT.format(instruction="Ask 1.", input="{it}", first="kd says 1 20", second="truth 1")
    assert len(request.content["messages"]) == 1
    assert [(line["seed"], line["row"]) for line in judgements(tmp_path)] == [
        (s, r) for s in (10, 20) for r in range(3)
    ]


def test_a_second_call_pays_nothing(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    write_evaluation(tmp_path, name="kd")
    server = served(by_seed)
    assert main(arguments(tmp_path, server.url)) == 0
    before = read(tmp_path)
    assert main(arguments(tmp_path, server.url)) == 0
    assert len(server.requests) == 6
    assert read(tmp_path)["usage"].pop("num_asked") == 0
    assert read(tmp_path)["scores"] == before["scores"]
    # Another judge, another temperature and another limit are other requests.
    for extra in (["--judge", "gpt-5"], ["--temperature", "0"], ["--max-response-tokens", "16"]):
        asked = len(server.requests)
        assert main(arguments(tmp_path, server.url, *extra)) == 0
        assert len(server.requests) == asked + 6
    assert server.requests[-1].content["max_tokens"] == 16


def test_equal_prompts_are_asked_once(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    out = write_evaluation(tmp_path, name="kd")
    first, second = (generations_file(out, benchmark="dolly", seed=seed) for seed in (10, 20))
    second.write_text(first.read_text())
    server = served(always(Behavior(text="5 5")))
    assert main(arguments(tmp_path, server.url)) == 0
    assert len(server.requests) == 3
    assert score_of(tmp_path)["num_judged"] == 6


def test_scores_follow_exchanged_positions(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))

    def script(request: Request) -> Behavior:
        """Likes the model a little more where it stands first."""
        model_first = "### Assistant 1:\nkd says" in request.prompt
        return Behavior(text="8 10" if model_first else "10 6")

    server = served(script)
    assert main(arguments(tmp_path, server.url, "--order", "both")) == 0
    assert score_of(tmp_path)["by_order"] == {"model_first": 80.0, "reference_first": 60.0}
    assert score_of(tmp_path)["score"] == 70.0
    assert main(arguments(tmp_path, server.url, "--order", "reference_first")) == 0
    assert score_of(tmp_path)["score"] == 60.0
    assert len(server.requests) == 2


def test_a_dry_run_asks_nothing_and_needs_no_key(
    tmp_path: Path,
    served: Callable[[Script], JudgeServer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_evaluation(tmp_path, name="kd")
    server = served(by_seed)
    monkeypatch.delenv("OPENAI_API_KEY")
    prices = ["--price-input", "1000", "--price-output", "1000"]
    assert main(arguments(tmp_path, server.url, "--dry-run", *prices)) == 0
    output = capsys.readouterr().out
    assert "6 comparisons, 6 different prompts; to ask: 6 requests, about " in output
    assert "1200 output tokens: about $" in output
    assert not server.requests and not (tmp_path / "out").exists()
    assert main(arguments(tmp_path, server.url)) == 2
    assert "the environment variable OPENAI_API_KEY is not set" in capsys.readouterr().err
    assert main(arguments(tmp_path, server.url, *prices, "--max-cost", "1")) == 2
    assert "more than --max-cost 1; raise it, or judge fewer" in capsys.readouterr().err
    assert not server.requests


def test_cached_responses_cost_nothing_in_the_estimate(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, name="kd")
    server = served(by_seed)
    assert main(arguments(tmp_path, server.url, "--seeds", "20", "--rows", "2")) == 0
    assert len(server.requests) == 2
    assert main(arguments(tmp_path, server.url, "--dry-run")) == 0
    assert "to ask: 4 requests" in capsys.readouterr().out


def test_no_more_requests_at_a_time_than_asked_for(tmp_path: Path, served: Callable[[Script], JudgeServer]) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=12, seeds=(10,))
    server = served(always(Behavior(text="5 5", wait_seconds=0.05)))
    assert main(arguments(tmp_path, server.url, "--concurrency", "3")) == 0
    assert server.most_at_once == 3


def test_mistakes_are_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_evaluation(tmp_path, name="kd", num_rows=1)
    url = "http://127.0.0.1:9/v1"
    other = tmp_path / "other.jsonl"
    other.write_text('{"instruction": "Ask 0.", "output": "another truth"}\n')
    (tmp_path / "empty").mkdir()
    cases = [
        (["--benchmark", "vicuna"], f"{out}: has no benchmark vicuna, it has dolly"),
        (["--data", f"dolly={other}"], f"row 0 is not that of {other}"),
        (["--data", f"doly={other}"], "--data doly=…: judged are dolly; give the name of one"),
        (["--seeds", "30"], "seed-30.jsonl: cannot be read"),
        (["--evaluation", f"b={tmp_path / 'empty'}"], "results.json: cannot be read"),
        (["--evaluation", f"kd={out}"], "--evaluation: the name kd is given twice"),
        (["--price-input", "1"], "belong together"),
        (["--max-cost", "1"], "price.max_cost needs price.input"),
        (["--base-url", "https://user:secret@host/v1"], "leave out password and query"),
        (["--base-url", "https://host/v1?api-key=secret"], "leave out password and query"),
        (["--base-url", "host/v1"], "expected http://"),
        (["--timeout-seconds", "0"], "server.timeout_seconds is 0; input should be greater than 0"),
    ]
    for extra, expected in cases:
        capsys.readouterr()
        assert main(arguments(tmp_path, url, *extra)) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        assert expected in message
        assert "secret" not in message


def test_names_stand_whole_in_the_table_of_a_log(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    names = [f"student-of-{letter * 100}" for letter in "ab"]
    server = served(always(Behavior(text="5 5")))
    extra = [word for name in names for word in ("--evaluation", f"{name}={out}")]
    assert main(arguments(tmp_path, server.url, *extra)) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_a_broken_file_of_the_cache_is_named(
    tmp_path: Path, served: Callable[[Script], JudgeServer], capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, name="kd", num_rows=1, seeds=(10,))
    server = served(always(Behavior(text="5 5")))
    assert main(arguments(tmp_path, server.url)) == 0
    (path,) = (tmp_path / "out" / "cache").rglob("*.json")
    path.write_text("{")
    assert main(arguments(tmp_path, server.url)) == 2
    assert f"{path}: is no response of a judge; delete the file to ask again" in capsys.readouterr().err
