"""The published models' own settings, and those that a model folder sets itself: known before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from lotts_search.errors import BadInput, unknown
from lotts_search.work.masks import ConceptMask, mask_from_dict
from lotts_search.work.model import Defaults
from lotts_search.work.requests import Solver

STABLE_DIFFUSION = Defaults(steps=50, guidance=7.5, t0=25, integrate=5)
STABLE_DIFFUSION_XL = Defaults(steps=30, guidance=5.5, t0=15, integrate=3)
FLUX_SCHNELL = Defaults(steps=10, guidance=1.0, t0=1, integrate=1, mask=ConceptMask())
"""The paper's settings for SD2.1, SDXL and FLUX.1-schnell (LoTTS, implementation details)."""
FLUX_DEV = Defaults(steps=28, guidance=3.5, t0=3, integrate=3, mask=ConceptMask())
"""For models of FLUX that are told a guidance weight: diffusers' steps and weight, the paper's shares of t0 and tg."""
STABLE_DIFFUSION_3 = Defaults(steps=28, guidance=7.0, t0=18, integrate=3)
"""diffusers' steps and weight. At step 18 of 28, with the published shift of 3, noise and signal are as the paper's t0
has them for SD2.1 and SDXL (σ/α = 1.6); tg is the paper's share of the steps."""

_OF_PIPELINE = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
}


def defaults_of(model: str, read: Callable[[str], Mapping[str, Any]]) -> tuple[Defaults, bool] | None:
    """The settings of a model folder in diffusers' format, and whether its network is told the guidance weight, so that
    a step takes one row at any weight. None for a pipeline that is not one of ours, unless its ``lotts.json`` says
    everything.

    Args:
        model: as messages call it.
        read: gives the content of a JSON file of the folder, {} where it has none.

    Raises:
        BadInput: ``lotts.json`` has a setting that is unknown or of the wrong type.
    """
    pipeline, settings, told = read("model_index.json").get("_class_name"), read("lotts.json"), False
    if pipeline == "FluxPipeline":
        told = bool(read("transformer/config.json").get("guidance_embeds", False))
        family = FLUX_DEV if told else FLUX_SCHNELL
    elif pipeline in _OF_PIPELINE:
        family = _OF_PIPELINE[pipeline]
    elif settings.keys() >= {"steps", "guidance", "t0", "integrate", "mask"}:
        family = STABLE_DIFFUSION  # of which eta and solver alone can be left, as everywhere
    else:
        return None
    return merged(model, settings, family), told


def merged(model: str, settings: Mapping[str, Any], family: Defaults) -> Defaults:
    """The settings of a ``lotts.json``, with those of the model's family where it is silent.

    Raises:
        BadInput: a setting is unknown or of the wrong type.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        "steps": int, "guidance": float, "t0": int, "integrate": int, "eta": float, "solver": _solver, "mask": mask_from_dict,
    }  # fmt: skip
    values: dict[str, Any] = {}
    for name, value in settings.items():
        try:
            if name not in kinds:
                raise unknown("setting", name, [field.name for field in fields(Defaults)])
            values[name] = kinds[name](value)
        except (TypeError, ValueError) as error:
            raise BadInput(f"model {model}: lotts.json: bad value for {name!r}: {error}") from error
    return replace(family, **values)


def _solver(value: object) -> Solver:
    if value not in get_args(Solver):
        raise unknown("solver", str(value), get_args(Solver))
    return value  # type: ignore[return-value]
