"""Feedback of a language model on the responses of evaluate.py, relative to the references (Table 6 of the paper).

export OPENAI_API_KEY=…
python -m evaluation.judge --judge gpt-4 --evaluation promptkd=runs/a/evaluation --benchmark dolly --out runs/judge \\
    --price-input 30 --price-output 60 --dry-run

Works with any server that has OpenAI's chat completions interface (--base-url). Every response of the judge is written
to the cache when it arrives: the same command resumes after an interruption, and pays for nothing twice. Writes
judge.json and judgements/ (docs/analysis.md has the keys). The exit code is 1 if some comparisons are unanswered.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from evaluation.command import Command
from evaluation.judge.comparisons import read_comparisons, read_sources
from evaluation.judge.config import JudgeConfig
from evaluation.judge.endpoint import Endpoint, check_openai
from evaluation.judge.report import write_report
from evaluation.judge.responses import ResponseCache
from evaluation.judge.session import Judgement, Session
from kd.errors import UserError

INTERRUPTED = 130
COMMAND = Command(
    config=JudgeConfig,
    program="python -m evaluation.judge",
    description=__doc__,
    flags={
        "judge.model": "--judge",
        "price.input": "--price-input",
        "price.output": "--price-output",
        "evaluations": "--evaluation",
        "benchmarks": "--benchmark",
        "sources": "--data",
    },
)
BYTES_PER_TOKEN = 4
"""Of English text under the common tokenizers; the judge's own tokenizer is not used."""
OVERHEAD_TOKENS = 10
"""Of one message in a chat."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of requests and responses, and their cost in US dollars; None without prices."""

    num_requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "no prices given" if self.cost is None else f"about ${self.cost:.2f}"
        return (
            f"{self.num_requests} requests, about {self.input_tokens} input tokens ({BYTES_PER_TOKEN} bytes each) and"
            f" {self.output_tokens} output tokens: {cost}"
        )


def estimate_usage(prompts: Sequence[str], *, config: JudgeConfig) -> Usage:
    """The usage of the first attempt at each prompt."""
    response_tokens = min(config.price.expected_response_tokens, config.judge.max_response_tokens or sys.maxsize)
    num_bytes = sum(len(prompt.encode()) for prompt in prompts)
    input_tokens = -(-num_bytes // BYTES_PER_TOKEN) + OVERHEAD_TOKENS * len(prompts)
    output_tokens = response_tokens * len(prompts)
    cost = config.price.cost(input_tokens=input_tokens, output_tokens=output_tokens)
    return Usage(num_requests=len(prompts), input_tokens=input_tokens, output_tokens=output_tokens, cost=cost)


def judge(config: JudgeConfig) -> int:
    """Judge the comparisons that are not in the cache, write the results, and return how many are unanswered.

    Raises:
        UserError: unusable input, no key, a cost above the limit, or a server that does not work.
    """
    check_openai()
    sources = _sources(config)
    comparisons = [
        comparison
        for model, out in config.evaluations.items()
        for benchmark, source in sources.items()
        for comparison in read_comparisons(
            model,
            Path(out),
            benchmark=benchmark,
            source=source,
            columns=config.columns,
            seeds=config.seeds,
            num_rows=config.rows,
            orders=config.orders,
        )
    ]
    session = Session(config.judge, cache=ResponseCache(config.cache or config.out / "cache"))
    # Equal prompts, such as those of a greedy model's seeds, are judged once.
    prompts = list(dict.fromkeys(comparison.prompt for comparison in comparisons))
    judgements = {prompt: session.look_up(prompt) for prompt in prompts}
    open_prompts = [prompt for prompt, state in judgements.items() if state.status == "pending"]
    estimate = estimate_usage(open_prompts, config=config)
    print(f"{len(comparisons)} comparisons, {len(prompts)} different prompts; to ask: {estimate}")
    if config.dry_run:
        return 0
    limit = config.price.max_cost
    if limit is not None and estimate.cost is not None and estimate.cost > limit:
        raise UserError(
            f"asking would cost about ${estimate.cost:.2f}, more than --max-cost {limit:g}; raise it,"
            " or judge fewer --rows, --seeds or --benchmark"
        )
    judgements |= asyncio.run(_judge_open(config, session, open_prompts)) if open_prompts else {}
    judged = [(comparison, judgements[comparison.prompt]) for comparison in comparisons]
    write_report(judged, config=config, sources=sources, num_asked=session.num_asked)
    return sum(judgement.status == "unanswered" for _, judgement in judged)


def _sources(config: JudgeConfig) -> dict[str, str]:
    """The file of rows of each benchmark to judge, which all evaluations must have."""
    found = {out: read_sources(Path(out)) for out in config.evaluations.values()}
    first = next(iter(found.values()))
    names = config.benchmarks or tuple(first)
    for out, sources in found.items():
        for name in names:
            if name not in sources:
                listed = ", ".join(sources) or "none"
                raise UserError(f"{out}: has no benchmark {name}, it has {listed}; give --benchmark")
    moved = config.sources or {}
    for name in moved:
        if name not in names:
            raise UserError(f"--data {name}=…: judged are {', '.join(names) or 'no benchmarks'}; give the name of one")
    return {name: moved.get(name, first[name]) for name in names}


async def _judge_open(config: JudgeConfig, session: Session, prompts: Sequence[str]) -> dict[str, Judgement]:
    variable = config.server.key_variable
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {variable} is not set; put the key there (for a server without keys, any word)"
        )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=len(prompts))
        async with Endpoint(config.judge.base_url.rstrip("/"), key=key, server=config.server) as endpoint:
            return await session.judge_all(
                prompts,
                endpoint=endpoint,
                concurrency=config.server.concurrency,
                on_judgement=lambda: progress.advance(task),
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    try:
        return COMMAND.run(lambda config: 1 if judge(config) else 0, argv)
    except KeyboardInterrupt:
        print("interrupted; the judge's responses so far are kept, the same command resumes", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
