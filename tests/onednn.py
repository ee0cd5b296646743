"""Counts what oneDNN multiplies."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def calls_of_onednn(run: Callable[[], object]) -> int:
    """How many products oneDNN makes while `run` runs."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return sum(event.count for event in found.key_averages() if event.key == "mkldnn::_linear_pointwise")
