"""Mask sources: which method finds the region to resample, with its settings. No torch here: the methods
themselves live in :mod:`lotts_search.localization`.

``level`` is the noise level at which the network looks at the finished picture, in training timesteps 0..999
(0 = the last timestep, the paper's choice). ``ratio`` is r, the share of the attention grid that the mask covers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeAlias

from lotts_search.errors import BadInput, unknown

HIGH_QUALITY, LOW_QUALITY = "A high-quality image of {}", "A low-quality image of {}"
"""The paper's templates p+ and p−."""
GOOD, BAD = "A good image of {}", "A bad image of {}"
"""The paper's second pair of templates."""


@dataclass(frozen=True)
class AttentionMask:
    """MaskGen (LoTTS Algorithm 1, Eq. 5-8): contrast of cross-attention under p− and p+.

    Attributes:
        ratio: r, share of the grid, 0..1.
        alpha: weight of the original prompt's attention, 0 or more.
        level: training timestep at which attention is read, 0..999.
        noised: add noise of that level to the latent first (at level 0 the paper looks at the clean latent).
        draws: how many noise draws are averaged (1 where nothing is noised).
        grid: side of the attention maps that are used, None = the model's default.
        propagate: smooth by self-attention (step 3); False is the ablation.
        original: use A_ori (False: "w/o A_ori").
        contrast: use A_con (False: "w/o A_con").
        word_only: read only the quality word's tokens instead of all content tokens.
        high, low: the quality templates.
    """

    ratio: float = 0.5
    alpha: float = 0.5
    level: int = 0
    noised: bool = False
    draws: int = 1
    grid: int | None = None
    propagate: bool = True
    original: bool = True
    contrast: bool = True
    word_only: bool = False
    high: str = HIGH_QUALITY
    low: str = LOW_QUALITY

    def rows(self) -> int:
        """Network rows that one localization takes."""
        return 3 * self.draws


@dataclass(frozen=True)
class ErrorContrastMask:
    """Denoising-error contrast: per-position squared error of the prediction under p+ minus that under p−.

    A likelihood ratio: where p− explains the re-noised latent better, it is probably damaged.

    With ``relative`` the errors are compared by their ratio. Then ``high="{}", low=""`` asks how much the prompt helps
    to explain a region: it helps where the picture shows, unbroken, what the prompt asks for.

    Attributes:
        ratio: r, share of the grid, 0..1.
        levels: training timesteps of the noise draws, 0..999.
        draws: noise draws at each level.
        smooth: standard deviation, in grid cells, of the Gaussian that smooths the contrast.
        high, low: the templates of the two prompts.
        relative: take the logarithm of the ratio of the two smoothed errors instead of their difference.
        foreground: with ``relative``, how far regions where the low prompt's error is small, the plain background, are
            held back: 0 = not at all, 1 = by all of that error.
    """

    ratio: float = 0.5
    levels: tuple[int, ...] = (150, 400, 700)
    draws: int = 1
    smooth: float = 1.0
    high: str = HIGH_QUALITY
    low: str = LOW_QUALITY
    relative: bool = False
    foreground: float = 0.0

    def rows(self) -> int:
        return 2 * self.draws * len(self.levels)


@dataclass(frozen=True)
class RandomMask:
    """A random choice of grid cells (ablation), or of square blocks of ``block`` grid cells a side."""

    ratio: float = 0.5
    block: int = 1

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class WholeMask:
    """Everything: the "w/o mask" ablation, plain image-to-image."""

    ratio: float = 1.0

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class GivenMask:
    """A mask that the user gives, as the PNG bytes of a black and white picture (white is resampled)."""

    png: bytes
    ratio: float = 1.0

    def rows(self) -> int:
        return 0


MaskSource: TypeAlias = AttentionMask | ErrorContrastMask | RandomMask | WholeMask | GivenMask


_KINDS: dict[str, type[MaskSource]] = {
    "attention": AttentionMask,
    "error-contrast": ErrorContrastMask,
    "random": RandomMask,
    "whole": WholeMask,
}


def mask_kinds() -> dict[str, str]:
    """The kinds that have a name, each with one line about it."""
    return {kind: (source.__doc__ or "").strip().splitlines()[0] for kind, source in _KINDS.items()}


def mask_from_dict(values: Mapping[str, Any]) -> MaskSource:
    """The source of a description ``{"kind": "error-contrast", "ratio": 0.4, …}``; missing fields take their defaults.

    Raises:
        BadInput: an unknown kind or field, named together with the known ones.
    """
    settings = dict(values)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise unknown("mask kind", str(kind), _KINDS)
    source = _KINDS[kind]
    known = {field.name for field in fields(source)}
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of mask {kind!r}:", name, known)
        if isinstance(value, list):
            settings[name] = tuple(value)
    try:
        made = _checked(source(**settings))
        made.rows()
    except TypeError as error:
        raise BadInput(f"mask {kind!r} has a setting of the wrong type: {settings}") from error
    return made


def with_settings(source: MaskSource, settings: Mapping[str, Any]) -> MaskSource:
    """The source with other settings. ``level`` stands for ``levels=(level,)`` where a source has several.

    Raises:
        BadInput: the source has no such setting, or the ratio is not above 0 and at most 1.
    """
    settings = dict(settings)
    known = {field.name for field in fields(source)}
    if "level" in settings and "levels" in known:
        settings["levels"] = (settings.pop("level"),)
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {type(source).__name__}:", name, known)
    return _checked(replace(source, **settings))


def _checked(source: MaskSource) -> MaskSource:
    if not 0 < source.ratio <= 1:
        raise BadInput(f"a mask's ratio must be above 0 and at most 1, not {source.ratio}")
    return source


def mask_to_dict(source: MaskSource) -> dict[str, Any]:
    """The description of a source, for JSON; of named kinds the one that :func:`mask_from_dict` reads."""
    if isinstance(source, GivenMask):
        return {"kind": "given", "png": base64.b64encode(source.png).decode(), "ratio": source.ratio}
    kind = next(kind for kind, known in _KINDS.items() if isinstance(source, known))
    return {"kind": kind} | asdict(source)
