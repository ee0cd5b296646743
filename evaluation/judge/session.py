"""Sends prompts to a judge until each has scores, is rejected after all attempts, or gets no response."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.judge.config import JudgeSection
from evaluation.judge.endpoint import Endpoint, EndpointFailure
from evaluation.judge.responses import JudgeResponse, ResponseCache, Scores, parse_scores
from kd.errors import UserError

_FEWEST_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The state of one prompt."""

    status: Literal["pending", "judged", "rejected", "unanswered"]
    """A response is still to be requested; scores; none after all attempts; no usable response of the server."""
    scores: Scores | None = None
    responses: tuple[JudgeResponse, ...] = ()
    """All responses of the judge; they are paid for, with or without scores."""
    reason: str = ""


class Session:
    """One judge and the responses it has given so far."""

    def __init__(self, judge: JudgeSection, *, cache: ResponseCache) -> None:
        self._judge = judge
        self._cache = cache
        self.num_asked = 0
        """Responses received and paid by this session."""
        self._failures_in_a_row = 0

    def look_up(self, prompt: str) -> Judgement:
        """The state of a prompt, from the responses in the cache."""
        responses: list[JudgeResponse] = []
        for attempt in range(self._judge.attempts):
            response = self._cache.find(self._judge.request(prompt, attempt=attempt))
            if response is None:
                return Judgement(status="pending", responses=tuple(responses))
            responses.append(response)
            scores = parse_scores(response.text)
            if scores is not None:
                return Judgement(status="judged", scores=scores, responses=tuple(responses))
        reason = f"no response begins with two scores; the last: {responses[-1].text[:80]!r}"
        return Judgement(status="rejected", responses=tuple(responses), reason=reason)

    async def judge_all(
        self, prompts: Sequence[str], *, endpoint: Endpoint, concurrency: int, on_judgement: Callable[[], object]
    ) -> dict[str, Judgement]:
        """Judge different `prompts`, `concurrency` at a time; every response is written when it arrives.

        Raises:
            UserError: the server refuses the key or the model, or fails again and again.
        """
        slots = asyncio.Semaphore(concurrency)
        patience = max(_FEWEST_FAILURES, 2 * concurrency)

        async def judge(prompt: str) -> Judgement:
            async with slots:
                judgement = await self._judge_prompt(prompt, endpoint=endpoint, patience=patience)
            on_judgement()
            return judgement

        tasks = [asyncio.create_task(judge(prompt)) for prompt in prompts]
        try:
            judgements = await asyncio.gather(*tasks)
        finally:
            # If one of them gave up, the others must end before their connections do.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return dict(zip(prompts, judgements, strict=True))

    async def _judge_prompt(self, prompt: str, *, endpoint: Endpoint, patience: int) -> Judgement:
        while (state := self.look_up(prompt)).status == "pending":
            try:
                response = await endpoint.ask(prompt, parameters=self._judge.parameters)
            except EndpointFailure as failure:
                self._failures_in_a_row += not failure.is_refusal
                if self._failures_in_a_row >= patience:
                    raise UserError(
                        f"{self._judge.base_url}: {patience} requests in a row failed, the last with: {failure};"
                        " the judge's responses so far are kept, the same command resumes"
                    ) from None
                return Judgement(status="unanswered", responses=state.responses, reason=str(failure))
            self._failures_in_a_row = 0
            self.num_asked += 1
            self._cache.keep(self._judge.request(prompt, attempt=len(state.responses)), response)
        return state
