"""Mask sources: ways to find the region to resample, with their settings.

A source is plain data that names its method; the built-in methods are in :mod:`lotts_search.localization`. To add a
kind, define a frozen dataclass derived from :class:`MaskSource`, see docs/masks.md. It is used as
``package.module:Class``, or by the name that an entry point of the group ``lotts_search.masks`` gives it.

``level`` is the noise level at which the network sees the finished image, in training timesteps 0..999 (0 = the last
timestep, the paper's choice). ``ratio`` is r, the share of the grid that the mask covers.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar

from lotts_search.errors import BadInput, refuse_renamed, unknown
from lotts_search.plugins import Entry, refuse_lacking, resolve, with_plugins

S = TypeVar("S", bound="MaskSource")

HIGH_QUALITY, LOW_QUALITY = "A high-quality image of {}", "A low-quality image of {}"
"""The paper's templates p+ and p−."""
GOOD, BAD = "A good image of {}", "A bad image of {}"
"""The paper's second pair of templates."""
MOST_DRAWS = 1000
"""Most noise draws of a localization: the network takes the rows of all of them."""


class MaskSource(ABC):
    """A way to find the region to resample. Every kind is a frozen dataclass whose fields all have defaults.

    Attributes:
        ratio: r, the share of the grid that the mask covers, above 0 to 1; the field that all kinds have.
        method: ``package.module:function``, called with (backbone, work, source); it returns a plan of
            :mod:`lotts_search.localization.plan`, or a :class:`~lotts_search.work.requests.Located` where the network
            is not needed.
        needs_decoded: whether the method reads the decoded image, ``work.image``.
    """

    ratio: float
    method: ClassVar[str] = ""
    needs_decoded: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        refuse_renamed(cls, {"pictured": "needs_decoded", "needs_picture": "needs_image"})

    @property
    def needs_image(self) -> bool:
        """Whether the decoded image must come with the work."""
        return self.needs_decoded

    @abstractmethod
    def rows(self) -> int:
        """Return the number of network rows of one localization, which is its cost."""

    def covers(self, grid: tuple[int, int]) -> float:
        """Return the share of the tokens (rows, columns) that the mask covers, as far as it is known before."""
        return self.ratio

    def untraced(self) -> MaskSource | None:
        """Return the source for an image without a known trajectory, such as an encoded one: this one, what replaces it, or
        None where it says nothing."""
        return self


@dataclass(frozen=True)
class AttentionMask(MaskSource):
    """MaskGen (LoTTS Algorithm 1, Eq. 5-8): contrast of cross-attention under p− and p+.

    Attributes:
        ratio: r, share of the grid, 0..1.
        alpha: weight of the original prompt's attention, 0 or more.
        level: training timestep at which attention is read, 0..999.
        noised: add noise of that level to the latent first (at level 0 the paper uses the clean latent).
        draws: how many noise draws are averaged; more than 1 is useful only with ``noised``.
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

    method: ClassVar[str] = "lotts_search.localization.maskgen:AttentionLocalization"

    def rows(self) -> int:
        """Return the number of network rows of one localization."""
        return 3 * self.draws


@dataclass(frozen=True)
class ConceptMask(MaskSource):
    """MaskGen on a transformer with joint attention (FLUX), in the manner of ConceptAttention (Helbling et al. 2025).

    The words of the three prompts run beside the image through the double-stream blocks: they attend to themselves
    and to the image, and the image never attends to them. A prompt's map is the dot product of the attention outputs
    of the image and of the prompt's words, before projection. All three prompts fit in one network row.

    Attributes:
        ratio: r, share of the grid of image tokens, 0..1.
        alpha: weight of the original prompt's map, 0 or more.
        level: training timestep at which the maps are read, 0..999.
        noised: add noise of that level to the latent first (at level 0 the paper uses the clean latent).
        draws: how many noise draws are averaged; more than 1 is useful only with ``noised``.
        blocks: how many of the last double-stream blocks are read; None = 10 of 19, or half of fewer.
        propagate: smooth by self-attention among the image queries (step 3); False is the ablation.
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
    blocks: int | None = None
    propagate: bool = True
    original: bool = True
    contrast: bool = True
    word_only: bool = False
    high: str = HIGH_QUALITY
    low: str = LOW_QUALITY

    method: ClassVar[str] = "lotts_search.localization.maskgen:ConceptLocalization"

    def rows(self) -> int:
        """Return the number of network rows of one localization; each stops after the double-stream blocks."""
        return self.draws


