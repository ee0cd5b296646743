"""Everything that a machine with GPUs can tell about this toolkit, in one call of a few minutes and without network:

  python -m evaluation.bench gpu --minutes 8

In this order: two training steps compared with the CPU, a few steps of every method and a resumed run, in fp32, bf16
and fp16; cost and peak memory of steps of GPT-2 and OPT, on all GPUs; decoding, with the memory's bandwidth as its
limit; the loss beside its GEMMs. All models are random. Each result is written at once to gpu_DEVICE.json, and a table
of all such files to gpu.md, between its markers. What the time limit cuts off is listed as not run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evaluation.bench.gpu_cases import RESPONSES, store
from evaluation.bench.gpu_table import write_tables
from evaluation.bench.loss import LOSSES
from evaluation.bench.presets import PRESETS, ROLES
from evaluation.bench.results import GIB, describe_machine, make_out
from evaluation.command import Command
from evaluation.results import read_json, write_json
from kd.config.fields import PositiveFloat, Section, option
from kd.distributed import free_port, on_gpu
from kd.errors import UserError
from kd.methods import METHODS

FIELDS = {
    "seqkd": [RESPONSES],
    "minillm": ["minillm.corpus=none", "minillm.rollouts=4"],
    "distillm": [
        # Rollouts from the first step on.
        "distillm.initial_threshold=1",
        *("data.validation={models}/rows.jsonl", "validation.rows=8", "validation.generate=false"),
    ],
}
"""What a method's short run sets beside what all of them do."""
NO_TIME = "not run: no time left"
START_SECONDS = 10
"""What a process needs before its first case."""
USABLE_SHARE = 0.75
"""Of the GPUs' memory, for weights and optimizer state; the rest is for activations and the KV cache."""
CaseWords = tuple[str, str, str, dict[str, Any]]
"""Part, name, variant, and arguments of the part's function in `evaluation.bench.gpu_cases`."""
_ERROR = re.compile(r"(?:\[rank\d+\]: )?(?:error: )?((?<=error: ).*|[\w.]*(?:Error|Exception|Interrupt)\b.*)")


@dataclass(frozen=True, kw_only=True)
class GPUConfig(Section):
    minutes: PositiveFloat = option(8.0, help="time limit; a process gets half of what is left, the last one all of it")
    resume: bool = option(False, help="keep the results that the file has, and run only what is missing or failed")
    dry_run: bool = option(False, help="run everything in tiny sizes on the CPU: whether it works, not what it costs")
    out: Path | None = option(None, help="directory of gpu_DEVICE.json and gpu.md; null for docs, or runs/ if dry")


GPU = Command(config=GPUConfig, program="python -m evaluation.bench gpu", description=__doc__)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that share a process, unless one of them ends it."""

    cases: Sequence[CaseWords]
    num_ranks: int = 1
    state_bytes: int = 0
    """Weights and optimizer state on all ranks."""
    variables: dict[str, str] = field(default_factory=dict)


def run_gpu(config: GPUConfig) -> None:
    """Measure within the time limit.

    Raises:
        UserError: there is no GPU, or --out cannot be written.
    """
    end = time.monotonic() + 60 * config.minutes
    if not (on_gpu() or config.dry_run):
        raise UserError("no GPU found (or DS_ACCELERATOR=cpu is set); --dry-run tries everything on the CPU")
    out = config.out or (make_out(None, command="gpu") if config.dry_run else Path("docs"))
    device = "cpu" if config.dry_run else torch.cuda.get_device_name()
    results = out / f"gpu_{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    parts = read_json(results, advice="delete it")["parts"] if config.resume and results.exists() else {}
    machine = describe_machine(num_ranks=max(1, torch.cuda.device_count()))
    write_json(results, {"device": device, "machine": machine, "parts": parts})
    groups = dry_groups() if config.dry_run else gpu_groups()
    with tempfile.TemporaryDirectory() as directory:
        for index, group in enumerate(groups):
            left = end - time.monotonic()
            limit = left if index == len(groups) - 1 else left / 2
            measure(group, results, directory=Path(directory), limit=limit)
            tables = write_tables(out)
    print(tables, f"written to {results} and {out / 'gpu.md'}", sep="\n")


def gpu_groups() -> list[Group]:
    """What one visit measures, the most important first."""
    num_gpus = torch.cuda.device_count()
    losses = "--positions 8192 --vocabulary 151936 --widths 2048,4096 --dtype bf16"
    steps = [
        ("gpu-gpt2", "promptkd", 0),
        ("gpu-gpt2", "promptkd", 3),
        ("gpu-gpt2", "gkd", 0),
        ("gpu-opt", "promptkd", 3),
    ]
    return [
        *_correctness(("fp32", "bf16", "fp16")),
        *(
            Group(cases=[_step(*words, steps=3)], num_ranks=num_gpus, state_bytes=_state_bytes(words[0]))
            for words in steps
        ),
        Group(cases=[_decoding("gpu-gpt2", prompts=64), _decoding("gpu-opt", prompts=64), *_losses(losses)]),
    ]


def dry_groups() -> list[Group]:
    """One case of every kind in one process, because its start takes longest."""
    first = [case for group in _correctness(("bf16",)) for case in group.cases]
    last = [_step("tiny", "promptkd", 0, steps=1), _decoding("tiny", prompts=1)]
    cases = [*first, *last, *_losses("--positions 64 --vocabulary 512 --widths 16,32 --dtype bf16")]
    return [Group(cases=cases, variables={"DS_ACCELERATOR": "cpu"})]


def _correctness(dtypes: Sequence[str]) -> Iterator[Group]:
    compared = ("promptkd", "gkd")
    reference = [("reference", method, "fp32", {"method": method}) for method in compared]
    yield Group(cases=reference, variables={"DS_ACCELERATOR": "cpu"})
    yield Group(
        cases=[
            *(
                ("two steps", f"{method}, ZeRO-{zero}", dtype, {"method": method, "dtype": dtype, "zero": zero})
                for method in compared
                for zero in (0, 3)
                for dtype in dtypes
            ),
            *(
                ("training", method, dtype, {"method": method, "dtype": dtype, "fields": FIELDS.get(method, [])})
                for method in METHODS
                for dtype in dtypes
            ),
            ("resume", "promptkd", "bf16", {"method": "promptkd", "dtype": "bf16"}),
            ("graphs", "tiny", "fp32", {"preset": "tiny"}),
        ]
    )


def _step(preset: str, method: str, zero: int, *, steps: int) -> CaseWords:
    arguments = {"preset": preset, "method": method, "zero": zero, "steps": steps}
    return "step", f"{preset}, {method}, ZeRO-{zero}", PRESETS[preset].dtype, arguments


def _decoding(preset: str, *, prompts: int) -> CaseWords:
    return "decoding", f"{preset}, {prompts} prompts", PRESETS[preset].dtype, {"preset": preset, "prompts": prompts}


def _losses(shape: str) -> list[CaseWords]:
    return [("loss", shape, kind, {"kind": kind, "shape": shape}) for kind in LOSSES]


def _state_bytes(preset: str) -> int:
    """Bytes of both models in bf16, and of the student's gradient, master weights and moments in fp32."""
    with torch.device("meta"):
        models = [AutoModelForCausalLM.from_config(PRESETS[preset].model_config(role)) for role in ROLES]
    teacher, student = (model.num_parameters() for model in models)
    return int(2 * teacher + 18 * student)


