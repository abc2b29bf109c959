"""Requests to the endpoint, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import urlsplit

HERE = "http://127.0.0.1:8000"
SILENCE_S = 120
"""Seconds without a sign of life after which a server counts as gone; it sends one every 10 s."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirection: the key and the image were meant for this server."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def address(server: str | None) -> str:
    """Return the URL of a server, without a slash at its end; empty = ``$LOTTS_URL``, or this machine.

    Raises:
        ValueError: it is no HTTP address.
    """
    url = (server or "").strip() or _own()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"server must be an address such as {HERE}, not {url!r}")
    return url.rstrip("/")


def _own() -> str:
    return os.environ.get("LOTTS_URL", "").strip() or HERE


def generate(server: str, fields: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
    """Yield the events of a generation.

    Raises:
        RuntimeError: the server refuses, fails or does not answer.
    """
    body = json.dumps({**fields, "stream": True}).encode()
    return _events(server, "/v1/images/generations", body, "application/json")


def edit(server: str, fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Generator[dict[str, Any], None, None]:
    """Yield the events of an edit.

    Args:
        files: PNG files, ``image`` and maybe ``mask_image``.

    Raises:
        RuntimeError: as :func:`generate`.
    """
    boundary = uuid.uuid4().hex
    lines: list[bytes] = []
    for name, value in {**fields, "stream": True}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n'.encode(), text.encode()]
    for name, data in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.png"\r\nContent-Type: image/png\r\n'
        lines += [f"--{boundary}\r\n{head}".encode(), data]
    body = b"\r\n".join([*lines, f"--{boundary}--\r\n".encode()])
    return _events(server, "/v1/images/edits", body, f"multipart/form-data; boundary={boundary}")


def _events(server: str, path: str, body: bytes, kind: str) -> Generator[dict[str, Any], None, None]:
    """Yield the events of a stream, and ``{}`` for signs of life between them."""
    url = address(server)
    headers = {"Content-Type": kind}
    key = os.environ.get("LOTTS_API_KEY")
    if key and url == address(None):  # a workflow of somebody else must not send it elsewhere
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url + path, body, headers)
    try:
        with _OPENER.open(request, timeout=SILENCE_S) as answer:
            for line in answer:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("type") == "error":
                    raise RuntimeError(event["error"]["message"])
                yield event
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url} answers {error.code}: {_message(error)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(f"no answer from {url}: {error}. `lotts-search serve` starts a server") from error


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
