"""evaluate.py from its command line to its files, with a tiny model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml
from transformers import AutoModelForCausalLM

from evaluation.generations import sample_responses
from evaluation.rouge_l import mean_scores
from evaluation.scoring import COMMAND, evaluate_model, main
from kd.distributed import World
from tests.integration.evaluated import ROWS, arguments, contents, read_results, save_prompt, write_rows
from tests.integration.tiny_run import ROOT, launcher_environment
from tests.run_on_ranks import Ranks


@pytest.mark.usefixtures("alone")
def test_files_and_keys(model: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    second = write_rows(tmp_path / "second.jsonl", ROWS[:1])
    assert main(arguments(model, benchmark, out, "--benchmark", f"more={second}", "--top-k", "5")) == 0
    output = capsys.readouterr()
    assert "ROUGE-L" in output.out
    assert f"dropped 1 of 5 rows whose prompt is longer than 100 tokens: {benchmark}:5" in output.err
    results = read_results(out)
    assert results["model"] == str(model)
    assert results["versions"]["transformers"]
    assert list(results["benchmarks"]) == ["test", "more"]
    test = results["benchmarks"]["test"]
    assert (test["num_samples"], test["source_rows"], test["dropped_rows"], test["truncated_prompts"]) == (4, 5, 1, 0)
    assert test["response_tokens"]["longest"] <= 8
    assert test["decoding"] == {
        "max_new_tokens": 8,
        "max_prompt_tokens": 100,
        "template": "alpaca",
        "overlong": "drop",
        "greedy": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 5,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }
    for seed in ("10", "20"):
        path = out / "generations" / "test" / f"seed-{seed}.jsonl"
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        assert [line["row"] for line in lines] == [0, 1, 2, 3]
        assert lines[0]["references"] == ["Paris", "the capital is Paris"]
        assert lines[0]["prompt"].endswith("### Instruction:\nName the capital.\n\n### Response:\n")
        assert all(isinstance(line["response"], str) for line in lines)
        again = mean_scores(path)[0]
        for name in ("rougeL", "exact_match"):
            assert test[name]["per_seed"][seed] == pytest.approx(again[name])
    values = list(test["rougeL"]["per_seed"].values())
    assert test["rougeL"]["mean"] == pytest.approx(sum(values) / 2)
    assert test["rougeL"]["standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)


@pytest.mark.usefixtures("alone")
def test_options_of_decoding_change_the_responses(model: Path, benchmark: Path, tmp_path: Path) -> None:
    prompt = save_prompt(tmp_path / "soft_prompt.safetensors", width=32)
    changes = {
        "plain": [],
        "ngrams": ["--no-repeat-ngram-size=1"],
        "penalty": ["--repetition-penalty=1000"],
        "min_p": ["--min-p=0.999"],
        "greedy": ["--greedy"],
        "prompted": ["--soft-prompt", str(prompt)],
    }
    responses = {}
    for name, extra in changes.items():
        assert main(arguments(model, benchmark, tmp_path / name, *extra)) == 0
        responses[name] = contents(tmp_path / name)
    assert all(responses["plain"] != found for name, found in responses.items() if name != "plain")
    # Greedy responses agree for all seeds.
    assert [len(set(responses[name].values())) for name in ("plain", "greedy")] == [2, 1]
    assert read_results(tmp_path / "prompted")["soft_prompt"] == str(prompt)
    decoding = read_results(tmp_path / "penalty")["benchmarks"]["test"]["decoding"]
    assert (decoding["repetition_penalty"], decoding["greedy"]) == (1000, False)


def evaluate_on_ranks(world: World, *, argv: list[str]) -> None:
    evaluate_model(COMMAND.read(argv), world=world)


def test_one_and_two_ranks_write_the_same(
    ranks: Callable[[int], Ranks], model: Path, benchmark: Path, tmp_path: Path
) -> None:
    # About two rows in a batch, so that both ranks have some.
    argv = ["--max-batch-tokens", "200"]
    for size in (1, 2):
        ranks(size).run(evaluate_on_ranks, argv=arguments(model, benchmark, tmp_path / str(size), *argv))
    assert contents(tmp_path / "1") == contents(tmp_path / "2") != {}
    one, two = read_results(tmp_path / "1"), read_results(tmp_path / "2")
    assert (one.pop("num_ranks"), two.pop("num_ranks")) == (1, 2)
    assert one == two


@pytest.mark.usefixtures("alone")
def test_truncated_prompts_are_sampled_and_counted(model: Path, benchmark: Path, tmp_path: Path) -> None:
    assert main(arguments(model, benchmark, tmp_path / "out", "--overlong", "truncate")) == 0
    test = read_results(tmp_path / "out")["benchmarks"]["test"]
    assert (test["num_samples"], test["dropped_rows"], test["truncated_prompts"]) == (5, 0, 1)
    assert test["decoding"]["overlong"] == "truncate"


@pytest.mark.usefixtures("alone")
def test_finished_seeds_are_not_sampled_again(
    model: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, benchmark, out, "--seeds", "10,20,30")) == 0
    before, results = contents(out), read_results(out)
    for seed in (20, 30):
        (out / "generations" / "test" / f"seed-{seed}.jsonl").unlink()
    sampled = []

    def killed(*args: Any, seed: int, **settings: Any) -> Any:
        """Ends the process at the last seed, as a kill would."""
        sampled.append(seed)
        if seed == 30:
            raise KeyboardInterrupt
        return sample_responses(*args, seed=seed, **settings)

    monkeypatch.setattr("evaluation.scoring.sample_responses", killed)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(model, benchmark, out, "--seeds", "10,20,30"))
    monkeypatch.setattr("evaluation.scoring.sample_responses", sample_responses)
    assert sampled == [20, 30]
    assert main(arguments(model, benchmark, out, "--seeds", "10,20,30")) == 0
    assert contents(out) == before
    assert read_results(out) == results


@pytest.mark.usefixtures("alone")
def test_a_metric_can_be_added_to_finished_seeds(
    model: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, benchmark, out)) == 0
    before = read_results(out)["benchmarks"]["test"]
    monkeypatch.setattr("evaluation.scoring.sample_responses", None)
    for pattern, expected in (("(?s).+", 0.0), ("^", 100.0)):
        extra = ["--metrics", "rougeL", "accuracy", "--answer-pattern", pattern]
        assert main(arguments(model, benchmark, out, *extra)) == 0
        found = read_results(out)["benchmarks"]["test"]
        assert (found["accuracy"]["mean"], found["rougeL"]) == (expected, before["rougeL"])
        assert "exact_match" not in found
    first = json.loads((out / "generations" / "test" / "seed-10.jsonl").read_text().split("\n")[0])
    assert (first["accuracy"], first["exact_match"]) == (100.0, False)


@pytest.mark.usefixtures("alone")
def test_python_api_returns_the_results_of_a_run(model: Path, benchmark: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "best")
    config = {
        "method": "sft",
        "model": {"student": "s"},
        "data": {"train": "t", "max_prompt_tokens": 100},
        "generation": {"max_new_tokens": 8},
        "run": {"dir": str(run)},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    # In a process of its own: it stays in the process group until it ends.
    program = (
        "import json, sys; from evaluation import evaluate; run, rows, out = sys.argv[1:];"
        "results = evaluate(run=run, benchmarks={'test': rows}, out=out, overrides=['generation.seeds=[10,20]']);"
        "print(json.dumps(results))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(run), str(benchmark), str(tmp_path / "api")],
        cwd=ROOT,
        env=launcher_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout.splitlines()[-1])
    assert results == read_results(tmp_path / "api")
    assert results["model"] == str(run / "best")
    assert main(arguments(model, benchmark, tmp_path / "command")) == 0
    assert contents(tmp_path / "api") == contents(tmp_path / "command")


@pytest.mark.usefixtures("alone")
def test_results_of_other_benchmarks_stay(
    model: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, benchmark, out)) == 0
    first = read_results(out)["benchmarks"]["test"]
    other = ["--model", str(model), "--benchmark", f"other={benchmark}", "--out", str(out), "--max-new-tokens", "8"]
    assert main([*other, "--seeds", "10,20"]) == 0
    assert read_results(out)["benchmarks"].keys() == {"test", "other"}
    assert read_results(out)["benchmarks"]["test"] == first
    before = contents(out)
    for extra in (["--seeds", "10"], ["--seeds", "10,20", "--dtype", "bf16"]):
        assert main([*other, *extra]) == 2
        assert "has test of another model or other seeds, which would be lost" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.usefixtures("alone")
def test_references_without_a_token_of_rouge_l_are_reported_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": "Name the capital.", "output": text} for text in ("北京", "Paris")]
    benchmark = write_rows(tmp_path / "rows.jsonl", rows)
    line = "test: rougeL reads Latin letters and digits only, and 1 of 2 rows have none in their references"
    assert main(arguments(model, benchmark, tmp_path / "both", "--metrics", "rougeL", "rougeL_unicode")) == 0
    assert capsys.readouterr().err.count(line) == 1
    assert set(read_results(tmp_path / "both")["benchmarks"]["test"]) >= {"rougeL", "rougeL_unicode"}
    assert main(arguments(model, benchmark, tmp_path / "unicode", "--metrics", "rougeL_unicode")) == 0
    assert "rougeL reads" not in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_an_adapters_folder_is_evaluated_as_its_merged_model(
    model: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    adapted: Any = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    shutil.copytree(model, tmp_path / "merged")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    found = {}
    for name, place in {"adapter": tmp_path / "adapter", "merged": tmp_path / "merged", "base": model}.items():
        assert main(arguments(place, benchmark, tmp_path / f"out-{name}", "--greedy")) == 0
        found[name] = contents(tmp_path / f"out-{name}")
    assert found["adapter"] == found["merged"] != found["base"]
    line = f"{tmp_path / 'adapter'} is a LoRA adapter, merged into the weights of {model}"
    assert capsys.readouterr().err.count(line) == 1
    # Its base belongs to what was evaluated.
    (model / "model.safetensors").touch()
    assert main(arguments(tmp_path / "adapter", benchmark, tmp_path / "out-adapter", "--greedy")) == 2
    assert "was made with weights=" in capsys.readouterr().err
