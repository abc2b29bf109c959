"""Rewrite prompts with a vision-language model behind an OpenAI-compatible endpoint: vLLM, SGLang, LocalAI, …"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lotts_search.endpoints.client import Client, choice, user_message
from lotts_search.errors import BadInput
from lotts_search.rewriters.instructions import SYSTEM, question, read_reply
from lotts_search.work.requests import Rewrite


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
        key = os.environ.get("LOTTS_REWRITER_KEY", "")
        self._client = Client(self.base_url, self.timeout, self.retries, self.parallel, key)

    def rewrite(self, requests: Sequence[Rewrite]) -> list[list[str]]:
        """Send the requests one after another; the runner makes parallel calls.

        Raises:
            Failure: the endpoint cannot be reached in time, or answers with an error.
            ValueError: the reply contains no prompts.
        """
        return [self._ask(request) for request in requests]

    def _ask(self, work: Rewrite) -> list[str]:
        until = self._client.deadline()
        self.model = self.model or self._client.first_model(until)
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": SYSTEM}, user_message(question(work), work.image, self.side)],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": work.seed % 2**31,
        }
        format = {"response_format": {"type": "json_object"}} if self.json_mode else {}
        answer = self._client.send("POST", "chat/completions", until, body | format)
        if answer.status_code in (400, 422) and format:
            answer = self._client.send("POST", "chat/completions", until, body)
            self.json_mode = not answer.is_success
        text = choice(answer)["message"]["content"]
        return read_reply(text if isinstance(text, str) else "")
