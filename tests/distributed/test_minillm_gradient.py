"""The mean of MiniLLM's estimates, in their unbiased form, is the exact gradient of KL(q‖p) over whole responses."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.distributed import minillm_jobs as jobs
from tests.distributed.harness import write_config
from tests.tiny_models import tiny_config

VOCABULARY, END, MAX_TOKENS = 3, 2, 5
PROMPT = [0, 1]
NUM_BATCHES, NUM_ROWS = 24, 512
UNBIASED = [
    "method=minillm",
    "minillm.corpus=none",
    "minillm.teacher_share=0",
    "minillm.discount=1",
    "minillm.reward_scale=1",
    "minillm.length_normalized=false",
    "minillm.whitened=false",
    "minillm.inner_epochs=1",
    f"minillm.rollouts={NUM_ROWS}",
    f"schedule.global_batch={NUM_ROWS}",
    f"generation.max_new_tokens={MAX_TOKENS}",
    "optimizer.learning_rate=1",
]


def save_model(directory: Path, *, seed: int) -> None:
    """A random model of a vocabulary of three, with its tokenizer; far from uniform."""
    torch.manual_seed(seed)
    config = tiny_config(
        "llama", vocab_size=VOCABULARY, width=8, layers=1, initializer_range=0.6, eos_token_id=END, bos_token_id=END
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<end>": END}, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>").save_pretrained(directory)


def all_responses() -> list[list[int]]:
    """Every response: it ends with the end token, or has as many tokens as are allowed."""
    words = [word for word in range(VOCABULARY) if word != END]
    ended = [[*start, END] for length in range(MAX_TOKENS) for start in product(words, repeat=length)]
    return ended + [list(full) for full in product(words, repeat=MAX_TOKENS)]


def log_probability(model: PreTrainedModel, response: list[int]) -> Tensor:
    logits = model(torch.tensor([PROMPT + response])).logits[0]
    predicted = logits[len(PROMPT) - 1 : -1].log_softmax(-1)
    return predicted[torch.arange(len(response)), response].sum()


def exact_gradient(directory: Path) -> dict[str, Tensor]:
    """That of KL(q‖p) = Σ_y q(y) log(q(y) / p(y)) over all responses y."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(directory / name, dtype=torch.float64).eval()
        for name in ("student", "teacher")
    )
    divergence, total = torch.zeros((), dtype=torch.float64), 0.0
    for response in all_responses():
        q = log_probability(student, response)
        divergence = divergence + q.exp() * (q - log_probability(teacher, response).detach())
        total += q.exp().item()
    assert total == pytest.approx(1)
    names, parameters = zip(*student.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(divergence, parameters), strict=True))


def flat(gradient: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in names])


@pytest.mark.parametrize(
    ("overrides", "meets"),
    [
        pytest.param([], True, id="unbiased"),
        # Returns that are a little too small: the interval is narrow enough to tell.
        pytest.param(["minillm.discount=0.9"], False, id="biased"),
    ],
)
def test_the_estimates_mean_is_the_exact_gradient(
    tmp_path: Path, ranks: Any, overrides: list[str], meets: bool
) -> None:
    save_model(tmp_path / "teacher", seed=7)
    save_model(tmp_path / "student", seed=8)
    config_file = write_config(tmp_path, stage=0, teacher_stage=0, micro_batch=NUM_ROWS)
    (estimates,) = ranks(1).run(
        jobs.gradients,
        config_file=config_file,
        overrides=UNBIASED + overrides,
        prompt=PROMPT,
        num_batches=NUM_BATCHES,
    )
    exact = exact_gradient(tmp_path)
    names = sorted(exact)
    wanted = flat(exact, names)
    found = torch.stack([flat(estimate, names) for estimate in estimates])
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(8, len(wanted), generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.cat([wanted[None], random]), dim=-1)
    projected = found @ directions.T
    error = projected.std(dim=0) / NUM_BATCHES**0.5
    distance = (projected.mean(dim=0) - directions @ wanted) / error
    # In standard errors; the samples are the same in every run.
    assert (distance.abs().max().item() < 4.5) == meets, distance
