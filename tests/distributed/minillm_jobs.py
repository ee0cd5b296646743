"""Jobs of the MiniLLM tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.config.schema import Config
from kd.data.corpus import CorpusBlocks
from kd.data.loader import BatchLoader
from kd.distributed import World
from tests.distributed.generation_jobs import Prompts, make_examples, responses
from tests.distributed.harness import FIXED_RESPONSES, Harness, Pair, full_weights, is_released
from tests.distributed.sampling_fault_jobs import interrupted_at


def corpus_loader(tokens: list[int], config: Config, *, rank: int, num_ranks: int) -> BatchLoader:
    """Global batches of blocks of these tokens."""
    blocks = CorpusBlocks(
        np.array(tokens, dtype=np.int32), block_tokens=config.data.max_sequence_tokens, source="corpus"
    )
    return BatchLoader(
        blocks, global_batch=config.schedule.global_batch, rank=rank, num_ranks=num_ranks, seed=config.run.seed
    )


def train(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    batches: list[list[Pair]],
    corpus: list[int],
    num_steps: int,
) -> dict[str, Any]:
    """Steps on the rows' own responses; the student before and after, the logged means, and the rows of each step."""
    harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides], batches=batches)
    if corpus:
        harness.method._corpus = corpus_loader(corpus, harness.config, rank=world.rank, num_ranks=world.size)
    before, means, rows = full_weights(harness.student.model), [], []
    for step in range(1, num_steps + 1):
        harness.means = {}
        harness.step(step, rows=[])
        means.append({name: value for name, (value,) in harness.means.items()})
        rows.append([rollout.sequence.row_id for rollout in harness.method._store.batch(step)])
    return {"before": before, "after": full_weights(harness.student.model), "means": means, "rows": rows}


def sample(
    world: World, *, config_file: Path, overrides: list[str], shares: list[Prompts], eos_id: int
) -> dict[int, list[int]]:
    """Teacher-mixed responses by row id, which counts over the shares of all ranks, of this rank's share."""
    harness = Harness(world, config_file, overrides)
    sampler = harness.method._sampler
    sampler._decoding = replace(sampler._decoding, end_ids=(eos_id,))
    examples = make_examples([prompt for share in shares for prompt in share])
    start = sum(len(share) for share in shares[: world.rank])
    sampled = sampler.sample(examples[start : start + len(shares[world.rank])], seed=7, step=1)
    assert harness.student.model.training and harness.method.teacher.view.model.training
    return responses(sampled)


def sample_and_train(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    batches: list[list[Pair]],
    interrupted_pass: int | None = None,
) -> dict[str, Any]:
    """One step on responses that are sampled for it: these, the logged means and the student's weights after it.

    With `interrupted_pass`, a step before that is interrupted in this forward pass.
    """
    harness = Harness(world, config_file, overrides, batches=batches)
    if interrupted_pass is not None:
        with interrupted_at(interrupted_pass):
            harness.step(1, rows=[])
    models = {"student": harness.student.model, "teacher": harness.method.teacher.view.model}
    left = {"training": {name: model.training for name, model in models.items()}, "grad": torch.is_grad_enabled()}
    metrics = harness.step(1, rows=[])
    return {
        "said": harness.said,
        "left": left,
        "released": {name: is_released(model) for name, model in models.items()},
        "responses": {
            rollout.sequence.row_id: rollout.sequence.response_ids.tolist()
            for rollout in harness.method._store.batch(1)
        },
        "means": {name: value.item() for name, value in metrics.token_means.items()},
        "weights": full_weights(harness.student.model),
    }


def gradients(
    world: World, *, config_file: Path, overrides: list[str], prompt: list[int], num_batches: int
) -> list[dict[str, Tensor]]:
    """Estimates of the gradient of KL(q‖p) over whole responses, one from each of several fresh rollouts."""
    rows = int(next(entry.partition("=")[2] for entry in overrides if entry.startswith("schedule.global_batch=")))
    batches: list[list[Pair]] = [[(prompt, [])] * rows] * num_batches
    harness = Harness(world, config_file, overrides, batches=batches)
    config, model = harness.config, harness.student.model
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    found = []
    for step in range(1, num_batches + 1):
        metrics = harness.step(step, rows=[])
        # From a mean over tokens to one over responses.
        factor = metrics.num_tokens / config.schedule.global_batch / config.optimizer.learning_rate
        found.append(
            {name: factor * (start[name] - value).detach().double() for name, value in model.named_parameters()}
        )
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(start[name])
    return found
