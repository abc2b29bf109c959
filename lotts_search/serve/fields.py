"""The fields of a request: those of OpenAI's Images API and ours. Unknown ones are refused by name; null is no value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Number = Annotated[float, Field(allow_inf_nan=False)]
SEED = 2**63 - 1


class Fields(BaseModel):
    """What generations and edits have in common.

    OpenAI's: ``prompt`` to ``safety_identifier``. ``quality`` stands for a budget: low = 1 image, medium (and standard) = 9,
    high (and hd) = 36. ``size`` is the model's own. ``user`` and ``safety_identifier`` are returned and not used otherwise.

    Ours: ``seed`` decides all noise, a random one is drawn without it. The budget is any combination of ``nfe``, ``images``
    (of which ``budget`` is another name), ``flops``, ``seconds`` and ``target``, and excludes a ``quality``; ``priced_as`` counts FLOPs
    as on a published model. ``strategy`` and ``settings`` are those of ``/v1/strategies``. ``events`` adds the events of the search to a stream.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = Field(None, max_length=256)
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, pattern=r"^(auto|\d{1,5}x\d{1,5})$")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = Field(None, max_length=256)
    safety_identifier: str | None = Field(None, max_length=256)

    seed: int | None = Field(None, ge=0, le=SEED)
    negative_prompt: str | None = Field(None, max_length=32_000)
    num_inference_steps: int | None = Field(None, ge=1, le=10_000)
    guidance_scale: Number | None = Field(None, ge=0, le=1000)
    strategy: str | None = Field(None, max_length=256)
    settings: dict[str, JsonValue] | None = None
    budget: int | None = Field(None, ge=1, le=1_000_000)
    nfe: Number | None = Field(None, gt=0, le=1e9)
    images: int | None = Field(None, ge=1, le=1_000_000)
    flops: Number | None = Field(None, gt=0, le=1e24)
    priced_as: str | None = Field(None, max_length=256)
    seconds: Number | None = Field(None, gt=0, le=1e6)
    target: Number | None = None
    verifier: str | None = Field(None, max_length=256)
    events: bool | None = None


class Generation(Fields):
    """The body of ``POST /v1/images/generations``."""


class Edit(Fields):
    """The texts among the parts of ``POST /v1/images/edits``; ``settings`` is JSON there. ``image`` and at most one of ``mask``
    (transparent = resampled) and ``mask_image`` (white = resampled) are files."""

    model_config = ConfigDict(extra="forbid", strict=False)


FILES = ("image", "image[]", "mask", "mask_image")
"""Parts of an edit that are files."""


def edit_schema() -> dict[str, Any]:
    """Return the JSON schema of an edit's form."""
    schema = Edit.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {name: file for name in FILES if name != "image[]"}
    schema["required"] = [*schema["required"], "image"]
    return schema