def measure(group: Group, results: Path, *, directory: Path, limit: float) -> None:
    """Run the cases without a result, for at most `limit` seconds; each gets an entry in `results`."""
    end = time.monotonic() + limit
    memory = sum(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
    parts = read_json(results, advice="delete it")["parts"]
    waiting = [case for case in group.cases if not _is_done(case, parts)]
    while waiting:
        left = end - time.monotonic()
        if group.state_bytes > USABLE_SHARE * memory:
            needed = f"not run: weights and optimizer state take {group.state_bytes / GIB:.0f} GiB"
            entries = [f"{needed}, the GPUs have {memory / GIB:.0f} GiB"] * len(waiting)
        elif left < START_SECONDS:
            entries = [NO_TIME] * len(waiting)
        else:
            print(f"{len(waiting)} cases within {left:.0f} s, from {', '.join(waiting[0][:3])}", flush=True)
            problem = _run(group, waiting, results, directory=directory, limit=left)
            parts = read_json(results, advice="delete it")["parts"]
            waiting = [case for case in waiting if not _is_done(case, parts)]
            entries = [problem] if waiting else []
        for (part, name, variant, _), entry in zip(waiting, entries, strict=False):
            print(f"{part}, {name}, {variant}: {entry}", flush=True)
            store(results, part, name, variant, {"state": entry})
        waiting = waiting[len(entries) :]


def _is_done(case: CaseWords, parts: dict[str, Any]) -> bool:
    part, name, variant, _ = case
    return bool(parts.get(part, {}).get(name, {}).get(variant, {}).get("state") == "done")


def _run(group: Group, cases: Sequence[CaseWords], results: Path, *, directory: Path, limit: float) -> str:
    """Run cases in new processes, one for each rank; returns why they ended, if before their last case."""
    words = [sys.executable, "-m", "evaluation.bench.gpu_cases", str(results), str(directory), json.dumps(cases)]
    meeting = dict(os.environ, WORLD_SIZE=str(group.num_ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    end, log, ranks = time.monotonic() + limit, directory / "log.txt", list[subprocess.Popen[bytes]]()
    with log.open("wb") as output:
        try:
            for rank in range(group.num_ranks):
                own = dict(meeting, RANK=str(rank), LOCAL_RANK=str(rank), HF_HUB_OFFLINE="1", **group.variables)
                ranks.append(subprocess.Popen(words, env=own, stdout=output, stderr=subprocess.STDOUT))
            # The first rank that fails ends the others.
            while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
                if time.monotonic() > end:
                    return f"stopped after {limit:.0f} s"
                time.sleep(0.1)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if any(process.returncode for process in ranks):
        print(*lines[-20:], sep="\n", file=sys.stderr)
    errors = [match[1] for match in map(_ERROR.match, lines) if match]
    return f"failed: {(errors or lines or ['without a message'])[-1]}"
