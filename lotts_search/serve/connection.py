"""Whether a client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request

from lotts_search.serve.errors import ApiError

GONE = 499
"""Status, used by nginx too, of an answer that nobody reads any more."""


@asynccontextmanager
async def while_connected(request: Request, work: asyncio.Future[Any]) -> AsyncIterator[None]:
    """Cancel work at the end of the block, and as soon as the client has closed the connection.

    Raises:
        ApiError: 499, the client is gone; nobody reads it.
    """
    gone = asyncio.ensure_future(_gone(request))
    gone.add_done_callback(lambda done: None if done.cancelled() else work.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if not gone.done():  # the server ends
            raise
        raise ApiError(GONE, "the client is gone") from None
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.wait({work})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
