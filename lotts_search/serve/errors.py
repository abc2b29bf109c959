"""Errors of the endpoint, in OpenAI's form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lotts_search.errors import BadInput, LottsError, unknown

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
"""Types of errors by status; others are ``invalid_request_error`` below 500 and ``server_error`` from there on."""


class ApiError(HTTPException):
    """An error that a client gets. (FastAPI passes on an HTTPException, and hides others, while it reads a body.)

    Attributes:
        status: of the answer.
        code: for programs, e.g. ``model_not_found``.
        param: the field at fault, if there is one.
        retry_s: seconds after which a client may try again; None = it need not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_s: float | None = None,
    ):
        super().__init__(status, message)
        self.status, self.code, self.param, self.retry_s = status, code, param, retry_s

    def body(self) -> dict[str, Any]:
        """Return the JSON object."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Json:
        """Return the answer."""
        headers = {"Retry-After": str(math.ceil(self.retry_s))} if self.retry_s is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="lotts-search", charset="UTF-8"'
        return Json(self.body(), self.status, headers)


class Json(JSONResponse):
    """JSON in ASCII, since a client's text that is no valid Unicode may come back in a message."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def of(error: LottsError) -> ApiError:
    """Return the answer to an error of a search: bad input is the client's fault."""
    return ApiError(400 if isinstance(error, BadInput) else 500, str(error))


def invalid(found: list[Any], known: Iterable[str]) -> ApiError:
    """Return the answer to fields that are wrong, as pydantic lists them: the first, in words, with the ``known`` fields."""
    first = found[0]
    place = ".".join(str(part)[:100] for part in first["loc"] if part != "body")
    if first["type"] == "extra_forbidden":
        return ApiError(400, str(unknown("field", place, known)), param=place, code="unknown_field")
    return ApiError(400, f"{place or 'the body'}: {first['msg']}", param=place or None, code=first["type"])
