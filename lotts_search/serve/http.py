"""The HTTP interface: a FastAPI application over a :class:`~lotts_search.serve.service.Service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lotts_search import __version__
from lotts_search.errors import LottsError
from lotts_search.serve.answering import answer
from lotts_search.serve.answers import Images, ModelCard, Models, Strategies, errors, stream_events
from lotts_search.serve.errors import ApiError, Json, invalid, of
from lotts_search.serve.fields import Generation, edit_schema
from lotts_search.serve.forms import read_form
from lotts_search.serve.guard import Guard
from lotts_search.serve.page import add_page
from lotts_search.serve.service import Service
from lotts_search.serve.streams import STREAM


def create_app(service: Service) -> FastAPI:
    """Return the application. The service's pools are closed when it ends."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="lotts-search", version=__version__, lifespan=life, default_response_class=Json)
    app.add_middleware(Guard, service=service)
    _add_errors(app)
    _add_lists(app, service)
    answers: dict[str, Any] = {
        "response_model": Images,
        "responses": {200: {"content": {STREAM: {"itemSchema": stream_events()}}}}
        | errors(400, 401, 403, 404, 413, 429, 500, 504),
    }

    @app.post("/v1/images/generations", **answers)
    async def generate(request: Request, fields: Generation) -> Response:
        """Search for the best image of a prompt within a budget."""
        return await answer(service, request, fields, {})

    body = {"content": {"multipart/form-data": {"schema": edit_schema()}}, "required": True}

    @app.post("/v1/images/edits", openapi_extra={"requestBody": body}, **answers)
    async def edit(request: Request) -> Response:
        """Refine an image: resample its defective region, found or given by a mask, and keep the best image."""
        fields, files = await read_form(request)
        return await answer(service, request, fields, files)

    add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        return invalid(list(error.errors()), Generation.model_fields).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        answer = ApiError(error.status_code, str(error.detail)).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(LottsError)
    async def failed(_: Request, error: LottsError) -> Response:
        return of(error).response()


def _add_lists(app: FastAPI, service: Service) -> None:
    listing: dict[str, Any] = {"responses": errors(401, 403)}

    @app.get("/v1/models", **listing)
    async def models() -> Models:
        """List the models that are served."""
        return Models(data=service.models())

    @app.get("/v1/models/{name:path}", responses=errors(401, 403, 404))
    async def model(name: str) -> ModelCard:
        """Describe a model."""
        service.model(name)
        return next(card for card in service.models() if card.id == name)

    @app.get("/v1/strategies", **listing)
    async def strategies() -> Strategies:
        """List the strategies with their settings."""
        return Strategies(data=service.strategies())

    @app.get("/healthz")
    async def healthy() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=errors(503))
    async def ready() -> dict[str, str]:
        """Say whether searches can run: every model has a generator."""
        if not await asyncio.to_thread(service.ready):
            raise ApiError(503, "no generator is ready", retry_s=service.config.retry_after_s)
        return {"status": "ready"}

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", responses=text | errors(401, 403))
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
