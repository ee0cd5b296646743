"""The configuration of a judged evaluation: the judge, its server, what is judged, and prices."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from evaluation.command import flag
from kd.config.fields import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Section, help_text
from kd.errors import UserError

Order = Literal["model_first", "reference_first"]
"""Who is Assistant 1; the paper's is model_first."""


@dataclass(frozen=True, kw_only=True)
class JudgeSection(Section):
    """Everything but the prompt that decides a response of the judge."""

    base_url: str = field(
        default="https://api.openai.com/v1", metadata=help_text("server with OpenAI's chat completions interface")
    )
    model: str = field(metadata=flag("--judge", "name of the judging model, as the server knows it"))
    temperature: NonNegativeFloat = field(default=0.7, metadata=help_text("of the judge; the paper's is 0.7"))
    max_response_tokens: Annotated[int, Field(ge=8)] | None = field(
        default=None, metadata=help_text("limit of the judge's responses, which begin with the scores; null for none")
    )
    attempts: Count = field(default=3, metadata=help_text("responses requested until one has scores"))

    def __post_init__(self) -> None:
        _check_base_url(self.base_url)

    @property
    def parameters(self) -> dict[str, str | float]:
        """Parameters of the chat completions interface."""
        limit = {} if self.max_response_tokens is None else {"max_tokens": self.max_response_tokens}
        return {"model": self.model, "temperature": self.temperature, **limit}

    def request(self, prompt: str, *, attempt: int) -> dict[str, object]:
        """The key of a response in the cache: later attempts are other draws."""
        url = self.base_url.rstrip("/")
        return {"base_url": url, **self.parameters, "prompt": prompt, "attempt": attempt}


@dataclass(frozen=True, kw_only=True)
class ServerSection(Section):
    """How the server is treated."""

    key_variable: str = field(default="OPENAI_API_KEY", metadata=help_text("environment variable of the key"))
    requests_per_minute: PositiveFloat = field(
        default=60.0, metadata=help_text("limit of all requests together, retries included")
    )
    retries: NonNegativeInt = field(
        default=6, metadata=help_text("of a request that fails, times out or is rejected by the rate limit")
    )
    timeout_seconds: PositiveFloat = field(default=120.0, metadata=help_text("longest wait for a byte of the server"))
    concurrency: Count = field(default=4, metadata=help_text("requests at a time"))


@dataclass(frozen=True, kw_only=True)
class PriceSection(Section):
    """Prices in US dollars for a million tokens, and what is expected."""

    input: NonNegativeFloat | None = field(
        default=None, metadata=flag("--price-input", "US dollars for a million input tokens")
    )
    output: NonNegativeFloat | None = field(
        default=None, metadata=flag("--price-output", "US dollars for a million output tokens")
    )
    expected_response_tokens: Count = field(default=200, metadata=help_text("of the judge, for the estimate"))
    max_cost: NonNegativeFloat | None = field(
        default=None, metadata=help_text("do not begin if the estimate is above so many US dollars")
    )

    def __post_init__(self) -> None:
        if (self.input is None) != (self.output is None):
            raise UserError("price.input and price.output belong together; give both or none")
        if self.max_cost is not None and self.input is None:
            raise UserError("price.max_cost needs price.input and price.output")

    def cost(self, *, input_tokens: int, output_tokens: int) -> float | None:
        """In US dollars; None without prices."""
        if self.input is None or self.output is None:
            return None
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section):
    """What to judge, by which model, and how to treat the server."""

    judge: JudgeSection
    server: ServerSection
    price: PriceSection
    evaluations: dict[str, str] = field(
        metadata=flag("--evaluation", "NAME: directory of evaluate.py; the flag is repeated")
    )
    benchmarks: tuple[str, ...] | None = field(
        default=None, metadata=flag("--benchmark", "names of benchmarks; null for all of the first evaluation")
    )
    sources: dict[str, str] | None = field(
        default=None, metadata=flag("--data", "BENCHMARK: its file of rows, if it was moved")
    )
    seeds: tuple[NonNegativeInt, ...] | None = field(default=None, metadata=help_text("seeds to judge; null for all"))
    rows: Count | None = field(default=None, metadata=help_text("number of rows, from the start; null for all"))
    order: Literal["model_first", "reference_first", "both"] = field(
        default="model_first", metadata=help_text("who is Assistant 1; the paper's is model_first")
    )
    dry_run: bool = field(default=False, metadata=help_text("only print what would be asked, and what it would cost"))
    cache: Path | None = field(
        default=None, metadata=help_text("directory of the judge's responses; null for out/cache")
    )
    out: Path = field(metadata=help_text("directory for judge.json and judgements/"))

    @property
    def orders(self) -> tuple[Order, ...]:
        return ("model_first", "reference_first") if self.order == "both" else (self.order,)


def _check_base_url(url: str) -> None:
    """Refuse a URL that cannot be asked, or that may contain a key; messages do not repeat it."""
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete:
        raise UserError("judge.base_url: expected http://… or https://…, such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError("judge.base_url: leave out password and query; a key comes from the environment only")
