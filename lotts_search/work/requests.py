"""Requests of a search to a pool, and the results: plain picklable values with numpy arrays, without torch.

Shapes: ``C, H, W`` are the channels, height and width of the latent; latents are float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from lotts_search.errors import BadInput, unknown
from lotts_search.work.confined import Confined
from lotts_search.work.masks import MaskSource

if TYPE_CHECKING:
    from lotts_search.work.model import ModelInfo

Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Choices: TypeAlias = npt.NDArray[np.uint8]
"""For each cell of a grid over the image, the number of the candidate that fills it."""

Lineage: TypeAlias = tuple[str, ...]
"""The chain of seeds that a candidate's noise is drawn from, oldest first, e.g. ``("seed 3", "refine@8 1",
"branch@12 0")``. It grows only by a new seed or a refinement."""


@dataclass(frozen=True)
class Fresh:
    """Start noise drawn from a seed."""

    seed: int


@dataclass(frozen=True)
class Near:
    """A neighbour of a start noise: ``‖n‖(τ·u + √(1−τ²)·w⊥)`` with ``u`` the unit vector of ``n``."""

    base: Noise
    tau: float
    seed: int


@dataclass(frozen=True)
class Mix:
    """A mutation of a start noise: ``√(1−β²)·n + β·ε``."""

    base: Noise
    beta: float
    seed: int


@dataclass(frozen=True)
class Low:
    """A start noise whose low frequencies are given, see :mod:`lotts_search.work.frequencies`.

    Attributes:
        base: the high frequencies are its own.
        size: rows and columns of the grid of coefficients.
        values: the C · rows · columns coefficients, standard normal in a fresh noise.
    """

    base: Noise
    size: tuple[int, int]
    values: tuple[float, ...]


Noise: TypeAlias = Fresh | Near | Mix | Low

Solver: TypeAlias = Literal["dpm", "ddim"]
"""``dpm`` is SDE-DPM-Solver++(2M); both are in :mod:`lotts_search.engine.solver`."""


def check_eta(eta: float, solver: Solver) -> None:
    """Refuse a noise amount outside the solver's range.

    Raises:
        BadInput: ``eta`` is not a number of 0 or more, or for DDIM not within 0..1.
    """
    if solver == "ddim" and not 0 <= eta <= 1:
        raise BadInput(f"eta of DDIM must be within 0..1, got {eta}")
    if not 0 <= eta < math.inf:
        raise BadInput(f"eta must be a number of 0 or more, got {eta}")


MOST_STEPS = 10_000
"""Steps of a schedule, which is computed as a whole; a model may refuse fewer."""


def check_steps(steps: float) -> None:
    """Refuse a number of steps that no model has.

    Raises:
        BadInput: it is not a whole number within 1..:data:`MOST_STEPS`.
    """
    if not 1 <= steps <= MOST_STEPS or steps != int(steps):
        raise BadInput(f"steps must be a whole number within 1..{MOST_STEPS}, not {steps}")


def check_guidance(guidance: float, embedded: bool) -> None:
    """Refuse a guidance weight that would do nothing: classifier-free guidance below 1, or one below 0.

    Raises:
        BadInput: see above, or the weight is not a finite number.
    """
    if not math.isfinite(guidance):
        raise BadInput(f"guidance must be a finite number, not {guidance}")
    if guidance < (0 if embedded else 1):
        raise BadInput(f"guidance must be {'0 or more' if embedded else '1 (unguided) or more'}, not {guidance:g}")


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a trajectory. Segments with equal settings can continue each other.

    Attributes:
        prompt: text prompt.
        negative: negative prompt of the unconditional row.
        steps: T, the number of denoising steps of the whole schedule.
        guidance: guidance weight; when classifier-free 1 or more, 1 = unguided (one network row per step).
        eta: noise amount of the solver. ``dpm``: 0 or more, 1 = SDE-DPM-Solver++(2M), 0 = deterministic
            DPM-Solver++(2M). ``ddim``: 0..1, 1 = as much noise as DDPM, 0 = deterministic.
        solver: computes a step from the x0 prediction.
        embedded: the guidance weight is an input of the network (FLUX.1-dev): one row per step at any weight, and no
            negative prompt.
    """

    prompt: str
    steps: int
    guidance: float
    negative: str = ""
    eta: float = 1.0
    solver: Solver = "dpm"
    embedded: bool = False

    @classmethod
    def of(
        cls,
        info: ModelInfo,
        prompt: str,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str = "",
        eta: float | None = None,
        solver: Solver | None = None,
    ) -> Self:
        """The settings of a model, or others where they are given.

        Args:
            eta: None = the model's default with the model's default solver, 1 with another.

        Raises:
            BadInput: a setting out of its range, an unknown solver, or a negative prompt that would not be used: where
                guidance is embedded or 1.
        """
        defaults = info.defaults
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        solver = defaults.solver if solver is None else solver
        if solver not in get_args(Solver):
            raise unknown("solver", str(solver), get_args(Solver))
        if eta is None:
            # The model's eta was chosen for the model's solver.
            eta = defaults.eta if solver == defaults.solver else 1.0
        check_steps(steps)
        check_guidance(guidance, info.embedded_guidance)
        check_eta(eta, solver)
        if negative and info.embedded_guidance:
            raise BadInput(f"{info.name} takes no negative prompt: its guidance is built into the network")
        if negative and guidance == 1:
            raise BadInput(f"the negative prompt {negative!r} would not be used: it needs guidance above 1")
        return cls(prompt, steps, guidance, negative, eta, solver, info.embedded_guidance)

    @property
    def guided(self) -> bool:
        """Whether a step takes two network rows."""
        return self.guidance > 1 and not self.embedded


