"""The form of an edit: texts and files."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from lotts_search.errors import unknown
from lotts_search.serve.errors import ApiError, invalid
from lotts_search.serve.fields import FILES, Edit


async def read_form(request: Request) -> tuple[Edit, dict[str, bytes]]:
    """Read the form of an edit.

    Raises:
        ApiError: 400.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "an edit is sent as multipart/form-data", code="wrong_content_type")
    texts: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=4, max_fields=64) as form:
        for name, value in form.multi_items():
            if name in texts or name in files or (name in ("image", "image[]") and "image" in files):
                raise ApiError(400, f"{name[:100]} is given more than once", param=name[:100])
            if isinstance(value, UploadFile) != (name in FILES):
                if name in FILES or name in Edit.model_fields:
                    what = "a file" if name in FILES else "a text"
                    raise ApiError(400, f"{name} must be {what}", param=name, code="wrong_part")
                message = str(unknown("field", name[:100], [*Edit.model_fields, *FILES]))
                raise ApiError(400, message, param=name[:100], code="unknown_field")
            if isinstance(value, UploadFile):
                files["image" if name == "image[]" else name] = await value.read()
            else:
                texts[name] = value
    if "image" not in files:
        raise ApiError(400, "image is missing", param="image", code="missing")
    if "mask" in files and "mask_image" in files:
        raise ApiError(400, "mask and mask_image exclude each other", param="mask")
    try:
        if "settings" in texts:
            texts["settings"] = json.loads(texts["settings"])
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "settings must be a JSON object", param="settings") from error
    try:
        return Edit.model_validate(texts), files
    except ValidationError as error:
        raise invalid(list(error.errors()), [*Edit.model_fields, *FILES]) from error
