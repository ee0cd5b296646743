"""An OpenAI-compatible server: asked at a limited rate, again after failures, and never with its key in sight."""

import asyncio
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from evaluation.judge.replies import Reply
from kd.errors import UserError

# The longest pause that the client makes when a server asks for one.
_LONGEST_PAUSE_SECONDS = 120.0
_SHOWN_CHARACTERS = 300
# Shorter keys are words for servers that want none, and may well be a part of what they reply.
_SHORTEST_SECRET = 8
# Malformed, too long, not to be processed: the same request would be refused by a server that works.
_REFUSALS = frozenset({400, 413, 422})


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How an endpoint is treated."""

    requests_per_minute: float
    """Of all requests together, those after failures included."""
    retries: int
    """Of a request that fails, times out or is turned away, with growing pauses."""
    timeout_seconds: float
    """Without a byte from the server."""


class EndpointFailure(Exception):
    """A request that stayed without a usable answer; the message says why, without the key."""

    def __init__(self, reason: str, *, is_refusal: bool = False) -> None:
        """A refusal is about this request, such as a prompt that is too long; else the server failed."""
        super().__init__(reason)
        self.is_refusal = is_refusal


class Endpoint:
    """The server at `base_url`; use it as an async context manager."""

    def __init__(self, base_url: str, *, key: str, manners: Manners) -> None:
        """Connects to nothing yet.

        Raises:
            UserError: openai is not installed.
        """
        check_openai()
        import openai

        self._key = key
        self._has_secret = len(key) >= _SHORTEST_SECRET
        self._base_url = base_url
        self._manners = manners
        self._next_start = 0.0
        # Any: the client is an extra, and types what OpenAI's own models take.
        self._client: Any = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            max_retries=manners.retries,
            timeout=manners.timeout_seconds,
            # A hook of every single HTTP request: the client's own retries keep the rate as well.
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._wait_for_turn]}),
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, prompt: str, *, parameters: Mapping[str, str | float]) -> Reply:
        """Send one user message, with `parameters` of the chat completions interface.

        Raises:
            EndpointFailure: no usable answer to this request.
            UserError: the server will not answer any: it refuses the key, or has no such model.
        """
        import openai

        tries = self._manners.retries + 1
        try:
            # The client's own limit begins anew with every byte; a server that trickles would hold it for ever.
            async with asyncio.timeout(tries * (self._manners.timeout_seconds + _LONGEST_PAUSE_SECONDS)):
                completion = await self._client.chat.completions.create(
                    messages=[{"role": "user", "content": prompt}],
                    **parameters,
                )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"{self._base_url}: {self._clean(error)}; check --base-url, --judge and the key, then run again"
            ) from None
        except (openai.OpenAIError, ValueError, TimeoutError) as error:
            is_refusal = isinstance(error, openai.APIStatusError) and error.status_code in _REFUSALS
            raise EndpointFailure(self._clean(error), is_refusal=is_refusal) from None
        return self._read(completion)

    def _read(self, completion: object) -> Reply:
        # A server may send anything; the client passes on what does not look like a completion.
        choices = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        content = getattr(message, "content", None)
        if message is None or not isinstance(content, str | None):
            raise EndpointFailure("the answer is not a chat completion")
        usage = getattr(completion, "usage", None)
        counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        input_tokens, output_tokens = (count if isinstance(count, int) else None for count in counts)
        text = content or ""
        # A secret is taken out of replies too: a server that echoes it would bring it into the cache.
        if self._has_secret:
            text = text.replace(self._key, "[key]")
        return Reply(text=text, input_tokens=input_tokens, output_tokens=output_tokens)

    def _clean(self, error: Exception) -> str:
        # Of a short key, not each letter that it shares with the message.
        key = re.escape(self._key) if self._has_secret else rf"(?<!\w){re.escape(self._key)}(?!\w)"
        text = " ".join(re.sub(key, "[key]", str(error)).split()) or "timed out"
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"

    async def _wait_for_turn(self, request: object) -> None:
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self._manners.requests_per_minute
        await asyncio.sleep(start - now)


def check_openai() -> None:
    """Check that the client is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("openai") is None:
        raise UserError('openai is not installed; pip install -e ".[judge]"')


def check_base_url(url: str) -> None:
    """Check that a URL can be asked and written into results.

    Raises:
        UserError: not http(s), or with a password or a query, which may hold a key.
    """
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete:
        raise UserError("--base-url: expected http://… or https://…, such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError("--base-url: leave out password and query; a key comes from the environment only")
