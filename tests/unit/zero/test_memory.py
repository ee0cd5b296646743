"""Which errors say that memory has run out."""

import pytest
import torch

from kd.zero.memory import is_out_of_memory

NCCL = "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(NCCL),
    ],
)
def test_errors_of_allocators_and_libraries_are_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), ValueError("x")])
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)
