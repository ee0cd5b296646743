"""All methods on the demo's data and models: python -m demo.compare [tune] [--seeds 1,2,3] [--methods gkd,promptkd]

Every training seed has a student with random weights of its own. SFT, KD and SeqKD start from it; GKD, MiniLLM,
DistiLLM and PromptKD from what this comparison's SFT made of it. With `tune`: the learning rate of each method instead,
four candidates each. Every step is a command of the toolkit, printed before it runs. Finished steps are not repeated,
a killed training goes on from its checkpoint. docs/comparison.md has the protocol.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.comparison_results import report
from demo.contestants import (
    CONFIG,
    CONTESTANTS,
    PROMPTS,
    STEPS,
    Folder,
    Training,
    check_needed,
    write_answered,
)
from demo.plan import MODELS, RUNS
from demo.steps import ROOT, evaluate_all, make_student, on_two_ranks, run
from demo.tuning import RATES, SEED, TunedRates, read_rates, tune
from evaluation.pictures import check_matplotlib
from kd.config_fields import MethodName
from kd.errors import EXIT_CODE, UserError


def planned_trainings(
    methods: Sequence[MethodName], *, seeds: Sequence[int], steps: int, folder: Folder, rates: TunedRates
) -> list[Training]:
    """All runs in an order in which they can be made; SFT also where others only start from it.

    Raises:
        UserError: a method was not tuned.
    """
    starts_from_sft = any(CONTESTANTS[method].start == "sft" for method in methods)
    needed = [method for method in CONTESTANTS if method in methods or (method == "sft" and starts_from_sft)]
    return [
        Training(
            method=method,
            seed=seed,
            learning_rate=rates.best(method),
            steps=steps,
            folder=folder,
            name=f"{method}-{seed}",
            fine_tuned=f"{folder.path}/sft-{seed}/final",
        )
        for seed in seeds
        for method in needed
    ]


def finish(training: Training, place: str) -> None:
    """Train a run to its end, unless that has been done.

    Raises:
        UserError: its directory has a finished run of other settings.
    """
    label, rate = CONTESTANTS[training.method].label, f"learning rate {training.learning_rate:g}"
    title = f"{place}: {label}, training seed {training.seed}, {rate}"
    if training.is_finished():
        print(f"\n== {title}: done before", flush=True)
    else:
        run(title, training.command())


def prepare(folder: Folder, *, seeds: Sequence[int]) -> None:
    """Make the students with random weights, and the teacher's responses that methods learn from.

    Raises:
        UserError: the demo's teacher or data are missing.
    """
    check_needed()
    for seed in seeds:
        make_student(folder.raw_student(seed), seed=seed)
    if not Path(folder.responses).exists():
        settings = [
            "method=seqkd",
            f"model.student={folder.raw_student(seeds[0])}",
            f"data.train={PROMPTS}",
            f"data.responses={folder.responses}",
        ]
        script = "launch/generate_pseudo_data.py"
        run("The teacher's responses", on_two_ranks(script, "--config", f"demo/{CONFIG}.yaml", *settings))
    if not Path(folder.answered).exists():
        write_answered(folder)


def compare(methods: Sequence[MethodName], *, seeds: Sequence[int], steps: int, folder: Folder, rates: Path) -> None:
    """Train, score and report.

    Raises:
        UserError: something is missing, or the folder has runs of other settings.
    """
    check_matplotlib()
    trainings = planned_trainings(methods, seeds=seeds, steps=steps, folder=folder, rates=read_rates(rates))
    prepare(folder, seeds=seeds)
    for number, training in enumerate(trainings, start=1):
        finish(training, f"{number} of {len(trainings)}")
    models = {folder.teacher_scores: MODELS["teacher"]}
    models |= {training.scores: training.student for training in trainings if training.method in methods}
    evaluate_all({out: model for out, model in models.items() if not (Path(out) / "results.json").exists()})
    report(trainings, methods=methods, folder=folder)


def chosen_methods(text: str) -> list[MethodName]:
    """The methods that --methods names, in the order of the table.

    Raises:
        UserError: one is none of the contestants.
    """
    names = text.split(",")
    for name in names:
        if name not in CONTESTANTS:
            raise UserError(f"--methods: {name!r} is no contestant; choose of {','.join(CONTESTANTS)}")
    return [method for method in CONTESTANTS if method in names]


def chosen_seeds(text: str) -> list[int]:
    """The seeds that --seeds names.

    Raises:
        UserError: not whole numbers from 0, or one twice.
    """
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise UserError(f"--seeds is {text!r}; expected different whole numbers, such as 1,2,3")
    return list(map(int, numbers))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m demo.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("task", nargs="?", choices=["tune"], help="choose learning rates instead of comparing")
    add("--seeds", default="1,2,3", help="training seeds of the comparison [%(default)s]")
    add("--methods", default=",".join(CONTESTANTS), help="[%(default)s]")
    add("--steps", type=int, default=STEPS, help="optimizer steps of every training [%(default)s]")
    add("--out", default=f"{RUNS}/comparison", metavar="DIR", help="where all runs and results go [%(default)s]")
    add("--rates", type=Path, default=RATES, metavar="FILE", help="learning rates, which tune writes [shipped]")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    arguments = parser().parse_args(argv)
    os.chdir(ROOT)
    folder, steps = Folder(path=arguments.out), arguments.steps
    try:
        methods, seeds = chosen_methods(arguments.methods), chosen_seeds(arguments.seeds)
        if arguments.task == "tune":
            prepare(folder, seeds=[SEED])
            tuned = tune(methods, steps=steps, folder=folder, rates_file=arguments.rates, finish=finish)
            print(f"\n{arguments.rates}: " + ", ".join(f"{method} {tuned.best(method):g}" for method in methods))
        else:
            compare(methods, seeds=seeds, steps=steps, folder=folder, rates=arguments.rates)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
