"""What the engine refuses before it begins."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import numpy as np

from lotts_search.backbones.attention.recorder import compiled
from lotts_search.backbones.base import Backbone, ReadsText
from lotts_search.backbones.confined import Confines
from lotts_search.errors import BadInput, Failure
from lotts_search.localization.plan import FusionPlan, plan_of
from lotts_search.work.confined import FAMILIES
from lotts_search.work.masks import FusionMask, MaskSource
from lotts_search.work.requests import Check, Encode, Generate, Locate, Predict, Segment, State, Usage


def check(backbone: Backbone, work: Generate) -> None:
    """Refuse work that cannot be carried out.

    Raises:
        BadInput: a step outside the schedule, a state of another schedule or of the wrong shape, a wrong image, a network with a
            step cache.
    """
    info = backbone.info
    if getattr(getattr(backbone, "network", None), "is_cache_enabled", False):
        raise BadInput(
            f"the network of {info.name} has a cache of diffusers (enable_cache), which takes the rows of a call for those of the last"
            " one at the next step; here they change: call disable_cache(). refresh saves steps of refinements instead"
        )
    if isinstance(work, Encode):
        if work.image.dtype != np.uint8 or work.image.shape != (*info.image, 3):
            size = "x".join(map(str, work.image.shape))
            raise BadInput(f"an image for {info.name} must be {info.image[0]}x{info.image[1]}x3 bytes, got {size}")
        return
    steps = work.sampling.steps
    if not work.sampling.prompt.strip():
        raise BadInput("the prompt is empty")
    if isinstance(work, Check):
        backbone.schedule(steps)
        return
    if work.state is not None:
        if work.state.latent.shape != info.latent:
            raise BadInput(f"a latent of {info.name} has shape {info.latent}, got {work.state.latent.shape}")
        if not isinstance(work, Locate) and not work.state.complete and work.state.steps != steps:
            raise BadInput(f"the state is on a schedule of {work.state.steps} steps, not of {steps}")
    if isinstance(work, Predict) and work.state.complete:
        raise BadInput("the state is complete: there is nothing to predict")
    if isinstance(work, Segment):
        _check_segment(backbone, work)


def _check_segment(backbone: Backbone, work: Segment) -> None:
    steps = work.sampling.steps
    backbone.schedule(steps)
    if work.renoise is not None:
        if work.state is None or not work.state.complete:
            raise BadInput("only a complete candidate can be re-noised")
        if not 0 <= work.renoise < steps:
            raise BadInput(f"a refinement must start at a step within 0..{steps - 1}, got {work.renoise}")
        if work.region is not None and work.region.mask.shape != backbone.info.latent[1:]:
            raise BadInput(f"a mask must be {backbone.info.latent[1:]} on the latent, got {work.region.mask.shape}")
    if work.confined and (not isinstance(backbone, Confines) or compiled(backbone.network)):
        raise BadInput(
            f"{backbone.info.name} cannot be confined to the mask by refresh: its family is {backbone.info.family} or it was loaded"
            f" with compile; {', '.join(FAMILIES)} without compile can"
        )
    if not work.start <= work.stop <= steps:
        raise BadInput(f"a segment from step {work.start} must stop within {work.start}..{steps}, got {work.stop}")


def report(backbone: Backbone, work: Check) -> tuple[str, Usage]:
    """Return what works otherwise than the caller may expect, of the prompts or, where there is one, of the mask source, ""
    where nothing does; and what a localization by that source will use beside network rows.

    Raises:
        BadInput: the mask source does not fit the model, or its two quality prompts are the same to the text encoders.
    """
    prompt, source = work.sampling.prompt, work.source
    if source is None:
        texts = {"prompt": prompt} | ({"negative prompt": work.sampling.negative} if work.sampling.guided else {})
        cuts = "; ".join(
            f"the text encoder does not read the end of the {name}: {shorten(cut, 80, placeholder=' …')!r}"
            for name, text in texts.items()
            if (cut := unread(backbone, text))
        )
        return cuts, Usage()
    notes: list[str] = []
    usage = _rehearse(backbone, work, source)
    for part in _parts(source):
        if _reads_alike(backbone, part, prompt):
            what = f"the high- and the low-quality prompt of {type(part).__name__} are the same to the text encoder"
            why = "their templates are equal"
            if part.high != part.low:
                why = "it does not read where they differ; shorten the prompt, or begin high and low with the quality words"
            if part is source and work.blank == "fail":
                raise BadInput(f"{what}: {why}")
            notes.append(f"{what}, so this map will be the same everywhere: {why}")
    return "; ".join(notes), usage


def unread(backbone: Backbone, text: str) -> str:
    """Return the end of a text that no text encoder reads; "" where one reads everything, or none is known."""
    if not isinstance(backbone, ReadsText):
        return ""
    tokenizer, most = max(backbone.readers(), key=lambda reader: reader[1])
    special = len(tokenizer("").input_ids)
    words = tokenizer(text, add_special_tokens=False).input_ids
    return str(tokenizer.decode(words[most - special :])).strip()


def _rehearse(backbone: Backbone, work: Check, source: MaskSource) -> Usage:
    """Plan a localization of an image of noise, which refuses settings that do not fit the model, and return what it will
    use beside network rows."""
    steps = work.sampling.steps
    latent = np.zeros(backbone.info.latent, np.float32)
    state = State(latent, steps, steps, change=latent[0])
    image = np.random.default_rng(0).integers(0, 256, (*backbone.info.image, 3), np.uint8)
    try:
        plan = plan_of(backbone, Locate(0, (), state, work.sampling, source, image if source.needs_image else None))
    except Failure:
        return Usage()  # of this image, perhaps not of others
    usage = Usage()
    usage += getattr(plan, "expected", Usage())
    for part in plan.parts if isinstance(plan, FusionPlan) else ():
        usage += _rehearse(backbone, work, part.source)
    return usage


def _parts(source: MaskSource) -> list[Any]:
    """Return the sources that contrast two quality prompts."""
    if isinstance(source, FusionMask):
        return [part for one in source.sources for part in _parts(one)]
    return [source] if hasattr(source, "high") and hasattr(source, "low") and getattr(source, "contrast", True) else []


def _reads_alike(backbone: Backbone, source: Any, prompt: str) -> bool:
    """Return whether all text encoders read the same under the high- and the low-quality prompt."""
    high, low = source.high.replace("{}", prompt), source.low.replace("{}", prompt)
    readers = backbone.readers() if isinstance(backbone, ReadsText) else []
    read = [
        [tokenizer(text, truncation=True, max_length=most).input_ids for text in (high, low)]
        for tokenizer, most in readers
    ]
    return high == low or bool(read and all(one == other for one, other in read))