@dataclass(frozen=True)
class ErrorContrastMask(MaskSource):
    """Denoising-error contrast: the squared error of the x0 prediction under p+ minus that under p−, per position.

    It is a likelihood ratio: a region is probably damaged where p− explains the re-noised latent better.

    With ``relative`` the errors are compared by their ratio. Then ``high="{}", low=""`` measures how much the prompt
    helps to explain a region; it helps where the image shows the prompt's content undamaged.

    Attributes:
        ratio: r, share of the grid, 0..1.
        levels: training timesteps of the noise draws, 0..999.
        draws: noise draws at each level.
        smooth: standard deviation, in grid cells, of the Gaussian that smooths the contrast.
        high, low: the templates of the two prompts.
        relative: take the logarithm of the ratio of the two smoothed errors instead of their difference.
        foreground: with ``relative``, how strongly the plain background, where the low prompt's error is small, is
            suppressed: 0 = not at all, 1 = by all of that error.
    """

    ratio: float = 0.5
    levels: tuple[int, ...] = (150, 400, 700)
    draws: int = 1
    smooth: float = 1.0
    high: str = HIGH_QUALITY
    low: str = LOW_QUALITY
    relative: bool = False
    foreground: float = 0.0

    method: ClassVar[str] = "lotts_search.localization.error_contrast:ErrorContrastLocalization"

    def rows(self) -> int:
        return 2 * self.draws * len(self.levels)


@dataclass(frozen=True)
class RandomMask(MaskSource):
    """A random choice of grid cells (ablation), or of square blocks of ``block`` grid cells a side."""

    ratio: float = 0.5
    block: int = 1

    method: ClassVar[str] = "lotts_search.localization.select:locate_random"

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class WholeMask(MaskSource):
    """The whole image: the "w/o mask" ablation, plain image-to-image."""

    ratio: float = 1.0

    method: ClassVar[str] = "lotts_search.localization.select:locate_whole"

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class QualityMask(MaskSource):
    """Absolute quality: a no-reference map of the decoded image, without the network.

    Attributes:
        ratio: r, share of the latent grid.
        map: ``mscn``, ``sharpness`` or ``grain`` (see :mod:`lotts_search.localization.quality`), or
            ``package.module:function``, which takes an image [h, w, 3] uint8 and returns a map [h', w'] of any size,
            higher where the image is worse.
        smooth: standard deviation, in cells of the latent, of the Gaussian that smooths the map.
    """

    ratio: float = 0.5
    map: str = "mscn"
    smooth: float = 1.0

    method: ClassVar[str] = "lotts_search.localization.quality:locate_quality"
    needs_decoded: ClassVar[bool] = True

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class WindowMask(MaskSource):
    """The windows of the decoded image that a verifier scores lowest: a quality map by sliding windows (LoTTS, figure 7).

    Windows overlap, and the last of a row or column ends with the image. Where several overlap, their scores are averaged.

    Attributes:
        ratio: r, share of the latent grid.
        verifier: scores the windows: its name, or ``NAME:KEY=VALUE,…``. It should not depend on the prompt, which
            describes the whole image.
        patch: side of a window in pixels, below the shorter side of the image.
        stride: distance of neighbouring windows in pixels, 1 to ``patch``.
    """

    ratio: float = 0.5
    verifier: str = "brisque"
    patch: int = 64
    stride: int = 32

    method: ClassVar[str] = "lotts_search.localization.windows:WindowLocalization"
    needs_decoded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.patch:
            raise BadInput(f"stride must be 1 to patch, {self.patch} pixels, not {self.stride}")

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class JudgedMask(MaskSource):
    """The boxes in which a vision-language model finds something wrong.

    A judge that also scores the images in the same process is asked once.

    Attributes:
        ratio: r, share of the latent grid; where the boxes are smaller, the cells next to them follow.
        judge: the judge, as a verifier is named: ``vlm-judge``, or ``vlm-judge:KEY=VALUE,…`` with its settings.
        smooth: standard deviation, in cells of the latent, of the Gaussian that smooths the boxes.
    """

    ratio: float = 0.5
    judge: str = "vlm-judge"
    smooth: float = 2.0

    method: ClassVar[str] = "lotts_search.localization.judged:JudgedLocalization"
    needs_decoded: ClassVar[bool] = True

    def rows(self) -> int:
        return 0


