"""A server with the chat completions interface that does what a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Behavior:
    """What the server does with one request."""

    text: str | None = None
    """Content of a proper completion."""
    status: int = 200
    body: str | None = None
    """Instead of a completion."""
    headers: dict[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0
    drops: bool = False
    """Closes the connection without a response."""
    trickles: bool = False
    """Sends a space repeatedly, without end."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to the server."""

    content: dict[str, Any]
    authorization: str
    seconds: float
    """Time of arrival, on a monotonic clock."""
    num_before: int
    """Requests with the same prompt before this one."""

    @property
    def prompt(self) -> str:
        return str(self.content["messages"][0]["content"])


Script = Callable[[Request], Behavior]


class JudgeServer(ThreadingHTTPServer):
    """Listens on loopback; `requests` are all that came in, `most_at_once` how many of them together."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[Request] = []
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.num_open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that timed out has left; nobody needs a traceback of that."""


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            prompt = content["messages"][0]["content"]
            request = Request(
                content=content,
                authorization=self.headers["Authorization"],
                seconds=time.monotonic(),
                num_before=sum(one.prompt == prompt for one in server.requests),
            )
            server.requests.append(request)
            server.num_open += 1
            server.most_at_once = max(server.most_at_once, server.num_open)
        answer = server.script(request)
        time.sleep(answer.wait_seconds)
        with server.lock:
            server.num_open -= 1
        if answer.drops:
            self.connection.close()
            return
        if answer.trickles:
            self._trickle()
            return
        body = answer.body if answer.body is not None else json.dumps(_completion(answer.text, content["model"]))
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def _trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        # Until the client leaves, which breaks the pipe.
        for _ in range(200):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _completion(text: str | None, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


@contextmanager
def serve(script: Script) -> Iterator[JudgeServer]:
    """Run a server in a thread for as long as the context lasts."""
    with JudgeServer(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
