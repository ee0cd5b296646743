"""What the fused loss keeps alive: a few [chunk, V] tensors at work, nothing of that size afterwards."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kd.losses.fused as fused_module
from kd.losses.divergences import DIVERGENCES
from kd.losses.fused import block_bytes, fused_loss
from kd.losses.outputs import Head, Outputs, chunk_rows
from kd.losses.terms import Term, cross_entropy
from tests.unit.losses.problems import divergence_term, make_outputs

CHUNK, VOCABULARY, HIDDEN = 8, 4000, 2
CHUNK_TENSOR_BYTES = CHUNK * VOCABULARY * 4
# Blocks at work at once; JSD has two halves.
NUM_BLOCKS = {"reverse_kl": 6, "forward_kl": 6, "jsd": 9}


class LiveBytes(TorchDispatchMode):
    """Follows the storages made by torch's operations, on the autograd engine's side too."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def alive_bytes(self) -> int:
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return sum(num_bytes for _, num_bytes in self._made.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        return result


def wide(*, seed: int, rows: int, trainable_head: bool = False) -> Outputs:
    outputs = make_outputs(seed=seed, rows=rows, vocabulary=VOCABULARY, hidden_size=HIDDEN)
    outputs.head.weight.requires_grad_(trainable_head)
    return outputs


def measure(trained: Outputs, *terms: Term) -> tuple[int, int]:
    """Peak of the bytes alive, and the bytes alive while backward is awaited."""
    with LiveBytes() as live:
        result = fused_loss(trained, terms, scale=1.0, chunk_size=CHUNK)
        assert result.loss.requires_grad
        return live.peak_bytes, live.alive_bytes


def test_the_measurement_sees_full_logits() -> None:
    """The plain loss must show up, or the bounds below would prove nothing."""
    trained = wide(seed=0, rows=10 * CHUNK)
    with LiveBytes() as live:
        loss = (trained.hidden @ trained.head.weight.T).log_softmax(-1).exp().sum()
        assert live.alive_bytes >= 10 * CHUNK_TENSOR_BYTES
    assert loss.requires_grad


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("num_targets", [1, 3])
def test_a_chunk_is_held_once_for_each_model_and_worked_on_in_blocks(
    name: str, num_targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = CHUNK_TENSOR_BYTES // 4
    monkeypatch.setattr(fused_module, "block_bytes", lambda _: num_bytes)
    peaks = []
    for rows in (CHUNK, 20 * CHUNK):
        terms = [divergence_term(wide(seed=seed + 1, rows=rows), name=name) for seed in range(num_targets)]
        labels = cross_entropy(torch.zeros(rows, dtype=torch.int64))
        peaks.append(measure(wide(seed=0, rows=rows), *terms, labels)[0])
    assert peaks[1] - peaks[0] <= 20 * CHUNK * HIDDEN * 4
    assert peaks[1] <= (1 + num_targets) * CHUNK_TENSOR_BYTES + NUM_BLOCKS.get(name, 7) * num_bytes


@pytest.mark.parametrize("trainable_head", [False, True])
def test_only_the_gradients_wait_for_backward(trainable_head: bool) -> None:
    rows = 20 * CHUNK
    term = divergence_term(wide(seed=1, rows=rows))
    _, alive_bytes = measure(wide(seed=0, rows=rows, trainable_head=trainable_head), term)
    gradient_bytes = 4 * HIDDEN * (rows + trainable_head * VOCABULARY)
    assert gradient_bytes <= alive_bytes <= gradient_bytes + 1024


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_gpu_takes_half_a_chunk_at_a_time_and_less_than_a_gib(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two terms at the sizes of a real model, in tensors without storage."""
    vocabulary, hidden_size, num_bytes = 151_936, 2048, block_bytes("cuda")
    num_rows = chunk_rows(vocabulary)
    assert 2 * chunk_rows(vocabulary, byte_budget=num_bytes) >= num_rows
    monkeypatch.setattr(fused_module, "block_bytes", lambda _: num_bytes)

    def outputs(*, requires_grad: bool) -> Outputs:
        hidden = torch.empty(num_rows, hidden_size, requires_grad=requires_grad)
        weight = torch.empty(vocabulary, hidden_size, requires_grad=requires_grad)
        return Outputs(hidden=hidden, head=Head(weight=weight, vocabulary_size=vocabulary))

    with FakeTensorMode():
        trained = outputs(requires_grad=True)
        terms = [divergence_term(outputs(requires_grad=False), name=name) for _ in range(2)]
        with LiveBytes() as live:
            fused_loss(trained, terms, scale=1.0, chunk_size=num_rows)
    assert live.peak_bytes - 4 * vocabulary * hidden_size < 2**30