Background: TypeAlias = Literal["fixed", "fresh"]

Blank: TypeAlias = Literal["fail", "whole", "random"]
"""What follows where a localization's map is the same everywhere: it fails, or the mask is everything or random cells."""


@dataclass(frozen=True)
class Region:
    """The localized part of a refinement (LoTTS Algorithm 2), carried along until it is complete.

    Attributes:
        mask: [H, W], True where the latent is resampled.
        origin: [C, H, W], the parent's clean latent ``x0``.
        lineage: of the background noise ε2 (that of the refinement itself).
        integrate: tg, the number of last steps without the mask.
        background: one ε2 along the refinement (``fixed``) or a new one per step (``fresh``).
        spatial: False keeps the latent outside the mask clean instead of forward-noised (the ablation).
        confined: how the masked steps are computed; None = all of them whole.
    """

    mask: Bools
    origin: Floats
    lineage: Lineage
    integrate: int
    background: Background = "fixed"
    spatial: bool = True
    confined: Confined | None = None


@dataclass(frozen=True)
class State:
    """A latent at a step, with everything needed to continue from it.

    Attributes:
        latent: [C, H, W] at ``step``; clean when ``step == steps``.
        step: steps already done, 0 = pure noise.
        steps: T of the schedule that the latent is on.
        previous: x0 prediction of the previous step (the solver's history), None at the start of a trajectory.
        predicted: x0 prediction at this step if scoring has already paid for it; the next step uses it.
        region: of the refinement in progress, None outside of one.
        change: [H, W] how much the x0 prediction has changed so far, see :mod:`lotts_search.work.change_maps`; None where no
            trajectory from pure noise led here, as for an encoded image and its refinements.
    """

    latent: Floats
    step: int
    steps: int
    previous: Floats | None = None
    predicted: Floats | None = None
    region: Region | None = None
    change: Floats | None = None

    @property
    def complete(self) -> bool:
        return self.step == self.steps


