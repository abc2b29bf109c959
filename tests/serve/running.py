"""A real server on this machine, over the analytic model or any other pool, for tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import OpenAI

from lotts_search.serve.config import Config
from lotts_search.serve.local import server
from lotts_search.serve.service import Service
from lotts_search.testing import AnalyticPool
from lotts_search.work.pool import Pool

PROMPT = "red star"


@dataclass
class Running:
    """A server, and clients of it."""

    url: str
    service: Service
    http: httpx2.Client

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def generate(self, **fields: Any) -> httpx2.Response:
        """Answer to a generation of the analytic model."""
        return self.http.post("/v1/images/generations", json={"prompt": PROMPT} | fields)


@contextmanager
def running(pool: Pool | None = None, headers: dict[str, str] | None = None, **config: Any) -> Iterator[Running]:
    """Run a server until the end of the block."""
    pool = pool or AnalyticPool(shuffle=1)
    service = Service(Config(**{"models": [{"name": pool.info.name}]} | config), {pool.info.name: pool})
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        serving = server(service, "127.0.0.1", port)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not serving.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx2.Client(base_url=url, timeout=60, headers=headers) as client:
                yield Running(url, service, client)
        finally:
            serving.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