@dataclass(frozen=True)
class DisagreementMask(MaskSource):
    """Disagreement between trajectories: the variance of x0 predictions over noise draws.

    Trajectories from the re-noised latent agree where the prompt and the rest of the image determine the content.

    Attributes:
        ratio: r, share of the latent grid.
        levels: training timesteps of the noise draws, 0..999.
        draws: noise draws at each level, 2 or more.
        smooth: standard deviation, in grid cells, of the Gaussian that smooths the variance.
    """

    ratio: float = 0.5
    levels: tuple[int, ...] = (500,)
    draws: int = 4
    smooth: float = 1.0

    method: ClassVar[str] = "lotts_search.localization.disagreement:DisagreementLocalization"

    def rows(self) -> int:
        return self.draws * len(self.levels)


@dataclass(frozen=True)
class TrajectoryMask(MaskSource):
    """Where the trajectory that made the image kept changing its x0 prediction in the second half of its steps.

    The network is not called: the map is a by-product of sampling. The idea is that of ASCED (arXiv 2503.16218). An encoded
    image and its refinements have no such map.

    Attributes:
        ratio: r, share of the latent grid.
        smooth: standard deviation, in grid cells, of the Gaussian that smooths the map.
        fallback: the source for images without a map, at this source's ratio; None = the model's default. As a part of a
            fusion, None = the other parts alone.
    """

    ratio: float = 0.5
    smooth: float = 1.0
    fallback: MaskSource | None = None

    method: ClassVar[str] = "lotts_search.localization.trajectory:locate_trajectory"

    def rows(self) -> int:
        return 0

    def untraced(self) -> MaskSource | None:
        found = None if self.fallback is None else self.fallback.untraced()
        return None if found is None else with_settings(found, {"ratio": self.ratio})


@dataclass(frozen=True)
class FusionMask(MaskSource):
    """Several sources at once: the weighted mean of their heat, each rescaled first. Their costs add up.

    Attributes:
        ratio: r, share of the latent grid; the ratios of the sources have no effect.
        sources: the sources to fuse, one or more.
        weights: one per source, 0 or more, in any unit; empty = equal weights.
        scale: ``rank`` replaces heat by its rank within the image, ``range`` rescales it to 0..1.
    """

    ratio: float = 0.5
    sources: tuple[MaskSource, ...] = (AttentionMask(), QualityMask(), DisagreementMask())
    weights: tuple[float, ...] = ()
    scale: Literal["rank", "range"] = "rank"

    method: ClassVar[str] = "lotts_search.localization.fusion:FusionLocalization"

    def __post_init__(self) -> None:
        if not self.sources:
            raise BadInput("a fused mask needs at least one source")
        if self.weights and len(self.weights) != len(self.sources):
            raise BadInput(f"{len(self.sources)} fused sources need as many weights, not {len(self.weights)}")
        if self.weights and not (min(self.weights) >= 0 and sum(self.weights) > 0):
            raise BadInput(f"weights must be 0 or more and not all 0, not {self.weights}")
        if self.scale not in ("rank", "range"):
            raise unknown("scale", str(self.scale), ("rank", "range"))

    @property
    def needs_image(self) -> bool:
        return any(source.needs_image for source in self.sources)

    def rows(self) -> int:
        return sum(source.rows() for source in self.sources)

    def untraced(self) -> MaskSource | None:
        weights = self.weights or (1.0,) * len(self.sources)
        parts = [(part.untraced(), weight) for part, weight in zip(self.sources, weights, strict=True)]
        left = [(part, weight) for part, weight in parts if part is not None]
        if [part for part, _ in left] == list(self.sources):
            return self
        if not sum(weight for _, weight in left):
            return None
        return replace(self, sources=tuple(part for part, _ in left), weights=tuple(weight for _, weight in left))


