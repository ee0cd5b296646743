"""The demo: a good teacher, few labelled rows, many prompts without an answer. Run it with `make demo`.

Every step is a command of the toolkit, printed before it runs. Finished steps are not repeated.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo import report
from demo.plan import CONTROLS, MODELS, RUNS, SEEDS, control_steps, training_seconds
from kd.distributed import free_port

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
DEEPSPEED = str(Path(PYTHON).with_name("deepspeed"))


def show(command: list[str]) -> str:
    """A command as a person would type it in the project's folder."""
    names = {PYTHON: "python", DEEPSPEED: "deepspeed"}
    return shlex.join(names.get(word, word) for word in command)


def run(title: str, *commands: list[str]) -> None:
    """Print and run commands, side by side if there are several; end the demo if one fails."""
    print(f"\n== {title}", flush=True)
    for command in commands:
        print(f"$ {show(command)}", flush=True)
    started = time.monotonic()
    # One thread each: two processes share two cores, as ranks or as neighbours.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"this step failed (exit codes {codes}); run its command again to see more")
    print(f"   {time.monotonic() - started:.0f} s", flush=True)


def train(config: str, *overrides: str) -> list[str]:
    """Command that trains on two ranks."""
    script = "launch/train_promptkd.py" if config == "promptkd" else "launch/train.py"
    # A port of its own: another run on this machine may have the default one.
    return [
        DEEPSPEED,
        "--num_gpus",
        "2",
        "--master_port",
        str(free_port()),
        script,
        "--config",
        f"demo/{config}.yaml",
        *overrides,
    ]


def evaluate(name: str, model: str) -> list[str]:
    """Command that scores a model on the test rows with five seeds."""
    return [
        PYTHON,
        "evaluation/evaluate.py",
        "--model",
        model,
        "--benchmark",
        "test=demo/data/test.jsonl",
        "--seeds",
        SEEDS,
        "--max-new-tokens",
        "16",
        "--out",
        f"{RUNS}/evaluation/{name}",
    ]


def main() -> int:
    """Run all steps; the exit code says whether the distilled student is clearly ahead."""
    os.chdir(ROOT)
    start = f"{RUNS}/student-start"
    if not Path(start).exists():
        shape = ["--layers", "2", "--hidden", "128", "--heads", "4"]
        run(
            "A small student with random weights",
            [PYTHON, "-m", "demo.make_model", "--tokenizer", "demo/teacher", *shape, "--out", start],
        )
    run("Fine-tune the student on the 150 labelled rows", train("student_sft"))
    run(
        "Distil the teacher into it with PromptKD: two ranks, ZeRO-3, 4,000 prompts without an answer",
        train("promptkd"),
    )
    for name, control in CONTROLS.items():
        steps = control_steps(name)
        run(
            f"Control: go on fine-tuning {control.meaning}",
            train(
                "student_sft",
                f"model.student={RUNS}/student/final",
                f"schedule.steps={steps}",
                f"validation.every={max(1, steps // 4)}",
                *control.overrides,
                f"run.dir={RUNS}/{name}",
            ),
        )
    names = list(MODELS)
    for first in range(0, len(names), 2):
        pair = names[first : first + 2]
        run("Score on the 360 test rows, five seeds", *(evaluate(name, MODELS[name]) for name in pair))
    print(f"\nPromptKD trained for {training_seconds('promptkd'):.0f} s.")
    return report.main()


if __name__ == "__main__":
    sys.exit(main())
