"""How a model turns its output head's values into logits: most take them as they are."""

from typing import Any

from transformers import PretrainedConfig

from kd.losses.outputs import LogitMap

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Settings of a config.json with the bound of all logits (Gemma 2, RecurrentGemma, xLSTM)."""

FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Settings that the head's values are multiplied by (Cohere, Falcon-H1)."""

DIVISORS = ("logits_scaling",)
"""Settings that the head's values are divided by (Granite)."""


def logit_map(config: PretrainedConfig) -> LogitMap:
    """The map that a model's settings tell.

    Families may read a setting otherwise, or have others: the probe compares the result with the model's own logits.
    """
    text: Any = config.get_text_config()
    scale = 1.0
    for setting in FACTORS:
        scale *= _number(text, setting) or 1.0
    for setting in DIVISORS:
        scale /= _number(text, setting) or 1.0
    caps = [cap for cap in (_number(text, setting) for setting in CAPS) if cap]
    return LogitMap(scale=scale, cap=caps[0] if caps else None)


def _number(config: Any, setting: str) -> float | None:
    value = getattr(config, setting, None)
    return float(value) if isinstance(value, int | float) else None
