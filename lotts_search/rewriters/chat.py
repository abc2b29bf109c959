"""Rewrite prompts with a vision-language model behind an OpenAI-compatible endpoint: vLLM, SGLang, LocalAI, …"""

from __future__ import annotations

import base64
import io
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx2 as httpx
from PIL import Image

from lotts_search.errors import BadInput, Failure
from lotts_search.rewriters.instructions import SYSTEM, question, read_reply
from lotts_search.work.requests import Bytes, Rewrite

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes after which a request is retried."""


def _setting(name: str, default: str) -> Any:
    return field(default_factory=lambda: os.environ.get(name) or default)


@dataclass
class ChatRewriter:
    """Send the image as a PNG to ``POST {base_url}/chat/completions``.

    The key is read from the environment variable ``LOTTS_REWRITER_KEY`` only, so that no record contains it.

    Attributes:
        base_url: address of the endpoint, e.g. http://127.0.0.1:8000/v1; LOTTS_REWRITER_URL by default.
        model: name of the model; by default LOTTS_REWRITER_MODEL, or the first model that the endpoint offers.
        timeout: seconds for all tries of a request together.
        retries: further tries after a refused or lost connection, a timeout or a temporary error status.
        temperature: sampling temperature, 0 or more.
        max_tokens: maximum tokens per reply.
        side: longer side in pixels to which larger images are scaled down.
        parallel: concurrent requests.
        json_mode: request JSON by ``response_format``; dropped once the endpoint refuses it.
    """

    base_url: str = _setting("LOTTS_REWRITER_URL", "http://127.0.0.1:8000/v1")
    model: str = _setting("LOTTS_REWRITER_MODEL", "")
    timeout: float = 60.0
    retries: int = 2
    temperature: float = 0.7
    max_tokens: int = 1024
    side: int = 768
    parallel: int = 8
    json_mode: bool = True

    requirements: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise BadInput(f"base_url must begin with http:// or https://, not {self.base_url!r}")
        for name, least in (("retries", 0), ("max_tokens", 1), ("side", 1), ("parallel", 1), ("temperature", 0)):
            if not getattr(self, name) >= least:
                raise BadInput(f"{name} of a rewriter must be {least} or more, not {getattr(self, name)}")
        key = os.environ.get("LOTTS_REWRITER_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, limits=httpx.Limits(max_connections=self.parallel))

    def rewrite(self, requests: Sequence[Rewrite]) -> list[list[str]]:
        """Send the requests one after another; the runner makes parallel calls.

        Raises:
            Failure: the endpoint cannot be reached in time, or answers with an error.
            ValueError: the reply contains no prompts.
        """
        return [self._ask(request) for request in requests]

    def _ask(self, work: Rewrite) -> list[str]:
        until = time.monotonic() + self.timeout
        body = {
            "model": self.model or self._first_model(until),
            "messages": [
                {"role": "system", "content": SYSTEM},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": question(work)},
                        {"type": "image_url", "image_url": {"url": _data_url(work.image, self.side)}},
                    ],
                },
            ],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": work.seed % 2**31,
        }
        format = {"response_format": {"type": "json_object"}} if self.json_mode else {}
        answer = self._send("POST", "chat/completions", until, body | format)
        if answer.status_code in (400, 422) and format:
            answer = self._send("POST", "chat/completions", until, body)
            self.json_mode = not answer.is_success
        reply = _checked(answer).json()
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the reply is not a chat completion: {str(reply)[:200]}") from error
        return read_reply(text if isinstance(text, str) else "")

    def _first_model(self, until: float) -> str:
        offered = _checked(self._send("GET", "models", until)).json()
        try:
            self.model = str(offered["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.base_url} offers no model: {str(offered)[:200]}") from error
        return self.model

    def _send(self, method: str, path: str, until: float, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send a request, with retries after temporary errors while there is time."""
        url = f"{self.base_url.rstrip('/')}/{path}"
        for tried in range(self.retries + 1):
            left = until - time.monotonic()
            if left <= 0:
                raise Failure(f"{url} did not answer within {self.timeout:g} s")
            wait = 0.25 * 2**tried * random.uniform(0.5, 1.5)
            try:
                answer = self._client.request(method, url, json=body, timeout=left)
            except httpx.TransportError as error:
                problem = f"{url}: {type(error).__name__}: {error}"
            else:
                if answer.status_code not in RETRIED or tried == self.retries:
                    return answer
                problem = f"{url}: status {answer.status_code}"
                after = answer.headers.get("Retry-After", "")
                wait = float(after) if after.isdigit() else wait
            if tried == self.retries or time.monotonic() + wait >= until:
                raise Failure(problem)
            time.sleep(wait)
        raise AssertionError("unreachable")


def _checked(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        raise Failure(f"{answer.url}: status {answer.status_code}: {answer.text[:200]}")
    return answer


def _data_url(image: Bytes, side: int) -> str:
    shown = Image.fromarray(image)
    shown.thumbnail((side, side))
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
