"""A small HTTP server on this machine, for tests of clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """A server that answers POST by a function of the decoded request, and GET by ``models``.

    Attributes:
        answer: returns what is sent as JSON, or a status.
        requests: the bodies of all POST requests.
        keys: the headers Authorization of all requests.
    """

    answer: Callable[[Any], Any]
    models: Any = field(default_factory=lambda: {"data": [{"id": "first-model"}]})
    requests: list[Any] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""


def completion(content: Any) -> Any:
    """Return a chat completion with this content."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@contextmanager
def serving(answer: Callable[[Any], Any]) -> Iterator[Server]:
    """Run a server until the end of the block."""
    state = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send(self, body: Any) -> None:
            state.keys.append(self.headers.get("Authorization"))
            status, body = (body, {"error": "no"}) if isinstance(body, int) else (200, body)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.send(state.models)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(asked)
            self.send(state.answer(asked))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
