"""Learning rates of `demo.compare`: the same candidates for each method, chosen on the validation rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from demo.contestants import CONTESTANTS, Folder, Training, validation_curve
from evaluation.results import write_atomically
from kd.config_fields import MethodName
from kd.errors import UserError

CANDIDATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEED = 11
"""No training seed of the comparison."""
RATES = Path(__file__).with_name("comparison_rates.yaml")
_HEADER = "# Validation ROUGE-L after the last step, by learning rate; written by: python -m demo.compare tune\n"


@dataclass(frozen=True, kw_only=True)
class TunedRates:
    """What tuning has measured."""

    steps: int
    scores: Mapping[MethodName, Mapping[float, float]]
    """Validation ROUGE-L by method and learning rate."""

    def best(self, method: MethodName) -> float:
        """The rate with the highest score, the lowest of several.

        Raises:
            UserError: the method was not tuned.
        """
        if method not in self.scores:
            raise UserError(f"{method} has no tuned learning rate; python -m demo.compare tune --methods {method}")
        of_method = self.scores[method]
        return max(sorted(of_method), key=lambda rate: of_method[rate])

    def write(self, path: Path) -> None:
        """Write the file that `read_rates` reads."""
        values = {
            "seed": SEED,
            "steps": self.steps,
            "validation_rougeL": {method: dict(scores) for method, scores in self.scores.items()},
        }
        write_atomically(path, _HEADER + yaml.safe_dump(values, sort_keys=False))


def read_rates(path: Path) -> TunedRates:
    """What tuning wrote.

    Raises:
        UserError: no such file, or not one of tuning's.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TunedRates(steps=values["steps"], scores=values["validation_rougeL"])
    except OSError as error:
        raise UserError(
            f"--rates {path}: cannot be read ({error.strerror}); write it with python -m demo.compare tune"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError):
        raise UserError(
            f"--rates {path}: is not a file of learning rates; delete it, then python -m demo.compare tune"
        ) from None


def tuning_run(method: MethodName, rate: float, *, steps: int, folder: Folder, sft_rate: float) -> Training:
    """One candidate; where the method starts from SFT, from what tuning trained with `sft_rate`."""
    return Training(
        method=method,
        seed=SEED,
        learning_rate=rate,
        steps=steps,
        folder=folder,
        name=f"tuning/{method}-{rate:g}",
        fine_tuned=f"{folder.path}/tuning/sft-{sft_rate:g}/final",
    )


def tune(
    methods: Sequence[MethodName],
    *,
    steps: int,
    folder: Folder,
    rates_file: Path,
    finish: Callable[[Training, str], None],
) -> TunedRates:
    """Train each method with each candidate and write the scores, after each method.

    Args:
        finish: trains a run to its end where that is not done; gets its place among all runs as text.

    Raises:
        UserError: the file has scores of runs of another length, or SFT, from which a method starts, was not tuned.
    """
    rates = read_rates(rates_file) if rates_file.exists() else TunedRates(steps=steps, scores={})
    if rates.steps != steps:
        raise UserError(
            f"--rates {rates_file}: was tuned with {rates.steps} steps, this call has {steps}; use the same --steps, or"
            " another --rates"
        )
    total = len(methods) * len(CANDIDATES)
    for index, method in enumerate(methods):
        sft_rate = CANDIDATES[0]
        if CONTESTANTS[method].start == "sft":
            sft_rate = rates.best("sft")
            # Done already, unless SFT was tuned on another machine.
            finish(tuning_run("sft", sft_rate, steps=steps, folder=folder, sft_rate=sft_rate), f"start of {method}")
        scores = {}
        for number, rate in enumerate(CANDIDATES, start=1 + index * len(CANDIDATES)):
            training = tuning_run(method, rate, steps=steps, folder=folder, sft_rate=sft_rate)
            finish(training, f"{number} of {total}")
            scores[rate] = validation_curve(training)[-1][1]
        rates = TunedRates(steps=steps, scores={**rates.scores, method: scores})
        rates.write(rates_file)
    return rates
