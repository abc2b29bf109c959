"""A search as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lotts_search.core.events import Event
from lotts_search.errors import LottsError
from lotts_search.serve.asked import Asked
from lotts_search.serve.connection import GONE, while_connected
from lotts_search.serve.errors import ApiError, of
from lotts_search.serve.pictures import encoded
from lotts_search.serve.results import found, usage
from lotts_search.serve.service import Outcome, Service
from lotts_search.serve.shown import Partials, partial, tree

STREAM = "text/event-stream"
Item: TypeAlias = Event | Outcome | Exception


class _Stream(StreamingResponse):
    """Sends its parts; that the client is gone is noticed elsewhere."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.stream_response(send)
        except ApiError as error:
            if error.status != GONE:
                raise
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]


async def stream(service: Service, request: Request, wanted: Asked, notes: list[str]) -> StreamingResponse:
    """Start the search of a request, and answer with a stream once it is known to run.

    Raises:
        ApiError, LottsError: it is refused.
    """
    parts = _parts(service, request, wanted, notes)
    await anext(parts)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Stream(parts, media_type=STREAM, headers=headers)


async def _parts(service: Service, request: Request, wanted: Asked, notes: list[str]) -> AsyncIterator[bytes]:
    """Yield the parts of a stream, the first of them empty, as soon as the search runs."""
    queue: asyncio.Queue[Item] = asyncio.Queue()
    began = time.monotonic()

    async def search() -> None:
        try:
            async with service.admitted(wanted, request.scope.get("owner")) as results:
                preview = bool(wanted.fields.partial_images or wanted.fields.events)
                outcome = await service.search(wanted, 0, results, queue.put_nowait, preview)
            queue.put_nowait(outcome)
        except Exception as error:
            queue.put_nowait(error)

    work = asyncio.ensure_future(search())
    async with while_connected(request, work):
        item = await _next(queue, work, None)
        if isinstance(item, Exception):
            raise item
        yield b""
        shown = Partials(wanted.fields.partial_images or 0)
        while True:
            if item is None:
                yield b": \n\n"
            else:
                first = shown.sent == 0
                for message in await _messages(wanted, item, shown, notes):
                    yield message
                if first and shown.sent:
                    service.metrics.first.observe(time.monotonic() - began)
            if isinstance(item, Outcome | Exception):
                return
            item = await _next(queue, work, service.config.ping_s)


async def _next(queue: asyncio.Queue[Item], work: asyncio.Future[None], seconds: float | None) -> Item | None:
    """Return what comes next; None after ``seconds``.

    Raises:
        CancelledError: the work was cancelled.
    """
    item = asyncio.ensure_future(queue.get())
    try:
        both: set[asyncio.Future[Any]] = {item, work}
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.cancelled():
            raise asyncio.CancelledError
        if not item.done() and not queue.empty():
            return await item
        return item.result() if item.done() else None
    finally:
        item.cancel()


async def _messages(wanted: Asked, item: Item, shown: Partials, notes: list[str]) -> list[bytes]:
    """Return what an item puts into the stream; images are encoded in another thread."""
    if isinstance(item, Exception):
        error = item if isinstance(item, ApiError) else of(item) if isinstance(item, LottsError) else None
        if error is None:
            raise item
        return [sse({"type": "error", **error.body()})]
    if isinstance(item, Outcome):
        return [sse(await asyncio.to_thread(_completed, wanted, item, notes))]
    image = shown.choose(item)
    if image is None and not wanted.fields.events:
        return []

    def encode() -> list[bytes]:
        messages = list(tree(item)) if wanted.fields.events else []
        if image is not None:
            compression = wanted.fields.output_compression
            messages.append(partial(wanted.kind, image, shown.sent - 1, _common(wanted), compression))
        return [sse(message) for message in messages]

    return await asyncio.to_thread(encode)


def _completed(wanted: Asked, outcome: Outcome, notes: list[str]) -> dict[str, Any]:
    assert outcome.result.image is not None
    return {
        "type": f"{wanted.kind}.completed",
        "b64_json": encoded(outcome.result.image, wanted.format, wanted.fields.output_compression),
        "created_at": int(time.time()),
        "usage": usage([outcome.result.ledger]).model_dump(),
        "notes": notes,
        **_common(wanted),
        **wanted.names,
        **found(wanted, 0, outcome),
    }


def _common(wanted: Asked) -> dict[str, Any]:
    """Return what events have in common, where a quality must be there."""
    return wanted.common | {"quality": wanted.quality or "auto"}


def sse(message: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"event: {message['type']}\ndata: {json.dumps(message, separators=(',', ':'))}\n\n".encode("ascii")