@dataclass(frozen=True)
class Segment:
    """Carry a latent to step ``stop``: the one unit of generation.

    It starts in exactly one of three ways:
      * ``noise`` is set: start from that noise at step 0;
      * ``renoise`` is set: ``state`` is complete; re-noise it to step ``renoise`` (with ``region`` inside the mask,
        LoTTS Algorithm 2; its solver history is reset);
      * neither: continue from ``state``.

    The solver's noise at step i is a pure function of (search_seed, lineage, i).
    A complete result is decoded to an image.
    """

    search_seed: int
    sampling: Sampling
    lineage: Lineage
    stop: int
    noise: Noise | None = None
    state: State | None = None
    renoise: int | None = None
    region: Region | None = None

    @property
    def start(self) -> int:
        if self.noise is not None:
            return 0
        if self.renoise is not None:
            return self.renoise
        assert self.state is not None
        return self.state.step

    @property
    def calls(self) -> int:
        """Network calls of the segment; an x0 prediction already paid for is not computed again."""
        paid = self.renoise is None and self.state is not None and self.state.predicted is not None
        return self.stop - self.start - int(paid and self.stop > self.start)

    @property
    def resampled(self) -> Region | None:
        """The region that it resamples; None = everything."""
        return self.region if self.renoise is not None or self.state is None else self.state.region

    @property
    def confined(self) -> int:
        """Those of the network calls that are confined to active tokens."""
        region = self.resampled
        if region is None or region.confined is None:
            return 0
        unmasked = self.stop - max(self.start, self.sampling.steps - region.integrate)
        return region.confined.count(self.calls - max(0, unmasked))

    @property
    def nfe(self) -> float:
        """Denoising steps that the segment is charged: its network calls, of the confined ones only their share."""
        region, few = self.resampled, self.confined
        share = 1.0 if region is None or region.confined is None else region.confined.share
        return self.calls - few + few * share


@dataclass(frozen=True)
class Predict:
    """Predict and decode x0 of a partial state, so that a verifier can score it. Costs the next step's NFE."""

    state: State
    sampling: Sampling

    @property
    def nfe(self) -> float:
        return 0.0 if self.state.predicted is not None else 1.0


@dataclass(frozen=True)
class Locate:
    """Find the region to resample in a complete state.

    Attributes:
        search_seed, lineage: the noise of a method follows from them: ``draw(search_seed, lineage, "locate", i, shape)``.
        state: the complete state; ``state.latent`` is the clean latent [C, H, W] float32.
        sampling: prompt, steps and guidance that the image was made with.
        source: the mask source with its settings.
        image: the decoded image [h, w, 3] uint8, for sources that need it; None for others.
        blank: what follows where the map is the same everywhere; a part of a fused map may stay so (``keep``).
    """

    search_seed: int
    lineage: Lineage
    state: State
    sampling: Sampling
    source: MaskSource
    image: Bytes | None = None
    blank: Blank | Literal["keep"] = "fail"

    @property
    def nfe(self) -> float:
        """Its network rows, pro rata: a guided step runs two rows and counts once."""
        return self.source.rows() / (2 if self.sampling.guided else 1)


