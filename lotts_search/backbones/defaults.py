"""The default settings of a model, by family or from its ``lotts.json``; read before any weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any, get_args

from lotts_search.errors import BadInput, unknown
from lotts_search.work.masks import ConceptMask, mask_from_dict
from lotts_search.work.model import Defaults
from lotts_search.work.requests import MOST_STEPS, Solver

STABLE_DIFFUSION = Defaults(steps=50, guidance=7.5, t0=25, integrate=5)
STABLE_DIFFUSION_XL = Defaults(steps=30, guidance=5.5, t0=15, integrate=3)
FLUX_SCHNELL = Defaults(steps=10, guidance=1.0, t0=1, integrate=1, mask=ConceptMask())
"""Settings of the LoTTS paper (implementation details) for SD2.1, SDXL and FLUX.1-schnell."""
FLUX_DEV = Defaults(steps=28, guidance=3.5, t0=3, integrate=3, mask=ConceptMask())
"""For guidance-distilled FLUX models: steps and weight of diffusers, and the paper's shares of the steps for t0 and
tg."""
STABLE_DIFFUSION_3 = Defaults(steps=28, guidance=7.0, t0=18, integrate=3)
"""Steps and weight of diffusers. Step 18 of 28, with the published shift of 3, has the noise-to-signal ratio of the
paper's t0 for SD2.1 and SDXL (σ/α = 1.6); tg is the paper's share of the steps."""

_OF_PIPELINE = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
}


_OF_SEARCHES = ("verifier", "rewriter")
"""What a ``lotts.json`` also names, see :func:`lotts_search.registry.default_verifier`."""
_FEW_STEPS = re.compile(r"turbo|lightning|lcm|hyper.?sd", re.IGNORECASE)
"""Names of models that were distilled to few steps."""


def pipeline_of(model: str, index: Mapping[str, Any]) -> str:
    """Return the name of a model's pipeline from its ``model_index.json``.

    Raises:
        BadInput: there is none, or the pipeline is code in the model's folder.
    """
    name = index.get("_class_name")
    if isinstance(name, list):
        raise BadInput(f"model {model}: its pipeline {'.'.join(map(str, name))} is code of its own, which is never run")
    if not isinstance(name, str):
        raise BadInput(f"model {model}: its model_index.json names no pipeline in _class_name")
    return name


def few_steps(model: str, index: Mapping[str, Any], scheduler: Mapping[str, Any], family: Defaults) -> Defaults:
    """Return the settings of a family, for a model distilled to few steps with 4 steps, or as many as its name says,
    without guidance.

    Such a model has the scheduler of LCM or TCD; or its name says so, and its timesteps are trailing or flow matching's.
    """
    name, kind = _names(model, index), str(scheduler.get("_class_name"))
    spaced = scheduler.get("timestep_spacing") == "trailing" or kind.startswith("FlowMatch")
    if family in (FLUX_DEV, FLUX_SCHNELL):
        return family
    if not (kind in ("LCMScheduler", "TCDScheduler") or (spaced and _FEW_STEPS.search(name))):
        return family
    said = re.search(r"(?<!\d)([2-9]|1[0-6])[-_ ]?steps?", name, re.IGNORECASE)
    steps = int(said[1]) if said else 4
    return replace(family, steps=steps, guidance=1.0, t0=steps // 2, integrate=int(steps > 2))


def sounds_distilled(model: str, index: Mapping[str, Any], family: Defaults) -> bool:
    """Return whether the name of a model says that it needs few steps, other than FLUX models, whose defaults know."""
    return family not in (FLUX_DEV, FLUX_SCHNELL) and _FEW_STEPS.search(_names(model, index)) is not None


def _names(model: str, index: Mapping[str, Any]) -> str:
    return f"{PurePath(model).name} {index.get('_name_or_path', '')}"


def defaults_of(model: str, read: Callable[[str], Mapping[str, Any]]) -> tuple[Defaults, bool] | None:
    """Return the settings of a model in diffusers format, and whether the guidance weight is an input of its network, so
    that a step takes one row at any weight. Return None for an unknown pipeline whose ``lotts.json`` is incomplete.

    Args:
        model: name of the model in messages.
        read: returns the content of a JSON file of the folder, {} if the folder does not have the file.

    Raises:
        BadInput: a setting in ``lotts.json`` is unknown or of the wrong type.
    """
    index, settings, embedded = read("model_index.json"), read("lotts.json"), False
    pipeline = pipeline_of(model, index)
    if pipeline == "FluxPipeline":
        embedded = bool(read("transformer/config.json").get("guidance_embeds", False))
        family = FLUX_DEV if embedded else FLUX_SCHNELL
    elif pipeline in _OF_PIPELINE:
        family = few_steps(model, index, read("scheduler/scheduler_config.json"), _OF_PIPELINE[pipeline])
    elif settings.keys() >= {"steps", "guidance", "t0", "integrate", "mask"}:
        family = STABLE_DIFFUSION  # only its eta and solver can remain
    else:
        return None
    return merged(model, settings, family), embedded


def merged(model: str, settings: Mapping[str, Any], family: Defaults) -> Defaults:
    """Return the settings of a ``lotts.json``, completed with those of the model's family.

    Raises:
        BadInput: a setting is unknown, of the wrong type, or out of its range.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        "steps": _whole, "guidance": _number, "t0": _whole, "integrate": _whole, "eta": _number, "solver": _solver, "mask": mask_from_dict,
    }  # fmt: skip
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _OF_SEARCHES:
            continue
        try:
            if name not in kinds:
                raise unknown("setting", name, [*(field.name for field in fields(Defaults)), *_OF_SEARCHES])
            values[name] = kinds[name](value)
        except (TypeError, ValueError) as error:
            raise BadInput(f"model {model}: lotts.json: bad value for {name!r}: {error}") from error
    if (steps := values.get("steps", family.steps)) >= 1:
        family = family.scaled(steps)
    made = replace(family, **values)
    if "integrate" not in values:
        made = replace(made, integrate=max(0, min(made.integrate, made.steps - made.t0)))
    for name, least, most in (
        ("steps", 1, MOST_STEPS),
        ("t0", 0, made.steps - 1),
        ("integrate", 0, made.steps - made.t0),
    ):
        if not least <= getattr(made, name) <= most:
            raise BadInput(
                f"model {model}: lotts.json: {name} must be within {least}..{most}, not {getattr(made, name)}"
            )
    return made


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"it must be a number, not {value!r}")
    return float(value)


def _whole(value: object) -> int:
    number = _number(value)
    if not number.is_integer():
        raise BadInput(f"it must be a whole number, not {value!r}")
    return int(number)


def _solver(value: object) -> Solver:
    if value not in get_args(Solver):
        raise unknown("solver", str(value), get_args(Solver))
    return value  # type: ignore[return-value]
