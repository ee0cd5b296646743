"""Decoding with fixed shapes and repeated work: the same responses as the plain loop's."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from kd.config.schema import GenerationConfig
from kd.data.batch import PromptBatch
from kd.distributed import World
from kd.errors import LoneUserError, UserError
from kd.models.causal_lm import CausalLM
from kd.models.soft_prompt import SoftPrompt
from kd.models.vocabulary import SharedVocabulary
from kd.rollout import decode as decode_module
from kd.rollout import graphs
from kd.rollout.decode import Mixture, Response, decode, row_streams
from kd.rollout.graphs import Capture, RepeatedWork
from kd.rollout.sampler import Sampler
from kd.rollout.sampling import DecodingSettings
from tests.recorded_graph import RecordedGraphs
from tests.tiny_models import FAMILIES, tiny_config
from tests.unit.rollout.test_pretend_device import rows

LENGTHS = (3, 7, 12, 9, 5)
SETTINGS = DecodingSettings(
    max_new_tokens=30, vocabulary_size=290, end_ids=(-1,), temperature=0.9, top_p=0.95, top_k=50
)


def tiny(family: str, *, seed: int, width: int = 32) -> CausalLM:
    torch.manual_seed(seed)
    config = tiny_config(family, vocab_size=300, width=width, layers=2, bos_token_id=0, eos_token_id=0)
    return CausalLM.of(AutoModelForCausalLM.from_config(config).double().eval())


@torch.no_grad()
def run(
    view: CausalLM,
    *,
    settings: DecodingSettings = SETTINGS,
    lengths: tuple[int, ...] = LENGTHS,
    capture: Capture | None = None,
    teacher: CausalLM | None = None,
    soft_prompt: SoftPrompt | None = None,
) -> list[Response]:
    return decode(
        view,
        PromptBatch.collate(rows(lengths), pad_id=0, device=torch.device("cpu")),
        settings=settings,
        streams=row_streams(seed=0, step=0),
        soft_prompt=soft_prompt,
        keep_hidden=True,
        mixture=None if teacher is None else Mixture(teacher=teacher, teacher_share=0.3),
        capture=capture,
    )


def assert_same(found: list[Response], wanted: list[Response]) -> None:
    for row, other in zip(found, wanted, strict=True):
        assert row.token_ids == other.token_ids
        assert row.hidden is not None
        torch.testing.assert_close(row.hidden, other.hidden)


@pytest.mark.parametrize("lengths", [LENGTHS, (6, 6, 6)], ids=["padded", "equal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_work_gives_the_same_responses(
    family: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_module, "SLOT_BUCKET", 16)
    view, recorded = tiny(family, seed=0), RecordedGraphs()
    assert_same(run(view, lengths=lengths, capture=recorded.capture), run(view, lengths=lengths))
    # Tokens after the first read up to 16, 32 and all slots; each first token with new shapes runs plainly.
    numbers = {max(lengths) + num_tokens for num_tokens in range(1, 30)}
    buckets = {min(-(-number // 16) * 16, max(lengths) + 30) for number in numbers}
    assert recorded.num_captures == len(buckets) > 1
    assert recorded.num_replays == 29 - len(buckets)


def test_rows_that_end_leave_and_change_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "notice_every", lambda *_, **__: 3)
    view, recorded = tiny("llama", seed=0), RecordedGraphs()
    unending = run(view)
    # Most rows draw this token at some time.
    tokens = sorted({token for row in unending for token in row.token_ids})
    eos = max(tokens, key=lambda token: sum(token in row.token_ids for row in unending))
    settings = replace(SETTINGS, end_ids=(eos,))
    found = run(view, settings=settings, capture=recorded.capture)
    assert_same(found, run(view, settings=settings))
    assert len({len(row.token_ids) for row in found}) > 2
    assert recorded.num_captures > 1
    assert recorded.num_replays > 0


def test_a_soft_prompt_and_a_mixture_repeat_too() -> None:
    student, teacher = tiny("gpt2", seed=0), tiny("opt", seed=1, width=48)
    soft_prompt = SoftPrompt(torch.randn(4, 32, dtype=torch.double) * 0.2)
    for options in ({"teacher": teacher}, {"soft_prompt": soft_prompt}):
        recorded = RecordedGraphs()
        found = run(student, capture=recorded.capture, **options)  # type: ignore[arg-type]
        assert_same(found, run(student, **options))  # type: ignore[arg-type]
        assert recorded.num_replays == 28


def test_work_is_captured_after_it_ran_once_with_these_shapes() -> None:
    events: list[str] = []

    def capture(work: graphs.Work) -> graphs.Work:
        events.append("capture")
        return lambda: events.append("repeat")

    work = RepeatedWork(lambda: events.append("run"), capture=capture)
    for shape in ("a", "a", "a", "b", "b", "a"):
        work(shape)
    assert events == ["run", "capture", "repeat", "repeat", "run", "capture", "repeat", "run", "capture"]
    plain = RepeatedWork(lambda: events.append("plain"), capture=None)
    plain("a")
    plain("a")
    assert events[-2:] == ["plain", "plain"]


def test_work_that_cannot_be_captured_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGraph:
        def __init__(self, _: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", NoGraph)

    def wait() -> None:
        raise RuntimeError("CUDA error: operation not permitted")

    def exhaust() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(LoneUserError, match=r"cannot be captured \(CUDA error: operation not permitted\); set"):
        graphs.cuda_graph(wait)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.cuda_graph(exhaust)


@pytest.mark.parametrize(
    ("device", "is_collective", "message"),
    [
        ("cpu", False, "generation.cuda_graphs=true needs a GPU, and this run uses the cpu; set it to false"),
        ("cuda", True, "needs the whole student on each rank, and ranks share its weights here; set it to false, or"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be(device: str, is_collective: bool, message: str) -> None:
    world = World(rank=0, size=1, local_rank=0, device=torch.device(device))
    placement = SimpleNamespace(is_collective=is_collective, group=None, ready=nullcontext)
    vocabulary = SharedVocabulary(tokenizer=PreTrainedTokenizerBase(), size=300, eos_id=0, end_ids=(0,))
    with pytest.raises(UserError, match=message):
        Sampler(placement, settings=GenerationConfig(cuda_graphs=True), vocabulary=vocabulary, world=world)