@dataclass(frozen=True)
class GivenMask(MaskSource):
    """The user's mask, as the PNG bytes of a black and white image; white is resampled.

    On the command line it is the path of a file: ``--set mask=face.png``.
    """

    png: bytes = b""
    ratio: float = 1.0

    method: ClassVar[str] = "lotts_search.localization.select:locate_given"

    def rows(self) -> int:
        return 0

    def covers(self, grid: tuple[int, int]) -> float:
        return _covered(self.png, grid)


@lru_cache(maxsize=8)
def _covered(png: bytes, grid: tuple[int, int]) -> float:
    from lotts_search.work.image_files import read_mask  # which imports requests, and they this module

    return float(read_mask(png, grid).mean())


_KINDS = [
    Entry("attention", "lotts_search.work.masks:AttentionMask", "Contrast of attention under p- and p+ (LoTTS)."),
    Entry(
        "concept-attention",
        "lotts_search.work.masks:ConceptMask",
        "The same on FLUX, in the manner of ConceptAttention.",
    ),
    Entry(
        "error-contrast", "lotts_search.work.masks:ErrorContrastMask", "Contrast of denoising errors under two prompts."
    ),
    Entry("quality", "lotts_search.work.masks:QualityMask", "No-reference quality map of the decoded image."),
    Entry("windows", "lotts_search.work.masks:WindowMask", "Sliding windows that a verifier scores lowest (LoTTS)."),
    Entry("judged", "lotts_search.work.masks:JudgedMask", "Boxes in which a vision-language model finds defects."),
    Entry("disagreement", "lotts_search.work.masks:DisagreementMask", "Variance of x0 predictions over noise draws."),
    Entry(
        "trajectory",
        "lotts_search.work.masks:TrajectoryMask",
        "Late changes of the x0 prediction while sampling; free.",
    ),
    Entry("fusion", "lotts_search.work.masks:FusionMask", "Weighted mean of several sources."),
    Entry("random", "lotts_search.work.masks:RandomMask", "A random choice of cells or blocks (ablation)."),
    Entry("whole", "lotts_search.work.masks:WholeMask", "Everything: image-to-image without a mask (ablation)."),
    Entry("given", "lotts_search.work.masks:GivenMask", "A black and white PNG of the user."),
]


def mask_kinds() -> dict[str, Entry]:
    """Return the kinds that have a name, including those of other packages."""
    return with_plugins("lotts_search.masks", _KINDS)


def mask_kind(name: str) -> type[MaskSource]:
    """Return the class of a kind's name or of ``package.module:Class``.

    Raises:
        BadInput: there is no such class, or it is not a mask source.
    """
    found = resolve("mask kind", name, mask_kinds())
    if not (isinstance(found, type) and issubclass(found, MaskSource) and is_dataclass(found)):
        raise BadInput(
            f"{name} is not a mask kind: it must be a dataclass derived from lotts_search.work.masks.MaskSource"
        )
    settings = {field.name: field for field in fields(found)}
    if "ratio" not in settings:
        raise BadInput(f"{name} is not a mask kind: it lacks the setting ratio")
    for field in settings.values():
        if field.init and field.default is MISSING and field.default_factory is MISSING:
            raise BadInput(f"{name} is not a mask kind: its setting {field.name} needs a default")
    refuse_lacking(found, "mask source", "rows()")
    if not found.__module__.startswith("lotts_search."):  # ours need torch, and are tested
        method_of(found)
    return found


def method_of(source: type[MaskSource]) -> Any:
    """Import the method of a mask source.

    Raises:
        BadInput: it cannot be imported.
    """
    if ":" not in source.method:
        raise BadInput(f"the method of {source.__name__} must be package.module:function, not {source.method!r}")
    return resolve(f"the method of {source.__name__}", source.method, {})


