"""What asking a judge will cost, before it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

BYTES_PER_TOKEN = 4
"""Of English text under the common tokenizers; a tokenizer of the judge's is not asked for."""
OVERHEAD_TOKENS = 10
"""Of one message in a chat."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """In US dollars for a million tokens."""

    input: float
    output: float

    def cost(self, *, input_tokens: int, output_tokens: int) -> float:
        """In US dollars."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Of the first replies that are not on disk yet; refused replies are asked for again and come on top."""

    num_requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    """In US dollars; None without prices."""

    def __str__(self) -> str:
        text = (
            f"{self.num_requests} requests, about {self.input_tokens} input tokens ({BYTES_PER_TOKEN} bytes each) and"
            f" {self.output_tokens} output tokens"
        )
        return f"{text}: about ${self.cost:.2f}" if self.cost is not None else f"{text}; no prices given"


def estimate_cost(prompts: Sequence[str], *, reply_tokens: int, prices: Prices | None) -> CostEstimate:
    """Add up `prompts`, each answered with `reply_tokens`."""
    num_bytes = sum(len(prompt.encode()) for prompt in prompts)
    input_tokens = -(-num_bytes // BYTES_PER_TOKEN) + OVERHEAD_TOKENS * len(prompts)
    output_tokens = reply_tokens * len(prompts)
    return CostEstimate(
        num_requests=len(prompts),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost=None if prices is None else prices.cost(input_tokens=input_tokens, output_tokens=output_tokens),
    )