@dataclass(frozen=True)
class Encode:
    """Encode an image [h, w, 3] uint8 of the model's size to a complete state."""

    image: Bytes
    steps: int

    @property
    def nfe(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Check:
    """Say what of a search cannot work on the model, before anything is paid for. It fails, or answers with a note, and as
    its usage with what one localization by the source will use beside network rows.

    Attributes:
        sampling: the search's settings.
        verifier: name of the verifier that guides it.
        source: the mask source of its localizations; None where it has none.
        blank: as in :class:`Locate`.
    """

    sampling: Sampling
    verifier: str
    source: MaskSource | None = None
    blank: Blank = "fail"

    @property
    def nfe(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Score:
    """Score images' agreement with a prompt; higher is better. A ``probe`` only asks whether there is a score; it need
    not be finite."""

    verifier: str
    prompt: str
    image: Bytes
    probe: bool = False

    @property
    def nfe(self) -> float:
        return 0.0


@dataclass(frozen=True)
class ScoreMosaics:
    """Score mosaics of images that are sent once: mosaic k shows in cell (i, j) what image ``choices[k, i, j]`` shows
    there (:func:`lotts_search.work.mosaics.mosaic`).

    Attributes:
        images: [M, h, w, 3].
        choices: [K, rows, columns], 0..M-1.
    """

    verifier: str
    prompt: str
    images: Bytes
    choices: Choices

    @property
    def nfe(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Rewrite:
    """Write revised prompts that add what an image of the original prompt lacks.

    Attributes:
        rewriter: its name.
        prompt: the original prompt.
        image: [h, w, 3] uint8, the current image or decoded x0 prediction.
        count: number of revised prompts.
        seed: of the rewriter's randomness.
    """

    rewriter: str
    prompt: str
    image: Bytes
    count: int
    seed: int

    @property
    def nfe(self) -> float:
        return 0.0


Generate: TypeAlias = Segment | Predict | Locate | Encode | Check
"""Work for a generator."""
Judge: TypeAlias = Score | ScoreMosaics
"""Work for a verifier."""
Work: TypeAlias = Generate | Judge | Rewrite
"""Work for a pool."""


@dataclass
class Usage:
    """What a piece of work used.

    Attributes:
        nfe: denoising steps, see docs/architecture.md, Cost.
        rows: network rows.
        flops: floating-point operations of network rows, decoding, encoding and scoring.
        images, decodes, scores: complete images, images decoded, and scores.
        previews: those of the decoded images that show x0 predictions of partial candidates.
        encodes: images encoded.
        device_s: seconds on the device; the time of a batch is shared out by rows.
        nfe_wasted: NFE of tries that were lost.
        rewrites: requests to the rewriter.
        fallbacks: prompts that the rewriter owed and the original prompt stood in for.
    """

    nfe: float = 0.0
    rows: int = 0
    flops: float = 0.0
    images: int = 0
    decodes: int = 0
    scores: int = 0
    device_s: float = 0.0
    nfe_wasted: float = 0.0
    rewrites: int = 0
    fallbacks: int = 0
    previews: int = 0
    encodes: int = 0

    def __iadd__(self, other: Usage) -> Self:
        mine = vars(self)
        for name, value in vars(other).items():
            mine[name] += value
        return self


@dataclass
class Located:
    """A located region: its mask, and the stages that led to it, for reports.

    Attributes:
        mask: [H, W] bool on the latent grid; exactly ⌈r·h·w⌉ cells of the [h, w] grid of the heat map, upsampled.
        heat: [h, w] float32 in 0..1, the map whose highest cells were selected.
        stages: named maps [h, w], in the order of the algorithm, e.g. ori, pos, neg, contrast, propagated, reweighted.
        confidence: mean heat inside the mask minus mean heat outside, 0..1.
    """

    mask: Bools
    heat: Floats
    stages: dict[str, Floats] = field(default_factory=dict)
    confidence: float = 0.0


@dataclass
class Result:
    """The answer to one piece of work.

    Attributes:
        usage: of the successful attempt; what lost attempts used is in ``usage.nfe_wasted``.
        state: of Segment, Predict (with ``predicted`` filled) and Encode.
        image: [h, w, 3] uint8, of complete Segments, Predict and Encode.
        image_hash: content hash of the image, once it is known.
        located: of Locate.
        score: of Score.
        scores: of ScoreMosaics, one per mosaic.
        prompts: of Rewrite, as many as requested.
        note: why the original prompt replaces some of them, why a mask is not that of its source, or what a check
            reports.
        queue_s: seconds between the request and the start.
        started, finished: seconds since the epoch.
        node, actor: where it ran.
        attempts: number of attempts.
    """

    usage: Usage
    state: State | None = None
    image: Bytes | None = None
    located: Located | None = None
    score: float | None = None
    queue_s: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    node: str = ""
    actor: str = ""
    attempts: int = 1
    prompts: tuple[str, ...] = ()
    note: str = ""
    scores: tuple[float, ...] = ()
    image_hash: str = ""