def mask_from_dict(values: Mapping[str, Any] | str) -> MaskSource:
    """Return the source of a description ``{"kind": "error-contrast", "ratio": 0.4, …}``.

    Args:
        values: missing fields take their defaults; a string is a kind without settings.

    Raises:
        BadInput: an unknown kind or field, listed with the known ones.
    """
    if not isinstance(values, str | Mapping):
        raise BadInput(f"a mask source is described by its kind, or by its kind and settings, not by {values!r}")
    settings: dict[str, Any] = {"kind": values} if isinstance(values, str) else dict(values)
    kind = str(settings.pop("kind", None))
    source = mask_kind(kind)
    known = {field.name for field in fields(source)}  # type: ignore[arg-type]
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of mask {kind!r}:", name, known)
        settings[name] = _from_plain(name, value)
    try:
        made = _checked(source(**settings))
        made.rows()
    except TypeError as error:
        raise BadInput(f"mask {kind!r} has a setting of the wrong type: {settings}") from error
    return made


def _from_plain(name: str, value: Any) -> Any:
    if name == "sources":
        return tuple(part if isinstance(part, MaskSource) else mask_from_dict(part) for part in value)
    if name == "fallback" and value is not None and not isinstance(value, MaskSource):
        return mask_from_dict(value)
    if name == "png" and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise BadInput("the mask's png is not base64") from error
    return tuple(value) if isinstance(value, list) else value


def with_settings(source: S, settings: Mapping[str, Any]) -> S:
    """Return the source with other settings; for a source with ``levels``, ``level`` stands for ``levels=(level,)``.

    Raises:
        BadInput: the source has no such setting, or the ratio is not above 0 and at most 1.
    """
    settings = dict(settings)
    known = {field.name for field in fields(source)}  # type: ignore[arg-type]
    if "level" in settings and "levels" in known:
        settings["levels"] = (settings.pop("level"),)
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {type(source).__name__}:", name, known)
    return _checked(replace(source, **settings))  # type: ignore[type-var]


def with_trajectory(source: MaskSource) -> MaskSource:
    """Return a contrast of denoising errors with half of its draws, fused with the image's trajectory, which costs nothing: in searches
    that refine refinements as good as all draws or better (docs/results/masks.md). Return other sources, and single draws, as they are."""
    if not isinstance(source, ErrorContrastMask) or source.draws < 2:
        return source
    half = replace(source, draws=source.draws // 2)
    return FusionMask(source.ratio, (half, TrajectoryMask()), (2.0, 1.0))


def _checked(source: S) -> S:
    if not 0 < source.ratio <= 1:
        raise BadInput(f"a mask's ratio must be above 0 and at most 1, not {source.ratio}")
    draws = getattr(source, "draws", 1)
    if isinstance(draws, int) and draws > MOST_DRAWS:
        raise BadInput(f"a mask's draws must be at most {MOST_DRAWS}, not {draws}")
    return source


def kind_of(source: MaskSource) -> str:
    """Return the name of a source's kind, or ``package.module:Class``."""
    path = f"{type(source).__module__}:{type(source).__qualname__}"
    return next((entry.name for entry in mask_kinds().values() if entry.target == path), path)


def replaced(wanted: MaskSource, used: MaskSource) -> str:
    """Return the notice that another source replaces one whose trajectory is not known; "" for the same source."""
    if used is wanted:
        return ""
    return f"the trajectory of the image is not known: {_title(used)} replaces {_title(wanted)}"


def _title(source: MaskSource) -> str:
    parts = f" of {', '.join(map(_title, source.sources))}" if isinstance(source, FusionMask) else ""
    return kind_of(source) + parts


def mask_to_dict(source: MaskSource) -> dict[str, Any]:
    """Return the description of a source for JSON; :func:`mask_from_dict` reads it."""
    values = {field.name: getattr(source, field.name) for field in fields(source)}  # type: ignore[arg-type]
    return {"kind": kind_of(source)} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, MaskSource):
        return mask_to_dict(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
