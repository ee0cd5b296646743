"""Figure 3: excess accumulated error over generation steps and over training."""

from collections.abc import Callable, Iterator

from evaluation.intervals import Estimate
from evaluation.report.findings import Findings, Section
from evaluation.report.formats import ExposureBiasResults, Progress
from evaluation.report.outputs import Output
from evaluation.report.pictures import FAINT, Axes, Picture, draw, label


def exposure_section(findings: Findings) -> Section:
    """Both panels for each output of evaluation.exposure_bias; empty without one."""
    outputs = findings.outputs.exposure_biases
    pictures = [
        picture
        for index, output in enumerate(outputs, start=1)
        for picture in _pictures(findings, output, suffix="" if len(outputs) == 1 else f"-{index}")
    ]
    return Section(
        key="exposure-bias",
        title="Exposure bias",
        text=(
            "ExAccErr(l), in percent: by how much the student’s distance from the teacher, added up over l steps of its"
            " own samples, exceeds that over samples of the teacher (Eq. 5). Near 0, mistakes do not build up. Bands"
            " and bars are 95 % intervals over requests.",
        ),
        pictures=tuple(pictures),
    )


def _pictures(findings: Findings, output: Output[ExposureBiasResults], *, suffix: str) -> Iterator[Picture]:
    results = output.results
    source = f"{results.num_requests} requests of {results.data}, teacher {results.teacher}"
    if results.students:
        yield draw(
            f"figure3a{suffix}",
            _over_steps(findings, results),
            description=f"Figure 3(a): ExAccErr over generation steps. {source}.",
        )
    if results.progress:
        yield draw(
            f"figure3b{suffix}",
            _over_training(findings, results.progress),
            description=f"Figure 3(b): ExAccErr while training. {source}.",
        )


def _over_steps(findings: Findings, results: ExposureBiasResults) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for name, student in results.students.items():
            series, look = student.curve.ExAccErr, findings.looks[name]
            known = [step for step in range(1, len(series.value) + 1) if series.at(step).value is not None]
            points = [series.at(step) for step in known]
            axes.plot(
                known, [point.value for point in points], look.line, color=look.color, linewidth=1.6, label=label(name)
            )
            # Without an interval there is no band: NaN leaves a gap.
            low, high = ([_number(getattr(point, end)) for point in points] for end in ("low", "high"))
            axes.fill_between(known, low, high, color=look.color, alpha=0.18, linewidth=0)
        axes.set_xlabel("generation steps l")
        axes.set_ylabel("ExAccErr [%]")

    return paint


def _over_training(findings: Findings, progress: dict[str, Progress]) -> Callable[[Axes], None]:
    lengths = sorted({course.generation_steps for course in progress.values()})

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for name, course in progress.items():
            look = findings.looks[name]
            points = [point for point in course.points if point.ExAccErr.value is not None]
            # Of the best step, or where nobody named it, of the last one measured.
            whole = course.best_step or max((point.training_step for point in course.points), default=0) or 1
            reach = [_reach(point.ExAccErr) for point in points]
            axes.errorbar(
                [100 * point.training_step / whole for point in points],
                [point.ExAccErr.value for point in points],
                yerr=([below for below, _ in reach], [above for _, above in reach]),
                color=look.color, linestyle=look.line, marker=look.marker, markersize=4, capsize=2, label=label(name),
            )  # fmt: skip
        axes.set_xlabel("training progress [% of the best step]")
        axes.set_ylabel(f"ExAccErr up to l = {', '.join(map(str, lengths))} [%]")

    return paint


def _reach(estimate: Estimate) -> tuple[float, float]:
    """Below and above; a bootstrap interval need not surround its estimate, an error bar must."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return 0.0, 0.0
    return max(0.0, estimate.value - estimate.low), max(0.0, estimate.high - estimate.value)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
