"""How the endpoint is set up: one object for the command line, for YAML files of Ray Serve, and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from lotts_search.errors import BadInput, unknown
from lotts_search.work.batch_sizes import ROWS, BatchSizes

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Model(BaseModel):
    """A model that is served.

    Attributes:
        name: a registered name, a folder in diffusers format or a Hub id; clients ask for it by this name.
        verifiers: guide searches, the first by default; none = the one that the model names.
        rewriter: revises prompts for strategies that use a rewriter; None = the one that the model names, if any.
        load: options of the model, as for :func:`lotts_search.registry.load_backbone`, e.g. ``{"device": "cuda"}``.
        generators: generator actors on Ray; each holds the model.
        gpus, verifier_gpus: GPUs of each generator and of each verifier on Ray; None = 1 where its device is CUDA, or as many as the model
            is spread over.
        batch: network rows of a call of a generator, or several such sizes, see :class:`~lotts_search.engine.engine.Engine`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    verifiers: list[str] = []
    rewriter: str | None = None
    load: dict[str, Any] = {}
    generators: int = Field(default=1, ge=1)
    gpus: float | None = Field(default=None, ge=0)
    verifier_gpus: float | None = Field(default=None, ge=0)
    batch: int | list[int] = ROWS

    @field_validator("batch")
    @classmethod
    def _check_batch(cls, batch: int | list[int]) -> int | list[int]:
        try:
            enough = BatchSizes.of(batch).most > 1
        except BadInput as error:
            raise ValueError(str(error)) from error
        if not enough:
            raise ValueError("a guided candidate has two rows, so a batch must have 2 or more")
        return batch

    @property
    def sizes(self) -> BatchSizes:
        """Return the sizes of a batch."""
        return BatchSizes.of(self.batch)


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Config(BaseModel):
    """The endpoint.

    Attributes:
        models: what is served, the first by default; a text is a model's name.
        strategies: ``package.module:Class`` of strategies beyond the registered ones.
        keys: file of API keys, one ``NAME KEY`` a line; None = no keys.
        hosts: names by which clients may call the server (the header Host); empty = any.
        searches: most searches at once; further requests get the status 429.
        request_nfe: most NFE of one request.
        key_nfe: most NFE of one key, or of all clients where there are no keys, in ``key_window_s`` seconds; None = no limit.
        key_window_s: see ``key_nfe``.
        deadline_s: seconds after which a request returns the best image so far.
        retry_after_s: what a refused client is told to wait.
        body_bytes: largest body of a request.
        pixels: most pixels of an uploaded image.
        steps: most denoising steps of an image.
        send_s: seconds after which a client that does not read is dropped.
        ping_s: seconds between signs of life in a stream.
        threads: torch threads of each generator; results are the same only for the same number.
    """

    model_config = ConfigDict(extra="forbid")

    models: list[Annotated[Model, BeforeValidator(_named)]] = Field([Model(name="shapes-sd")], min_length=1)
    strategies: list[str] = []
    keys: Path | None = None
    hosts: list[str] = []
    searches: int = Field(64, ge=1)
    request_nfe: Positive = 10_000
    key_nfe: Positive | None = None
    key_window_s: Positive = 3600
    deadline_s: Positive = 600
    retry_after_s: Positive = 5
    body_bytes: int = Field(10_000_000, ge=1)
    pixels: int = Field(16_000_000, ge=1)
    steps: int = Field(200, ge=1)
    send_s: Positive = 30
    ping_s: Positive = 10
    threads: int = Field(1, ge=1)


def read_config(path: Path | None, given: Mapping[str, Any]) -> Config:
    """Return the configuration of a YAML file, in which ``given`` replaces fields.

    Raises:
        BadInput: the file cannot be read, or a field is unknown or wrong.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"cannot read {path}: {error}") from error
        if not isinstance(values, dict):
            raise BadInput(f"{path} must have fields, such as models: [shapes-sd]")
    return parse(values | dict(given))


def parse(values: Mapping[str, Any]) -> Config:
    """Return the configuration of plain values.

    Raises:
        BadInput: a field is unknown or wrong.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = Model.model_fields if first["loc"][0] == "models" else Config.model_fields
            raise unknown("field of the configuration", place, known) from error
        raise BadInput(f"configuration, {place}: {first['msg']}") from error
