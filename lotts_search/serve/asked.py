"""From the fields of a request to the searches that answer it, checked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lotts_search import registry
from lotts_search.api import DEFAULT_IMAGES
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Costs
from lotts_search.core.recipe import Recipe
from lotts_search.errors import BadInput, unknown
from lotts_search.serve.config import Config
from lotts_search.serve.errors import ApiError
from lotts_search.serve.fields import SEED, Edit, Fields
from lotts_search.work.image_files import mask_png
from lotts_search.work.masks import GivenMask, mask_kinds
from lotts_search.work.model import ModelInfo
from lotts_search.work.prices import published
from lotts_search.work.requests import Bools, Bytes, Sampling

QUALITY = {"low": 1, "medium": DEFAULT_IMAGES, "high": 36, "standard": DEFAULT_IMAGES, "hd": 36}
"""Images of a budget; standard and hd are older names."""
OLD = {"standard": "medium", "hd": "high"}
CLOSED = ("windows", "judged", "given")
"""Mask kinds that a request cannot ask for: they load verifiers, call other servers, or hold files."""
MOST = 1000.0
"""Largest number in the settings of a strategy: each of so many branches takes memory."""


@dataclass(frozen=True)
class Asked:
    """A request that was checked.

    Attributes:
        fields: as they came.
        recipe: of the first search; a further one adds 1 to the seed.
        image: [h, w, 3] uint8, the uploaded image at the model's size; None for generations.
        mask: [H, W] bool, the uploaded mask.
        size: of its images, WIDTHxHEIGHT.
        quality: the quality that stands for the budget; None where the budget itself is given.
        nfe: most NFE that all searches of the request use.
    """

    fields: Fields
    recipe: Recipe
    image: Bytes | None
    mask: Bools | None
    size: str
    quality: str | None
    nfe: float

    @property
    def count(self) -> int:
        """The number of searches."""
        return self.fields.n or 1

    @property
    def kind(self) -> str:
        """The first part of the names of OpenAI's events."""
        return "image_edit" if isinstance(self.fields, Edit) else "image_generation"

    @property
    def format(self) -> str:
        """The format of its images."""
        return self.fields.output_format or "png"

    @property
    def common(self) -> dict[str, Any]:
        """What OpenAI's answers and events have in common."""
        return {"size": self.size, "quality": self.quality, "background": "opaque", "output_format": self.format}

    @property
    def names(self) -> dict[str, str]:
        """What is used, defaults filled in."""
        return {
            "model": self.recipe.model,
            "strategy": self.recipe.strategy or "",
            "verifier": self.recipe.verifier or "",
        }

    def of(self, number: int) -> Recipe:
        """Return the recipe of a search."""
        return replace(self.recipe, seed=self.recipe.seed + number)

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the arguments of :func:`lotts_search.api.asearch`, without the pool."""
        settings = dict(recipe.settings)
        if self.mask is not None:
            settings["mask"] = GivenMask(mask_png(self.mask))
        names = (
            "strategy",
            "verifier",
            "nfe",
            "images",
            "flops",
            "as_",
            "seconds",
            "target",
            "seed",
            "steps",
            "guidance",
            "negative",
        )
        return {name: getattr(recipe, name) for name in names} | {
            "prompt": recipe.prompt,
            "settings": settings,
            "rewriter": recipe.rewriter,
            "image": self.image,
        }


def asked(
    fields: Fields,
    header: str | None,
    config: Config,
    info: ModelInfo,
    verifiers: tuple[str, ...],
    rewriters: tuple[str, ...],
    load: Mapping[str, Any],
    image: Bytes | None = None,
    mask: Bools | None = None,
) -> Asked:
    """Check a request.

    Args:
        header: of the name ``X-ITS-Budget``, a number of images.
        info, verifiers, rewriters, load: of the model that it asks for.
        image, mask: of an edit, at the model's size.

    Raises:
        ApiError, BadInput: it asks for something that this server does not do.
    """
    height, width = info.image
    if fields.size not in (None, "auto", f"{width}x{height}"):
        raise ApiError(400, f"size must be auto or {width}x{height} with {info.name}, not {fields.size}", param="size")
    if fields.output_compression not in (None, 100) and fields.output_format not in ("jpeg", "webp"):
        raise ApiError(400, "output_compression needs output_format jpeg or webp", param="output_compression")
    if fields.stream and (fields.n or 1) > 1:
        raise ApiError(400, "a stream has one image: n must be 1", param="n")
    for name in ("partial_images", "events"):
        if getattr(fields, name) and not fields.stream:
            raise ApiError(400, f"{name} needs stream: true", param=name)
    verifier = verifiers[0] if fields.verifier is None else fields.verifier
    if verifier not in verifiers:  # first of all: to look at a verifier imports the module that its name says
        raise unknown("verifier", verifier, verifiers)
    name = fields.strategy or registry.default_strategy(verifier)
    if name not in {*registry.strategies(), *config.strategies}:
        raise unknown("strategy", name, {*registry.strategies(), *config.strategies})
    settings: dict[str, object] = dict(fields.settings or {})
    _check_settings(settings)
    strategy = registry.make_strategy(name, settings)
    steps = fields.num_inference_steps
    if steps is not None and steps > config.steps:
        raise ApiError(
            400, f"num_inference_steps must be within 1..{config.steps}, not {steps}", param="num_inference_steps"
        )
    sampling = Sampling.of(
        info, fields.prompt, steps=steps, guidance=fields.guidance_scale, negative=fields.negative_prompt or ""
    )
    prices = None if fields.priced_as is None else published(fields.priced_as)
    costs = Costs.of(info, sampling, image=image is not None, prices=prices)
    quality, budget = _budget(fields, header)
    if budget.nfe is None and budget.images is None:  # FLOPs pay for no more steps than this, seconds for any number
        steps_paid = Budget(flops=budget.flops).count(costs.step)
        budget = replace(budget, nfe=config.request_nfe if steps_paid is None else steps_paid)
    nfe = replace(budget, flops=None).allowed(costs.sample).nfe or 0.0
    count = fields.n or 1
    if nfe * count > config.request_nfe:
        raise ApiError(
            400,
            f"this request may cost {nfe * count:g} NFE: at most {config.request_nfe:g} are allowed",
            code="budget_too_large",
        )
    if strategy.rewrites and not rewriters:
        raise BadInput(f"strategy {name!r} needs a rewriter of prompts, and {info.name} has none here")
    seed = secrets.randbelow(2**31) if fields.seed is None else fields.seed
    if seed > SEED - count:
        raise ApiError(400, f"seed must be at most {SEED - count} for {count} images", param="seed")
    recipe = Recipe(
        "generate" if image is None else "refine", fields.prompt, info.name, name,
        verifier, seed, budget.nfe, budget.images, budget.seconds, budget.target,
        fields.num_inference_steps, fields.guidance_scale, fields.negative_prompt or "",
        image=None if image is None else Path("image.png"), mask=None if mask is None else Path("mask.png"),
        settings=settings, flops=budget.flops, as_=fields.priced_as, load=dict(load), rewriter=rewriters[0] if strategy.rewrites else None,
    )  # fmt: skip
    return Asked(fields, recipe, image, mask, f"{width}x{height}", quality, nfe * count)


def _budget(fields: Fields, header: str | None) -> tuple[str | None, Budget]:
    """Return the quality and the budget that it stands for, or None and the budget that is given."""
    images = [value for value in (fields.images, fields.budget) if value is not None]
    if header is not None:
        if not re.fullmatch(r"[1-9]\d{0,6}", header):
            raise ApiError(400, f"X-ITS-Budget must be a number of images, not {header!r}", param="X-ITS-Budget")
        images.append(int(header))
    if len(images) > 1:
        raise ApiError(400, "images, budget and X-ITS-Budget are the same: give one of them", param="budget")
    given = any(value is not None for value in (fields.nfe, fields.flops, fields.seconds)) or bool(images)
    quality = fields.quality or "auto"
    if given and quality != "auto":
        raise ApiError(
            400,
            f"quality {quality} stands for a budget: leave it out, or nfe, images, flops and seconds",
            param="quality",
        )
    if given:
        return None, Budget(fields.nfe, images[0] if images else None, fields.seconds, fields.target, fields.flops)
    quality = "medium" if quality == "auto" else quality
    return OLD.get(quality, quality), Budget(images=QUALITY[quality], target=fields.target)


def _check_settings(value: object, name: str = "settings", depth: int = 0) -> None:
    """Refuse settings that name code, files or other servers, and numbers without measure.

    Raises:
        ApiError: 400.
    """
    if depth > 4:
        raise ApiError(400, "settings are nested too deeply", param="settings")
    if isinstance(value, Mapping):
        if len(value) > 64:
            raise ApiError(400, f"{name} has {len(value)} entries: at most 64", param="settings")
        for key, one in value.items():
            if key == "kind" and one not in (open_kinds := sorted(mask_kinds().keys() - set(CLOSED))):
                raise unknown("mask kind", str(one)[:100], open_kinds)
            _check_settings(one, str(key)[:100], depth + 1)
    elif isinstance(value, list):
        if len(value) > 64:
            raise ApiError(400, f"{name} has {len(value)} entries: at most 64", param="settings")
        for one in value:
            _check_settings(one, name, depth + 1)
    elif isinstance(value, str):
        if len(value) > 1000 or re.search(r"[:/\\{\0]", value.replace("{}", "")):
            raise ApiError(
                400, f"{name}: a text of a request has at most 1000 characters and none of : / \\ {{", param="settings"
            )
        if value in CLOSED:
            raise ApiError(400, f"{name}: {value} is not available here", param="settings")
    elif isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= MOST:
        raise ApiError(400, f"{name} must be within -{MOST:g}..{MOST:g}, not {str(value)[:40]}", param="settings")
