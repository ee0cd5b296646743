"""Everything that the sections of a page are made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.display import metric_label
from evaluation.pictures import COLORS
from evaluation.report.models import Model, match_models
from evaluation.report.outputs import Outputs, find_outputs
from evaluation.report.page import ERROR
from kd.errors import UserError

MEAN = "mean of all"
"""Column of the mean over benchmarks; names of benchmarks have no spaces."""
FIRST_METHOD = "promptkd"
"""Unless the user chooses another model, the others are compared with a student of this method."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What was read, and what the user wants to see of it."""

    outputs: Outputs
    models: list[Model]
    metric: str
    base: Model | None
    """The model that the others are compared with."""
    num_samples: int
    """Rows of each benchmark to show."""

    @property
    def label(self) -> str:
        """The metric's name in a sentence."""
        return metric_label(self.metric)

    @property
    def students(self) -> list[Model]:
        return [model for model in self.models if model.is_student]

    @cached_property
    def looks(self) -> dict[str, dict[str, str]]:
        """A colour and a line style for each run and model, the same in all pictures."""
        names = [run.name for run in self.outputs.trainings] + [model.name for model in self.models]
        styles = ({"linestyle": line, "color": color} for line, color in product(("-", "--", ":", "-."), COLORS))
        return dict(zip(dict.fromkeys(names), cycle(styles), strict=False))

    @cached_property
    def benchmarks(self) -> list[str]:
        """All that a model was scored on."""
        return list(dict.fromkeys(name for model in self.models for name in model.benchmarks))

    @cached_property
    def shared_benchmarks(self) -> list[str]:
        """Those that all students were scored on; means are over these."""
        return [name for name in self.benchmarks if all(self.score(model, name) for model in self.students)]

    def score(self, model: Model, benchmark: str) -> dict[str, Any] | None:
        """The metric's entry in results.json; None if the model was not scored on the benchmark."""
        return model.benchmarks.get(benchmark, {}).get(self.metric)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per model: the score ×100 on each benchmark, its standard error over the seeds, and the mean."""
        rows = []
        for model in self.models:
            found = {name: score for name in self.benchmarks if (score := self.score(model, name))}
            row = {name: score["mean"] for name, score in found.items()}
            row |= {name + ERROR: score["standard_error"] for name, score in found.items()}
            shared = pd.DataFrame([found[name]["per_seed"] for name in self.shared_benchmarks if name in found])
            if len(shared) == len(self.shared_benchmarks) > 1:
                row[MEAN] = sum(found[name]["mean"] for name in self.shared_benchmarks) / len(shared)
                # NaN where benchmarks have different seeds.
                row[MEAN + ERROR] = shared.mean(skipna=False).sem(skipna=False)
            rows.append(row)
        names = [*self.benchmarks, *([MEAN] if any(MEAN in row for row in rows) else [])]
        columns = [column for name in names for column in (name, name + ERROR)]
        frame = pd.DataFrame(rows, columns=columns, dtype=float)
        frame.insert(0, "model", [model.name for model in self.models])
        frame.insert(1, "parameters", [size(model.num_parameters) for model in self.models])
        frame.insert(2, "method", [model.method for model in self.models])
        return frame


def read_findings(directories: Sequence[Path], *, metric: str, base: str | None, num_samples: int) -> Findings:
    """Read all outputs in `directories`, and match the evaluated models to the trainings.

    Raises:
        UserError: a directory without outputs, a broken file, or no model named `base`.
    """
    outputs = find_outputs(directories)
    models = match_models(outputs.results["evaluation"], outputs.trainings)
    if base is None:
        students = (model for model in models if model.is_student)
        chosen = min(students, key=lambda model: model.method != FIRST_METHOD, default=None)
    else:
        chosen = next((model for model in models if model.name == base), None)
        if chosen is None:
            known = ", ".join(model.name for model in models) or "none"
            raise UserError(f"--base {base}: no evaluated model has this name; the models are: {known}")
    return Findings(outputs=outputs, models=models, metric=metric, base=chosen, num_samples=num_samples)


def size(num_parameters: int | None) -> str:
    """A number of parameters as papers write it: 340M, 1.3B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if num_parameters is not None and num_parameters >= 0.9995 * unit:
            return f"{num_parameters / unit:.3g}{letter}"
    return "–" if num_parameters is None else str(num_parameters)
