"""Answer a request: check it, run its searches, return their images or a stream."""

from __future__ import annotations

import asyncio
import time

from fastapi import Request
from starlette.responses import Response

from lotts_search.errors import noted
from lotts_search.serve.answers import Image, Images
from lotts_search.serve.asked import Asked, asked
from lotts_search.serve.connection import while_connected
from lotts_search.serve.errors import Json
from lotts_search.serve.fields import Fields
from lotts_search.serve.pictures import check_upload, encoded, upload
from lotts_search.serve.results import found, usage
from lotts_search.serve.service import Outcome, Service
from lotts_search.serve.streams import stream


async def answer(service: Service, request: Request, fields: Fields, files: dict[str, bytes]) -> Response:
    """Answer a generation, or with ``files`` an edit.

    Raises:
        ApiError, LottsError: the request is refused, or its search failed.
    """
    served = service.model(fields.model)
    pool, info = served.pool, served.pool.info
    with noted() as notes:
        image = mask = None
        if files:
            for name, data in files.items():
                check_upload(data, name, service.config.pixels)
            given = files["image"], files.get("mask"), files.get("mask_image")
            image, mask = await asyncio.to_thread(upload, *given, info.image)
        budget = request.headers.get("x-its-budget")
        wanted = asked(
            fields, budget, service.config, info, pool.verifiers, pool.rewriters, served.model.load, image, mask
        )
        if fields.stream:
            return await stream(service, request, wanted, notes)
        work = asyncio.ensure_future(_run(service, request.scope.get("owner"), wanted, notes))
        async with while_connected(request, work):
            return Json((await work).model_dump(exclude_none=True))


async def _run(service: Service, owner: str | None, wanted: Asked, notes: list[str]) -> Images:
    async with service.admitted(wanted, owner) as results:
        searches = [asyncio.ensure_future(service.search(wanted, number, results)) for number in range(wanted.count)]
        try:
            outcomes = await asyncio.gather(*searches)
        finally:
            for search in searches:
                search.cancel()
            await asyncio.wait(searches)
    images = [await asyncio.to_thread(_image, wanted, number, outcome) for number, outcome in enumerate(outcomes)]
    fields = wanted.fields
    return Images(
        created=int(time.time()),
        data=images,
        usage=usage([outcome.result.ledger for outcome in outcomes]),
        notes=notes,
        safety_identifier=fields.safety_identifier or fields.user,
        **wanted.common,
        **wanted.names,
    )


def _image(wanted: Asked, number: int, outcome: Outcome) -> Image:
    assert outcome.result.image is not None
    data = encoded(outcome.result.image, wanted.format, wanted.fields.output_compression)
    whole = wanted.fields.response_format == "url"
    return Image(
        b64_json=None if whole else data,
        url=f"data:image/{wanted.format};base64,{data}" if whole else None,
        **found(wanted, number, outcome),
    )
