"""What to change in a run that does not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kd.config.schema import Config
from kd.plan.account import Account

_STAGE = "ds_configs/zero{}.json"
_OFFLOAD = "ds_configs/zero3_offload.json"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Changes after which a run fits."""

    changes: tuple[str, ...]
    """section.field=value; none where more GPUs are the only change."""
    account: Account


def find_advice(account: Account) -> Advice | None:
    """The smallest change that makes a run fit, or None.

    A single change is tried first, the cheapest in time before others; then all of them one after the other; then twice
    as many GPUs, up to eight times.
    """
    single = list(_changes(account.config))
    for changes in [(change,) for change in single] + [tuple(single[:end]) for end in range(2, len(single) + 1)]:
        changed = replace(account, config=_apply(account.config, changes))
        if changed.fits:
            return Advice(changes=_needed(account, changes), account=changed)
    for factor in (2, 4, 8):
        num_gpus = account.machine.num_gpus * factor
        changed = replace(account, machine=replace(account.machine, num_gpus=num_gpus))
        if account.config.schedule.divides(num_ranks=num_gpus) and changed.fits:
            return Advice(changes=(), account=changed)
    return None


def _changes(config: Config) -> Iterator[str]:
    """Changes that save memory and leave the result of training as it is, the cheapest in time first."""
    generation, schedule, engine = config.generation, config.schedule, config.engine
    micro_batch = schedule.micro_batch
    if not config.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true"
    for num_tokens in (8192, 4096):
        if generation.max_batch_tokens > num_tokens:
            yield f"generation.max_batch_tokens={num_tokens}"
    while schedule.micro_tokens is None and micro_batch > 1:
        micro_batch //= 2
        yield f"schedule.micro_batch={micro_batch}"
    if schedule.micro_tokens is not None and schedule.micro_tokens > config.data.max_sequence_tokens:
        yield f"schedule.micro_tokens={config.data.max_sequence_tokens}"
    if generation.keep_weights:
        yield "generation.keep_weights=false"
    if engine.gather != "layer":
        yield "engine.gather=layer"
    for role, stages in (("teacher", (3,)), ("student", (2, 3))):
        for stage in stages:
            if getattr(engine, role) in [_STAGE.format(lower) for lower in range(stage)]:
                yield f"engine.{role}={_STAGE.format(stage)}"
    yield f"engine.teacher={_OFFLOAD}"


def _needed(account: Account, changes: Sequence[str]) -> tuple[str, ...]:
    """The changes without those that a run fits without, and without values that later ones replace."""
    needed = list({change.partition("=")[0]: change for change in changes}.values())
    for change in reversed(needed):
        others = [other for other in needed if other != change]
        if others and replace(account, config=_apply(account.config, others)).fits:
            needed = others
    return tuple(needed)


def _apply(config: Config, changes: Sequence[str]) -> Config:
    for change in changes:
        name, _, text = change.partition("=")
        section, _, field = name.partition(".")
        value = {"true": True, "false": False}.get(text, int(text) if text.isdecimal() else text)
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    return config
