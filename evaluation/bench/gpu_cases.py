"""What `python -m evaluation.bench gpu` measures, in processes of their own: cases, one after another.

  python -m evaluation.bench.gpu_cases RESULTS.json DIRECTORY '[[part, name, variant, arguments], …]'

Each rank runs this command. A result is in RESULTS.json as soon as it is known.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import load_file

from evaluation.bench.bench import BenchConfig, write_run
from evaluation.bench.decoding import graphs_of, measure_decoding, prompts_and_lengths
from evaluation.bench.inputs import random_model, write_inputs
from evaluation.bench.loss import LOSS, measure_loss
from evaluation.bench.memory import account_of
from evaluation.bench.presets import PRESETS, Case
from evaluation.bench.steps import measure_steps_on
from evaluation.results import read_json, write_json
from kd.config.schema import Config
from kd.distributed import World, exit_with_user_error
from kd.distributed.session import joined_world
from kd.errors import UserError
from kd.files import write_atomically
from kd.methods import load_config
from kd.models.causal_lm import CausalLM
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings
from kd.train.assemble import run_on
from kd.train.metric_log import read_metrics

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
"""Largest relative difference of a loss, or of a gradient's norm, to fp32 on the CPU."""
COMPARED = ("student_kd", "prompt_kd", "prompt_regularization", "grad_norm", "prompt_grad_norm")
RESPONSES = "data.responses={models}/responses.jsonl"
# Under SGD, a wrong scale of an update shows in the losses of the second step.
_LARGE_UPDATES = (
    *("optimizer.name=sgd", "optimizer.learning_rate=1.0", "optimizer.grad_clip=0", "prompt.learning_rate=1.0"),
    "schedule.steps=2",
)
_ADAMW = ("optimizer.learning_rate=1.0e-2", "prompt.learning_rate=1.0e-2")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a case runs."""

    results: Path
    directory: Path
    """For checkpoints and runs."""
    world: World


def store(results: Path, part: str, name: str, variant: str, entry: Mapping[str, Any]) -> None:
    """Write the entry of one case into the file of results."""
    values = read_json(results, advice="delete it")
    values["parts"].setdefault(part, {}).setdefault(name, {})[variant] = entry
    write_json(results, values)


def run_reference(place: Place, *, method: str) -> dict[str, Any]:
    """Metrics of two steps in fp32 without ZeRO, on the CPU."""
    return {"records": _train(_tiny_run(place, method, "fp32", 0, RESPONSES, *_LARGE_UPDATES), place)}


def compare_steps(place: Place, *, method: str, dtype: str, zero: int) -> dict[str, Any]:
    """The same two steps on the device: the largest relative difference of each metric to the reference."""
    parts = read_json(place.results, advice="delete it")["parts"]
    expected = parts["reference"][method]["fp32"]["result"]["records"]
    differences: dict[str, float] = {}
    records = _train(_tiny_run(place, method, dtype, zero, RESPONSES, *_LARGE_UPDATES), place)
    for record, reference in zip(records, expected, strict=True):
        # A norm that overflows in fp16 is not in the record.
        for name in (name for name in COMPARED if name in record and name in reference):
            difference = abs(record[name] - reference[name]) / abs(reference[name])
            differences[name] = max(differences.get(name, 0.0), difference)
    passed = max(differences.values()) <= TOLERANCES[dtype]
    return {
        "passed": passed,
        "differences": differences,
        "tolerance": TOLERANCES[dtype],
        "skipped_updates": _skipped(records),
    }


def train_briefly(place: Place, *, method: str, dtype: str, fields: list[str]) -> dict[str, Any]:
    """Three steps under ZeRO-3: a loss that is not finite is an error, and the weights must change."""
    config = _tiny_run(place, method, dtype, 3, "schedule.steps=3", *_ADAMW, *fields)
    records = _train(config, place)
    change = _largest_difference(Path(config.model.student), Path(config.run.dir) / "final")
    loss = "student_kd" if "student_kd" in records[0] else "cross_entropy"
    return {
        "passed": change > 1e-3,
        "losses": [record[loss] for record in records],
        "largest_change": change,
        "skipped_updates": _skipped(records),
    }


def resume(place: Place, *, method: str, dtype: str) -> dict[str, Any]:
    """Four steps, then the last two again from the checkpoint of the second: the largest difference of a weight."""
    config = _tiny_run(place, method, dtype, 3, "schedule.steps=4", "checkpoints.every=2", *_ADAMW)
    _train(config, place)
    run_dir = Path(config.run.dir)
    (run_dir / "final").rename(run_dir / "straight")
    shutil.rmtree(run_dir / "checkpoints" / "step-4")
    _train(config, place)
    return {"largest_difference": _largest_difference(run_dir / "straight", run_dir / "final")}


def measure_step(place: Place, *, preset: str, method: str, zero: int, steps: int) -> dict[str, Any]:
    """Cost of a step by phase, and its peak memory, on all ranks."""
    case, out = Case(method=method, zero_stage=zero), place.directory / f"{preset}-{method}-{zero}"
    if place.world.is_main:
        write_run(case, BenchConfig(preset=preset, steps=steps), out=out, num_ranks=place.world.size)
        write_inputs(out / "models", PRESETS[preset], device=place.world.device)
    place.world.barrier()
    if place.world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = load_config(case.file(out))
    cost = measure_steps_on(place.world, case, config, steps)
    planned = account_of(config, world=place.world).peak
    if place.world.is_main:
        # The next case's must fit on the disk.
        shutil.rmtree(out)
    return asdict(cost) | {"num_ranks": place.world.size, "planned_bytes": planned}


def compare_graphs(place: Place, *, preset: str) -> dict[str, Any]:
    """Responses of random weights in fp32 with fixed shapes, as CUDA graphs on a GPU, and without: how many differ."""
    device = place.world.device
    view = CausalLM.of(random_model(PRESETS[preset], "student", device=device).float())
    prompts, _ = prompts_and_lengths(PRESETS[preset], num_prompts=16, device=device)
    vocabulary = view.model.config.vocab_size
    settings = DecodingSettings(max_new_tokens=32, vocabulary_size=vocabulary, end_ids=(vocabulary - 1,))
    with torch.no_grad():
        plain, repeated = (
            decode(view, prompts, settings=settings, streams=row_streams(seed=0, step=0), capture=capture)
            for capture in (None, graphs_of(device))
        )
    different = sum(one.token_ids != other.token_ids for one, other in zip(plain, repeated, strict=True))
    return {"passed": not different, "responses": len(plain), "different": different}


def compare_decoders(_: Place, *, preset: str, prompts: int) -> dict[str, Any]:
    """Tokens per second of each decoder, and the roofline."""
    cost = measure_decoding(PRESETS[preset], num_prompts=prompts)
    return asdict(cost) | {"tokens_per_second": cost.tokens_per_second}


def measure_one_loss(_: Place, *, kind: str, shape: str) -> dict[str, Any]:
    """Time and memory of one loss with its gradients; `shape` are words for the command `loss`."""
    return asdict(measure_loss(kind, LOSS.read(shape.split())))


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "reference": run_reference,
    "two steps": compare_steps,
    "training": train_briefly,
    "resume": resume,
    "graphs": compare_graphs,
    "step": measure_step,
    "decoding": compare_decoders,
    "loss": measure_one_loss,
}


def _tiny_run(place: Place, method: str, dtype: str, zero: int, *fields: str) -> Config:
    """The configuration of a new run of tiny models, which all runs of a visit start from."""
    case, out, preset = Case(method=method, zero_stage=zero), place.directory / "check", PRESETS["check"]
    models = out / "models"
    if not (models / "responses.jsonl").exists():
        write_inputs(models, preset, device=torch.device("cpu"))
        rows = [json.loads(line) for line in (models / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        responses = [{"prompt": row["instruction"], "response": row["output"]} for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in responses)
        write_atomically(models / "responses.jsonl", text)
    values = preset.run_config(case, num_steps=1, num_ranks=1, out=out)
    write_atomically(case.file(out), yaml.safe_dump(values))
    run_dir = out / "runs" / f"{len(list(out.glob('runs/*')))}"
    own = [f"model.dtype={dtype}", f"run.dir={run_dir}"]
    return load_config(case.file(out), overrides=[*own, *(field.replace("{models}", str(models)) for field in fields)])


def _train(config: Config, place: Place) -> list[dict[str, Any]]:
    run_on(place.world, config, command=sys.argv)
    return read_metrics(Path(config.run.dir))


def _skipped(records: list[dict[str, Any]]) -> int:
    """Updates that overflowed in fp16: of the student and of the prompt."""
    return int(sum(records[-1].get(name, 0) for name in ("skipped_updates", "prompt_skipped_updates")))


def _largest_difference(first: Path, second: Path) -> float:
    """Of any weight in two directories of checkpoints."""
    ours, theirs = (load_file(directory / "model.safetensors") for directory in (first, second))
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def main() -> int:
    """Run the cases of the command line, and return the exit code."""
    results, directory, cases = sys.argv[1:]
    transformers.utils.logging.disable_progress_bar()
    try:
        with joined_world() as world:
            place = Place(results=Path(results), directory=Path(directory), world=world)
            for part, name, variant, arguments in json.loads(cases):
                start = time.perf_counter()
                result = PARTS[part](place, **arguments)
                seconds = time.perf_counter() - start
                if world.is_main:
                    store(place.results, part, name, variant, {"state": "done", "seconds": seconds, "result": result})
    except UserError as error:
        return exit_with_user_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
