"""The token loop and the loss on a device other than the host's: nothing mixes, and little waits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kd.data.batch import PromptBatch, PromptRow
from kd.losses.fused import fused_loss
from kd.losses.outputs import Head, Outputs
from kd.losses.policy_gradient import PolicyGradientTerm
from kd.losses.terms import TRAINED, Term, cross_entropy, kl
from kd.models.causal_lm import CausalLM
from kd.rollout.decode import NOTICE_EVERY, Response, decode, row_streams
from kd.rollout.graphs import Capture, Work
from kd.rollout.sampling import DecodingSettings
from tests.pretend_device import DEVICE, PretendDevice, pretend_device
from tests.tiny_models import FAMILIES, tiny_config

LAYERS = 3
LAUNCHES = {"gpt2": 131, "opt": 120, "llama": 195, "gpt_neox": 152}
"""Most operations for each token of these models; attention's plain formula is seven of them, and one on a GPU."""


def rows(lengths: tuple[int, ...]) -> list[PromptRow]:
    generator = np.random.default_rng(0)
    return [
        PromptRow(row_id=row, prompt_ids=generator.integers(1, 299, length).astype(np.int32))
        for row, length in enumerate(lengths)
    ]


def run(
    view: CausalLM,
    device: torch.device,
    *,
    num_tokens: int,
    lengths: tuple[int, ...],
    capture: Capture | None = None,
) -> list[Response]:
    settings = DecodingSettings(max_new_tokens=num_tokens, vocabulary_size=300, end_ids=(-1,), temperature=0.9)
    batch = PromptBatch.collate(rows(lengths), pad_id=0, device=device)
    with torch.no_grad():
        return decode(
            view, batch, settings=settings, streams=row_streams(seed=0, step=0), keep_hidden=True, capture=capture
        )


@pytest.mark.parametrize(
    ("family", "lengths"), [*((family, (3, 7, 12, 9)) for family in FAMILIES), ("llama", (6, 6))], ids=str
)
def test_the_token_loop_waits_once_in_eight_tokens(family: str, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = tiny_config(family, vocab_size=300, width=32, layers=LAYERS, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    host = torch.device("cpu")
    wanted = run(CausalLM.of(model), host, num_tokens=8, lengths=lengths)
    counts: list[tuple[int, int]] = []
    with pretend_device() as device:
        model.to(DEVICE)
        for num_tokens in (8, 24):
            launches, waits = device.num_launches, device.num_waits
            found = run(CausalLM.of(model), DEVICE, num_tokens=num_tokens, lengths=lengths)
            counts.append((device.num_launches - launches, device.num_waits - waits))
        for row, other in zip(found, wanted, strict=True):
            assert row.token_ids[:8] == other.token_ids
            assert row.hidden is not None
            torch.testing.assert_close(row.hidden[:8].cpu(), other.hidden)
    (few_launches, few_waits), (many_launches, many_waits) = counts
    # Besides what a batch costs once.
    assert many_waits - few_waits == (24 - 8) / NOTICE_EVERY
    assert (many_launches - few_launches) / (24 - 8) <= LAUNCHES[family]


def policy_gradient(to: Callable[[Tensor], Tensor], labels: Tensor) -> PolicyGradientTerm:
    ones = to(torch.ones(len(labels)))
    return PolicyGradientTerm(
        labels=to(labels), sampled_log_probs=-ones, importance_weights=ones, advantages=ones, ratio_clip=0.2
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_work_with_fixed_shapes_neither_reads_nor_uploads(family: str) -> None:
    """What would end a capture."""
    torch.manual_seed(0)
    config = tiny_config(family, vocab_size=300, width=32, layers=LAYERS, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    counts: list[tuple[int, int, int]] = []
    with pretend_device() as device:
        model.to(DEVICE)

        def capture(work: Work) -> Work:
            def counted() -> None:
                before = device.num_waits, device.num_uploads, device.num_launches
                work()
                after = device.num_waits, device.num_uploads, device.num_launches
                counts.append((after[0] - before[0], after[1] - before[1], after[2] - before[2]))

            return counted

        run(CausalLM.of(model), DEVICE, num_tokens=8, lengths=(3, 7, 12, 9), capture=capture)
    # The first token comes from the prompt, and the next runs before a capture.
    assert len(counts) == 6
    for waits, uploads, launches in counts:
        assert (waits, uploads) == (0, 0)
        assert launches <= LAUNCHES[family]


@pytest.mark.parametrize("name", ["cross_entropy", "reverse_kl", "forward_kl", "two_terms", "policy_gradient"])
def test_the_loss_never_waits(name: str) -> None:
    """All methods' losses are made of these terms."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, other_hidden, other_weight = (
        torch.randn(*size, generator=generator) for size in ((9, 8), (50, 8), (9, 6), (50, 6))
    )
    labels = torch.arange(9)

    def measure(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        trained = [to(hidden).requires_grad_(), to(weight).requires_grad_()]
        target = Outputs(hidden=to(other_hidden), head=Head(weight=to(other_weight), vocabulary_size=50))
        terms: dict[str, list[Term]] = {
            "cross_entropy": [cross_entropy(to(labels))],
            "reverse_kl": [kl(TRAINED, target)],
            "forward_kl": [kl(target, TRAINED)],
            "two_terms": [kl(TRAINED, target), 0.5 * kl(TRAINED, target)],
            "policy_gradient": [policy_gradient(to, labels)],
        }
        outputs = Outputs(hidden=trained[0], head=Head(weight=trained[1], vocabulary_size=50))
        before = [device.num_waits for device in active]
        loss, sums = fused_loss(outputs, terms[name], scale=0.1, chunk_size=4)
        loss.backward()
        assert [device.num_waits for device in active] == before
        return [loss.detach().cpu(), sums.cpu(), *(tensor.grad.cpu() for tensor in trained if tensor.grad is not None)]

    active: list[PretendDevice] = []
    wanted = measure(lambda tensor: tensor.clone())
    with pretend_device() as device:
        active.append(device)
        found = measure(lambda tensor: tensor.to(DEVICE))
    assert len(found) == 4
    for value, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, expected)
    assert device.num_launches > 0


def test_devices_that_mix_are_an_error() -> None:
    with pretend_device(), pytest.raises(RuntimeError, match="tensors of the pretend device and of the host"):
        torch.ones(2, device=DEVICE) + torch.ones(2)
