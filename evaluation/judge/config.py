"""The configuration of a judged evaluation: the judge, its server, what is judged, and prices."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from kd.config.fields import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Section, option, required
from kd.config.schema import ColumnRole
from kd.errors import UserError

Order = Literal["model_first", "reference_first"]
"""Who is Assistant 1; the paper's is model_first."""


@dataclass(frozen=True, kw_only=True)
class JudgeSection(Section):
    """Everything but the prompt that decides a response of the judge."""

    base_url: str = option("https://api.openai.com/v1", help="server with OpenAI's chat completions interface")
    model: str = required(help="name of the judging model, as the server knows it")
    temperature: NonNegativeFloat = option(0.7, help="of the judge; the paper's is 0.7")
    max_response_tokens: Annotated[int, Field(ge=8)] | None = option(
        None, help="limit of the judge's responses, which begin with the scores; null for none"
    )
    attempts: Count = option(3, help="responses requested until one has scores")

    def __post_init__(self) -> None:
        # It may contain a key: messages do not repeat it.
        try:
            parts = urlsplit(self.base_url)
            is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_complete = False
        if not is_complete:
            raise UserError("judge.base_url: expected http://… or https://…, such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query:
            raise UserError("judge.base_url: leave out password and query; a key comes from the environment only")

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

    key_variable: str = option("OPENAI_API_KEY", help="environment variable of the key")
    requests_per_minute: PositiveFloat = option(60.0, help="limit of all requests together, retries included")
    retries: NonNegativeInt = option(6, help="of a request that fails, times out or is rejected by the rate limit")
    timeout_seconds: PositiveFloat = option(120.0, help="longest wait for a byte of the server")
    concurrency: Count = option(4, help="requests at a time")


@dataclass(frozen=True, kw_only=True)
class PriceSection(Section):
    """Prices in US dollars for a million tokens, and what is expected."""

    input: NonNegativeFloat | None = option(None, help="US dollars for a million input tokens")
    output: NonNegativeFloat | None = option(None, help="US dollars for a million output tokens")
    expected_response_tokens: Count = option(200, help="of the judge, for the estimate")
    max_cost: NonNegativeFloat | None = option(None, help="do not begin if the estimate is above so many US dollars")

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
    evaluations: dict[str, str] = required(help="NAME: directory of evaluate.py; the flag is repeated")
    benchmarks: tuple[str, ...] | None = option(None, help="names of benchmarks; null for all of the first evaluation")
    sources: dict[str, str] | None = option(None, help="BENCHMARK: its file of rows, if it was moved")
    columns: Mapping[ColumnRole, str] | None = option(
        None, help="names of columns, as data.columns in training; null for those of the evaluation"
    )
    seeds: tuple[NonNegativeInt, ...] | None = option(None, help="seeds to judge; null for all")
    rows: Count | None = option(None, help="number of rows, from the start; null for all")
    order: Literal["model_first", "reference_first", "both"] = option(
        "model_first", help="who is Assistant 1; the paper's is model_first"
    )
    dry_run: bool = option(False, help="only print what would be asked, and what it would cost")
    cache: Path | None = option(None, help="directory of the judge's responses; null for out/cache")
    out: Path = required(help="directory for judge.json and judgements/")

    @property
    def orders(self) -> tuple[Order, ...]:
        return ("model_first", "reference_first") if self.order == "both" else (self.order,)
