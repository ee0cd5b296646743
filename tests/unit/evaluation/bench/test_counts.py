"""Bytes of collective operations, and floating-point operations by phase."""

from collections.abc import Callable

import torch
from torch.nn import functional
from torch.profiler import record_function

from evaluation.bench.flops import PhaseFlops
from tests.run_on_ranks import Ranks
from tests.unit.evaluation.bench import bench_jobs as jobs


def test_bytes_of_every_kind_of_collective_operation(ranks: Callable[[int], Ranks]) -> None:
    # Two gathers of 800 bytes; a scatter of 800 and twice an all-reduce of 400; a broadcast of 400.
    expected = {"gathered": 1600, "reduced": 1600, "other": 400}
    assert ranks(2).run(jobs.count_collectives) == [expected, expected]


def test_operations_count_in_the_phase_that_runs_them() -> None:
    inputs, weight = torch.ones(3, 4), torch.ones(4, 5, requires_grad=True)
    heads = torch.ones(1, 2, 6, 8)
    with PhaseFlops() as flops:
        with record_function("student"):
            (inputs @ weight).sum().backward()
            with record_function("inner"):
                torch.zeros(3, 5).addmm_(inputs, weight.detach())
        with record_function("teacher"):
            functional.scaled_dot_product_attention(heads, heads, heads)
        inputs @ weight.detach()
    matmul = 2 * 3 * 4 * 5
    # Backward has the gradient of the weight alone. Attention: QKᵀ and the weighted sum of V, for two heads.
    assert flops.num_flops == {"inner": matmul, "student": 3 * matmul, "teacher": 2 * 2 * (2 * 6 * 8 * 6)}
    assert flops.get_total_flops() == 4 * matmul + flops.num_flops["teacher"]
