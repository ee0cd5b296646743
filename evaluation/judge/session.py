"""Asks a judge about prompts until each has scores, has been refused too often, or gets no answer."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.judge.endpoint import Endpoint, EndpointFailure
from evaluation.judge.replies import Reply, ReplyCache, Scores, parse_scores
from kd.errors import UserError

_FEWEST_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Everything but the prompt that decides a reply."""

    base_url: str
    model: str
    temperature: float
    max_reply_tokens: int | None
    """Replies are cut there; the scores come first."""
    attempts: int
    """Replies asked for, while the last one does not begin with two scores."""

    @property
    def parameters(self) -> dict[str, str | float]:
        """As the chat completions interface calls them."""
        limit = {} if self.max_reply_tokens is None else {"max_tokens": self.max_reply_tokens}
        return {"model": self.model, "temperature": self.temperature, **limit}

    def request(self, prompt: str, *, attempt: int) -> dict[str, object]:
        """The key of a reply: later attempts are other draws."""
        return {"base_url": self.base_url, **self.parameters, "prompt": prompt, "attempt": attempt}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How it ended for one prompt."""

    status: Literal["judged", "rejected", "unanswered"]
    """With scores; without, after all attempts; without a usable answer of the server to one of them."""
    scores: Scores | None = None
    replies: tuple[Reply, ...] = ()
    """All that came, which were paid for whether they have scores or not."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A prompt that needs one more reply."""

    replies: tuple[Reply, ...]
    """Those it has, none of them with scores."""

    @property
    def attempt(self) -> int:
        return len(self.replies)


class Session:
    """One judge and the replies it has given so far."""

    def __init__(self, judge: Judge, *, cache: ReplyCache) -> None:
        self._judge = judge
        self._cache = cache
        self.num_asked = 0
        """Replies received and paid by this session."""
        self._failures_in_a_row = 0

    def standing(self, prompt: str) -> Verdict | Pending:
        """What the replies on disk say about a prompt."""
        replies: list[Reply] = []
        for attempt in range(self._judge.attempts):
            reply = self._cache.find(self._judge.request(prompt, attempt=attempt))
            if reply is None:
                return Pending(replies=tuple(replies))
            replies.append(reply)
            scores = parse_scores(reply.text)
            if scores is not None:
                return Verdict(status="judged", scores=scores, replies=tuple(replies))
        reason = f"no reply begins with two scores; the last: {replies[-1].text[:80]!r}"
        return Verdict(status="rejected", replies=tuple(replies), reason=reason)

    async def judge_all(
        self, prompts: Sequence[str], *, endpoint: Endpoint, concurrency: int, on_verdict: Callable[[], object]
    ) -> dict[str, Verdict]:
        """Verdicts on different `prompts`, asked `concurrency` at a time; every reply is on disk as soon as it is here.

        Raises:
            UserError: the server refuses the key or the model, or fails again and again.
        """
        slots = asyncio.Semaphore(concurrency)
        patience = max(_FEWEST_FAILURES, 2 * concurrency)

        async def judge(prompt: str) -> Verdict:
            async with slots:
                verdict = await self._verdict(prompt, endpoint=endpoint, patience=patience)
            on_verdict()
            return verdict

        tasks = [asyncio.create_task(judge(prompt)) for prompt in prompts]
        try:
            verdicts = await asyncio.gather(*tasks)
        finally:
            # Where one of them gave up, the others must end before their connections do.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return dict(zip(prompts, verdicts, strict=True))

    async def _verdict(self, prompt: str, *, endpoint: Endpoint, patience: int) -> Verdict:
        while isinstance(standing := self.standing(prompt), Pending):
            try:
                reply = await endpoint.ask(prompt, parameters=self._judge.parameters)
            except EndpointFailure as failure:
                if not failure.is_refusal:
                    self._count(failure, patience=patience)
                return Verdict(status="unanswered", replies=standing.replies, reason=str(failure))
            self._failures_in_a_row = 0
            self.num_asked += 1
            self._cache.keep(self._judge.request(prompt, attempt=standing.attempt), reply)
        return standing

    def _count(self, failure: EndpointFailure, *, patience: int) -> None:
        """Give up after `patience` failures of the server without a reply between them."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= patience:
            raise UserError(
                f"{self._judge.base_url}: {patience} requests in a row failed, the last with: {failure};"
                " replies so far are kept, the same command goes on from there"
            ) from None
