"""Client of an OpenAI-compatible server: limited rate, retries, and no key in any message or file."""

import asyncio
import importlib.util
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from evaluation.judge.config import ServerSection
from evaluation.judge.responses import JudgeResponse
from kd.errors import UserError

# The longest pause that the client makes when a server asks for one.
_LONGEST_PAUSE_SECONDS = 120.0
_SHOWN_CHARACTERS = 300
# Shorter keys are words for servers that need none, and may be a part of a response.
_SHORTEST_SECRET = 8
# Malformed, too long, unprocessable: a server that works would refuse the same request again.
_REFUSALS = frozenset({400, 413, 422})


class EndpointFailure(Exception):
    """A request without a usable response; the message has the reason, without the key."""

    def __init__(self, reason: str, *, is_refusal: bool = False) -> None:
        """A refusal is about this request, such as a prompt that is too long; else the server failed."""
        super().__init__(reason)
        self.is_refusal = is_refusal


class Endpoint:
    """The server at `base_url`; use it as an async context manager."""

    def __init__(self, base_url: str, *, key: str, server: ServerSection) -> None:
        """Connects to nothing yet.

        Raises:
            UserError: openai is not installed.
        """
        check_openai()
        import openai

        self._key = key
        self._has_secret = len(key) >= _SHORTEST_SECRET
        self._base_url = base_url
        self._server = server
        self._next_start = 0.0
        # Any: the client is an extra, and types what OpenAI's own models take.
        self._client: Any = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            max_retries=server.retries,
            timeout=server.timeout_seconds,
            # A hook of every single HTTP request: the client's own retries keep the rate as well.
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._wait_for_turn]}),
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, prompt: str, *, parameters: Mapping[str, str | float]) -> JudgeResponse:
        """Send one user message, with `parameters` of the chat completions interface.

        Raises:
            EndpointFailure: no usable response to this request.
            UserError: the server refuses the key, or has no such model.
        """
        import openai

        tries = self._server.retries + 1
        try:
            # The client's own timeout restarts with every byte; a server that sends bytes slowly would never time out.
            async with asyncio.timeout(tries * (self._server.timeout_seconds + _LONGEST_PAUSE_SECONDS)):
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

    def _read(self, completion: object) -> JudgeResponse:
        # A server may send anything, and the client does not check that it is a completion.
        choices = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        content = getattr(message, "content", None)
        if message is None or not isinstance(content, str | None):
            raise EndpointFailure("the response is not a chat completion")
        usage = getattr(completion, "usage", None)
        counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        input_tokens, output_tokens = (count if isinstance(count, int) else None for count in counts)
        text = content or ""
        # A secret is removed from responses too: a server that echoes it would bring it into the cache.
        if self._has_secret:
            text = text.replace(self._key, "[key]")
        return JudgeResponse(text=text, input_tokens=input_tokens, output_tokens=output_tokens)

    def _clean(self, error: Exception) -> str:
        # A short key is removed as a word only: its letters may be a part of other words.
        key = re.escape(self._key) if self._has_secret else rf"(?<!\w){re.escape(self._key)}(?!\w)"
        text = " ".join(re.sub(key, "[key]", str(error)).split()) or "timed out"
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"

    async def _wait_for_turn(self, request: object) -> None:
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self._server.requests_per_minute
        await asyncio.sleep(start - now)


def check_openai() -> None:
    """Check that the client is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("openai") is None:
        raise UserError('openai is not installed; pip install -e ".[judge]"')
