"""Requests with retries, and the OpenAI-compatible chat interface of vLLM, SGLang, LocalAI and others."""

from __future__ import annotations

import base64
import io
import random
import time
from typing import Any, Literal

import httpx2 as httpx
from PIL import Image

from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bytes

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes after which a request is retried."""


class Client:
    """Sends JSON to an address; may be used by many threads.

    Args:
        base_url: begins with http:// or https://.
        timeout: seconds for all tries of a request together.
        retries: further tries after a refused or lost connection, a timeout or a temporary error status.
        parallel: most connections.
        key: sent as a bearer token; "" = none.

    Raises:
        BadInput: a wrong address or number.
    """

    def __init__(self, base_url: str, timeout: float = 60.0, retries: int = 2, parallel: int = 8, key: str = ""):
        if not base_url.startswith(("http://", "https://")):
            raise BadInput(f"the address of an endpoint must begin with http:// or https://, not {base_url!r}")
        if not (timeout > 0 and retries >= 0 and parallel >= 1):
            raise BadInput(
                f"timeout must be above 0, retries 0 or more and parallel 1 or more, not {timeout}, {retries}, {parallel}"
            )
        self.base_url, self.timeout, self.retries = base_url.rstrip("/"), timeout, retries
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, limits=httpx.Limits(max_connections=parallel))

    def deadline(self) -> float:
        """Return the monotonic time until which a request that begins now may take."""
        return time.monotonic() + self.timeout

    def send(self, method: str, path: str, until: float, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send a request, with retries and growing waits after temporary errors while there is time.

        Raises:
            Failure: no answer in time.
        """
        url = f"{self.base_url}/{path}" if path else self.base_url
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

    def first_model(self, until: float) -> str:
        """Return the name of the first model that the endpoint offers.

        Raises:
            Failure: the endpoint does not answer, or with an error.
            ValueError: it offers none.
        """
        offered = checked(self.send("GET", "models", until)).json()
        try:
            return str(offered["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.base_url} offers no model: {str(offered)[:200]}") from error


def checked(answer: httpx.Response) -> httpx.Response:
    """Return an answer; raise Failure if its status is an error."""
    if not answer.is_success:
        raise Failure(f"{answer.url}: status {answer.status_code}: {answer.text[:200]}")
    return answer


def choice(answer: httpx.Response) -> dict[str, Any]:
    """Return the first choice of a chat completion.

    Raises:
        Failure: the status is an error.
        ValueError: the answer is not a chat completion.
    """
    reply = checked(answer).json()
    try:
        found: dict[str, Any] = reply["choices"][0]
        found["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the reply is not a chat completion: {str(reply)[:200]}") from error
    return found


def encoded(image: Bytes, side: int | None = None, format: Literal["png", "jpeg"] = "png") -> str:
    """Return an image [h, w, 3] as base64, scaled down to at most ``side`` pixels on the longer side."""
    shown = Image.fromarray(image)
    if side is not None:
        shown.thumbnail((side, side))
    stream = io.BytesIO()
    shown.save(stream, format.upper(), **({"quality": 95} if format == "jpeg" else {}))
    return base64.b64encode(stream.getvalue()).decode()


def user_message(text: str, image: Bytes, side: int, format: Literal["png", "jpeg"] = "png") -> dict[str, Any]:
    """Return a message of the user with a text and an image."""
    url = f"data:image/{format};base64,{encoded(image, side, format)}"
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}],
    }
