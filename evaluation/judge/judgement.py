"""All comparisons of some evaluations: what is answered already, what asking costs, and the asking."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from evaluation.judge.comparisons import Evaluation, Order, read_comparisons
from evaluation.judge.endpoint import Endpoint, Manners
from evaluation.judge.estimate import CostEstimate, Prices, estimate_cost
from evaluation.judge.replies import ReplyCache
from evaluation.judge.report import write_report
from evaluation.judge.session import Judge, Pending, Session, Verdict
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to judge, by whom, and how to treat the server."""

    judge: Judge
    manners: Manners
    concurrency: int
    key_variable: str
    evaluations: tuple[Evaluation, ...]
    benchmarks: tuple[str, ...]
    sources: Mapping[str, str]
    """By benchmark, where another file than the evaluation's is named."""
    seeds: tuple[int, ...] | None
    rows: int | None
    orders: tuple[Order, ...]
    prices: Prices | None
    expected_reply_tokens: int
    max_cost: float | None
    dry_run: bool
    cache: Path
    out: Path


def judge(options: Options) -> int:
    """Ask what is not answered yet, write the results, and return the number of comparisons without an answer.

    Raises:
        UserError: unusable input, no key, a cost above the limit, or a server that does not work.
    """
    sources = _sources(options)
    comparisons = [
        comparison
        for evaluation in options.evaluations
        for name, source in sources.items()
        for comparison in read_comparisons(
            evaluation,
            benchmark=name,
            source=source,
            seeds=options.seeds,
            num_rows=options.rows,
            orders=options.orders,
        )
    ]
    session = Session(options.judge, cache=ReplyCache(options.cache))
    # Equal prompts, such as those of a greedy model's seeds, are asked once.
    prompts = list(dict.fromkeys(comparison.prompt for comparison in comparisons))
    standing = {prompt: session.standing(prompt) for prompt in prompts}
    open_prompts = [prompt for prompt, state in standing.items() if isinstance(state, Pending)]
    estimate = estimate_cost(open_prompts, reply_tokens=options.expected_reply_tokens, prices=options.prices)
    print(f"{len(comparisons)} comparisons, {len(prompts)} different prompts; to ask: {estimate}")
    if options.dry_run:
        return 0
    _check_cost(estimate, options)
    verdicts = {prompt: state for prompt, state in standing.items() if isinstance(state, Verdict)}
    verdicts |= asyncio.run(_ask(options, session, open_prompts)) if open_prompts else {}
    judged = [(comparison, verdicts[comparison.prompt]) for comparison in comparisons]
    write_report(
        judged,
        judge=options.judge,
        orders=options.orders,
        sources=sources,
        prices=options.prices,
        num_asked=session.num_asked,
        out=options.out,
    )
    return sum(verdict.status == "unanswered" for _, verdict in judged)


def _sources(options: Options) -> dict[str, str]:
    """The file of rows of each benchmark to judge, which all evaluations must have."""
    found = [(evaluation, evaluation.sources()) for evaluation in options.evaluations]
    names = options.benchmarks or tuple(found[0][1])
    for evaluation, sources in found:
        for name in names:
            if name not in sources:
                known = ", ".join(sources) or "none"
                raise UserError(f"{evaluation.directory}: has no benchmark {name}, it has {known}; give --benchmark")
    for name in options.sources:
        if name not in names:
            raise UserError(f"--data {name}=…: judged are {', '.join(names) or 'no benchmarks'}; give the name of one")
    return {name: options.sources.get(name, found[0][1][name]) for name in names}


def _check_cost(estimate: CostEstimate, options: Options) -> None:
    if options.max_cost is not None and estimate.cost is not None and estimate.cost > options.max_cost:
        raise UserError(
            f"asking would cost about ${estimate.cost:.2f}, more than --max-cost {options.max_cost:g}; raise it,"
            " or judge fewer --rows, --seeds or --benchmark"
        )


async def _ask(options: Options, session: Session, prompts: Sequence[str]) -> dict[str, Verdict]:
    key = os.environ.get(options.key_variable, "")
    if not key.strip():
        raise UserError(
            f"the environment variable {options.key_variable} is not set; put the key there (for a server without"
            " keys, any word)"
        )
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=len(prompts))
        async with Endpoint(options.judge.base_url, key=key.strip(), manners=options.manners) as endpoint:
            return await session.judge_all(
                prompts, endpoint=endpoint, concurrency=options.concurrency, on_verdict=lambda: progress.advance(task)
            )
