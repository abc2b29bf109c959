"""What stands before all routes: keys, names of the host, sizes of bodies, clients that do not read, and metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lotts_search.serve.connection import GONE
from lotts_search.serve.errors import ApiError
from lotts_search.serve.service import Service

log = logging.getLogger(__name__)
OPEN = ("/healthz", "/readyz")
"""Paths that need no key."""
SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """An ASGI application around another one.

    Requests that change nothing may come from any page; others come from programs, or from a page of this server itself: a
    page of somebody else must not spend the compute of who looks at it.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service, self._config = app, service, service.config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answered = time.monotonic(), 0

        async def told(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
            try:
                await asyncio.wait_for(send(message), self._config.send_s)
            except TimeoutError:
                log.warning("a client that did not read for %g s was dropped: %s", self._config.send_s, scope["path"])
                raise ConnectionResetError("the client does not read") from None

        try:
            self._admit(scope)
            await self._app(scope, self._limited(scope, receive), told)
        except ApiError as error:
            if not answered:
                await error.response()(scope, receive, told)
        except ConnectionResetError:
            pass
        except Exception:
            log.exception("a request failed unexpectedly: %s", scope["path"])
            if not answered:
                await ApiError(500, "an unexpected error; the server's log has it").response()(scope, receive, told)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._service.metrics.requests.labels(path, answered or GONE).inc()
            self._service.metrics.seconds.labels(path).observe(time.monotonic() - began)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._config.hosts and urlsplit(f"//{host}").hostname not in self._config.hosts:
            raise ApiError(403, "this server is not called by that name", code="wrong_host")
        origin = headers.get("origin")
        if scope["method"] not in SAFE and origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "requests from pages of other servers are refused", code="wrong_origin")
        if scope["path"] in OPEN:
            return
        scope["owner"] = None
        if self._service.keys:
            scope["owner"] = self._service.keys.owner(headers.get("authorization"))
            if scope["owner"] is None:
                raise ApiError(401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self._config.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a body has at most {self._config.body_bytes} bytes", code="body_too_large")

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Count the bytes of a body that comes in parts of unknown number."""
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            if message["type"] == "http.request":
                count += len(message.get("body", b""))
                if count > self._config.body_bytes:
                    raise self._too_large()
            return message

        return counted
