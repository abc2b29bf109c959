"""Arguments of diffusers' pipelines in terms of searches."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotts_search.errors import BadInput, unknown
from lotts_search.work.requests import Bytes

SEEDS = 2**31
"""Seeds that are drawn are below this, so that they are short and fit everywhere."""


def whole(value: object, name: str) -> int:
    """Return a whole number of 1 or more.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise BadInput(f"{name} must be a whole number of 1 or more, not {value!r}")
    return int(value)


def each(value: str | Sequence[str], count: int, name: str) -> list[str]:
    """Return a text for each of ``count`` prompts.

    Raises:
        BadInput: there is another number of texts.
    """
    if isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise BadInput(f"{name} must be a text or a list of {count}, one for each prompt, not a list of {len(value)}")
    return list(value)


def seeds(seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """Return the seed of each of ``count`` images: consecutive ones, or one from each of several generators.

    Raises:
        BadInput: both are given, or what is given is of another type or number.
    """
    if generator is None:
        start = secrets.randbelow(SEEDS) if seed is None else seed
        if isinstance(start, bool) or not isinstance(start, int | np.integer):
            raise BadInput(f"seed must be a whole number, not {seed!r}")
        return [int(start) + number for number in range(count)]
    if seed is not None:
        raise BadInput("seed and generator exclude each other")
    if isinstance(generator, torch.Generator):
        start = _drawn(generator)
        return [start + number for number in range(count)]
    several = list(generator) if isinstance(generator, Sequence) else [generator]
    if not all(isinstance(one, torch.Generator) for one in several):
        raise BadInput(f"generator must be a torch.Generator or a list of them, not {generator!r}")
    if len(several) != count:
        raise BadInput(f"there are {len(several)} generators for {count} images: give one, or one for each image")
    return [_drawn(one) for one in several]


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(SEEDS, (), generator=generator, device=generator.device))


def converted(output_type: str) -> Callable[[list[Bytes]], Any]:
    """Return the function that turns images [h, w, 3] uint8 into a type of diffusers.

    Raises:
        BadInput: the type is unknown.
    """
    types: dict[str, Callable[[list[Bytes]], Any]] = {
        "pil": lambda images: [Image.fromarray(image) for image in images],
        "np": lambda images: np.stack(images).astype(np.float32) / 255,
    }
    if output_type not in types:
        raise unknown("output_type", output_type, types)
    return types[output_type]
