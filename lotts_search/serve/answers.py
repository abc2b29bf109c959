"""What the endpoint answers: OpenAI's objects with our fields beside theirs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Tokens(BaseModel):
    """Tokens of an input; this server counts none."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """What a request used. OpenAI's token counts are 0: the cost of a search is in NFE.

    Attributes:
        nfe: denoising steps, localizations pro rata.
        flops: of network rows, decoding and scoring.
        images, scores: complete images, and scores.
        device_s: seconds on the device, a request's share of its batches.
        nfe_wasted: NFE of tries that were lost with an actor.
    """

    input_tokens: int = 0
    input_tokens_details: Tokens = Tokens()
    output_tokens: int = 0
    total_tokens: int = 0
    nfe: float = 0.0
    flops: float = 0.0
    images: int = 0
    scores: int = 0
    device_s: float = 0.0
    nfe_wasted: float = 0.0


class Image(BaseModel):
    """One image, the best of its search.

    Attributes:
        b64_json, url: the image; the URL holds it, too (``data:``).
        seed: of the search.
        score: of the verifier that guided the search, higher is better.
        recipe: the command that repeats the search.
        status: why the search ended: ``done``, ``target``, ``seconds``, or ``deadline`` where the server stopped it, in which
            case the recipe finds at least as good an image.
    """

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int
    score: float | None
    recipe: str
    status: str


class Images(BaseModel):
    """The answer to a generation or an edit.

    Attributes:
        notes: what was cut, converted or ignored.
    """

    created: int
    background: str = "opaque"
    data: list[Image]
    output_format: str
    quality: str | None = None
    size: str
    usage: Usage
    model: str
    strategy: str
    verifier: str
    notes: list[str] = []
    safety_identifier: str | None = None


class Setting(BaseModel):
    """A setting of a strategy: its type in words and its default as it is typed."""

    name: str
    type: str
    default: str
    doc: str


class StrategyCard(BaseModel):
    """A strategy.

    Attributes:
        takes_image: whether it can start from an image, as edits do.
        formula: its cost in NFE.
    """

    id: str
    object: str = "strategy"
    summary: str
    doc: str
    source: str
    formula: str
    takes_image: bool
    rewrites: bool
    settings: list[Setting]


class Strategies(BaseModel):
    """The answer of ``/v1/strategies``."""

    object: str = "list"
    data: list[StrategyCard]


class ModelCard(BaseModel):
    """A model that is served.

    Attributes:
        size: of its images, WIDTHxHEIGHT.
        steps, guidance: its own settings.
        nfe_per_image: of an image from pure noise.
        strategy: of a request that names neither a strategy nor a verifier.
        verifiers: what may guide a search on it, the first by default.
        rewrites: whether strategies that revise prompts work on it.
    """

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "lotts-search"
    family: str
    size: str
    steps: int
    guidance: float
    nfe_per_image: float
    strategy: str
    verifiers: list[str]
    rewrites: bool


class Models(BaseModel):
    """The answer of ``/v1/models``."""

    object: str = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The answer to a request that failed."""

    error: ErrorBody


class ImageEvent(BaseModel):
    """What events of a stream have in common that bring an image."""

    b64_json: str
    created_at: int
    background: str
    output_format: str
    quality: str
    size: str


class PartialImage(ImageEvent):
    """An event of a stream: the best image so far, or what the first is going to be."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int


class CompletedImage(ImageEvent):
    """The last event of a stream: the image that the search found, with the fields of :class:`Images` and :class:`Image`."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    usage: Usage
    seed: int
    score: float | None
    recipe: str
    status: str
    model: str
    strategy: str
    verifier: str
    notes: list[str]


class FailedStream(BaseModel):
    """The last event of a stream whose search failed."""

    type: Literal["error"]
    error: ErrorBody


class SearchEvent(BaseModel):
    """An event of a search, of requests with ``events``; its other fields depend on its type."""

    type: Literal[
        "search.started",
        "search.trial_started",
        "search.trial_finished",
        "search.mask_found",
        "search.new_best",
        "search.preview",
    ]


def stream_events() -> dict[str, Any]:
    """Return the schema of a server-sent event of a stream, for OpenAPI; it refers to models that answers have, too."""
    models: tuple[type[BaseModel], ...] = (PartialImage, CompletedImage, FailedStream, SearchEvent)
    kinds = [model.model_json_schema(ref_template="#/components/schemas/{model}") for model in models]
    message = {"anyOf": [{key: value for key, value in kind.items() if key != "$defs"} for kind in kinds]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": message}
    return {"type": "object", "required": ["event", "data"], "properties": {"event": {"type": "string"}, "data": data}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an operation that may fail with these statuses, for OpenAPI."""
    return {status: {"model": Error} for status in statuses}
