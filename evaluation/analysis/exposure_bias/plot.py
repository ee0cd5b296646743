"""Figure 3: excess accumulated error over generation steps and over training."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from evaluation.pictures import COLORS, load_pyplot, save

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH, HEIGHT = 4.6, 3.4
"""Of one panel [inches]."""


def draw(results: Mapping[str, Any], *, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg from the contents of exposure_bias.json.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = make_figure(results)
    save(figure, stem)
    load_pyplot().close(figure)


def make_figure(results: Mapping[str, Any]) -> Any:
    """A matplotlib figure of the contents of exposure_bias.json, a panel for each kind of curve.

    Raises:
        UserError: matplotlib is missing.
    """
    plt = load_pyplot()
    painters = {"students": _draw_steps, "progress": _draw_progress}
    panels = [(key, painter) for key, painter in painters.items() if results[key]]
    # A student looks the same in both panels.
    names = dict.fromkeys([*results["students"], *results["progress"]])
    styles = [{"color": color, "marker": marker} for color, marker in zip(COLORS, MARKERS, strict=True)]
    looks = dict(zip(names, cycle(styles), strict=False))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH * len(panels), HEIGHT), squeeze=False, constrained_layout=True
    )
    for panel, (key, painter) in zip(axes[0], panels, strict=True):
        panel.axhline(0, color="#888888", linewidth=0.8)
        for name, content in results[key].items():
            painter(panel, name, content, looks[name])
        panel.set_ylabel("ExAccErr [%]")
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_steps(panel: Any, name: str, content: Mapping[str, Any], look: Mapping[str, str]) -> None:
    series = content["curve"]["ExAccErr"]
    known = [index for index, value in enumerate(series["value"]) if value is not None]
    steps = [index + 1 for index in known]
    low, value, high = ([series[key][index] for index in known] for key in ("low", "value", "high"))
    panel.plot(steps, value, color=look["color"], label=name)
    panel.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
    panel.set_xlabel("generation steps $l$")
    panel.set_title("over generation steps")


def _draw_progress(panel: Any, name: str, content: Mapping[str, Any], look: Mapping[str, str]) -> None:
    points = [point for point in content["points"] if point["ExAccErr"]["value"] is not None]
    # Relative to the best step, or to the last measured one where the best is not known.
    last_step = content["best_step"] or content["points"][-1]["training_step"] or 1
    share = [100 * point["training_step"] / last_step for point in points]
    value = [point["ExAccErr"]["value"] for point in points]
    reach = [
        [point["ExAccErr"]["value"] - point["ExAccErr"]["low"] for point in points],
        [point["ExAccErr"]["high"] - point["ExAccErr"]["value"] for point in points],
    ]
    # A bootstrap interval need not surround its estimate, an error bar must.
    bars = [[max(0.0, length) for length in side] for side in reach]
    panel.errorbar(
        share, value, yerr=bars, color=look["color"], marker=look["marker"], markersize=4, capsize=2, label=name
    )
    panel.set_xlabel("training progress [%]")
    panel.set_title(f"over training, up to $l$ = {content['generation_steps']}")
