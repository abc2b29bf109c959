"""What a search may spend (:class:`Budget`), what trials cost (:class:`Costs`) and what was spent (:class:`Ledger`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, overload

from lotts_search.errors import BadInput, BudgetExhausted
from lotts_search.work.masks import MaskSource, kind_of, with_settings
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.requests import Sampling, Usage

EPSILON = 1e-9
"""NFE are multiples of one half; their sums may be off by rounding."""


@dataclass(frozen=True)
class Cost:
    """A cost in denoising steps (NFE, see docs/architecture.md, Cost) and complete images. Costs add: ``a + 2 * b``."""

    nfe: float = 0.0
    images: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nfe + other.nfe, self.images + other.images)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.nfe * times, self.images * times)

    __rmul__ = __mul__


def scaled(defaults: Defaults, steps: int) -> Defaults:
    """Return a model's defaults on a schedule of ``steps`` steps; t0 and tg keep their share of the schedule."""
    if steps == defaults.steps:
        return defaults
    t0 = min(max(round(defaults.t0 * steps / defaults.steps), 0), steps - 1)
    integrate = min(round(defaults.integrate * steps / defaults.steps), steps - t0)
    return replace(defaults, steps=steps, t0=t0, integrate=integrate)


@dataclass(frozen=True)
class Costs:
    """What the trials of one search cost.

    Attributes:
        steps: T of the search.
        guided: whether a denoising step takes two network rows.
        defaults: the model's default settings on T steps.
        traced: whether localized images come from pure noise in two steps or more, so that their trajectory is known.
    """

    steps: int
    guided: bool
    defaults: Defaults
    traced: bool = True

    @classmethod
    def of(cls, info: ModelInfo, sampling: Sampling, *, image: bool = False) -> Costs:
        """Return the costs on a model with these settings, for searches from pure noise or from a given image."""
        traced = sampling.steps > 1 and not image
        return cls(sampling.steps, sampling.guided, scaled(info.defaults, sampling.steps), traced)

    @property
    def sample(self) -> Cost:
        """The cost of an image from pure noise."""
        return self.trajectory(self.steps)

    def trajectory(self, steps: int) -> Cost:
        """Return the cost of an image from pure noise in ``steps`` steps."""
        return Cost(steps, 1)

    @property
    def score(self) -> Cost:
        """The cost of scoring a partial candidate: the network call of its next step. Scoring a complete one is free."""
        return Cost(1.0)

    def segment(self, start: int, stop: int, scored: bool = False) -> Cost:
        """Return the cost of a part of a trajectory; ``scored``: the score of its start has paid for its first step."""
        return Cost(stop - start - int(scored), int(stop == self.steps))

    def refine(self, start: int | None = None) -> Cost:
        """Return the cost of a refinement from step ``start`` (t0 by default): ``T − start`` NFE."""
        return Cost(self.steps - (self.defaults.t0 if start is None else start), 1)

    def mask_source(self, source: MaskSource | None = None) -> MaskSource:
        """Return the source that a localization uses: the given one or the model's default, or what replaces it where
        trajectories are not known.

        Raises:
            BadInput: nothing replaces it.
        """
        source = source or self.defaults.mask
        if self.traced:
            return source
        if (found := source.untraced()) is not None:
            return found
        if (found := self.defaults.mask.untraced()) is not None:
            return with_settings(found, {"ratio": source.ratio})
        raise BadInput(f"{kind_of(source)} needs the image's trajectory, which is not known: give it a fallback")

    def localize(self, source: MaskSource | None = None) -> Cost:
        """Return the cost of a localization: its network rows pro rata, half an NFE per row where a step takes two."""
        rows = self.mask_source(source).rows()
        return Cost(rows / 2 if self.guided else rows)


@dataclass(frozen=True)
class Budget:
    """What a search may spend; None = without limit.

    Attributes:
        nfe: denoising steps of one latent; localization counts pro rata.
        images: number of complete images.
        seconds: wall-clock time after which the search stops, but not before its first image.
        target: guiding score at which the search stops.
    """

    nfe: float | None = None
    images: int | None = None
    seconds: float | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        for name in ("nfe", "images", "seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadInput(f"a budget's {name} must be a number of 0 or more, not {value}")
        if self.images is not None and self.images != int(self.images):
            raise BadInput(f"a budget's images must be a whole number, not {self.images}")
        if self.target is not None and math.isnan(self.target):
            raise BadInput("a budget's target must be a number, not nan")

    @property
    def counted(self) -> bool:
        """Whether NFE or images are limited, so that the number of trials is known beforehand."""
        return self.nfe is not None or self.images is not None

    @overload
    def count(self, cost: Cost, most: int) -> int: ...

    @overload
    def count(self, cost: Cost, most: int | None = None) -> int | None: ...

    def count(self, cost: Cost, most: int | None = None) -> int | None:
        """Return how many trials of this cost the budget pays for, at most ``most``; None = without limit."""
        counts = [] if most is None else [most]
        if self.nfe is not None and cost.nfe > 0:
            counts.append(max(0, math.floor(self.nfe / cost.nfe + EPSILON)))
        if self.images is not None and cost.images > 0:
            counts.append(max(0, self.images // cost.images))
        return min(counts, default=None)

    def pays(self, cost: Cost) -> bool:
        """Return whether it covers one trial of this cost."""
        return self.count(cost) != 0

    def paid(self, cost: Cost, most: int | None = None) -> int:
        """Return how many trials of this cost the budget pays for, at most ``most``, where there must be a limit.

        Raises:
            BadInput: neither the budget nor ``most`` sets one.
        """
        count = self.count(cost, most)
        if count is None:
            raise BadInput("the number of trials needs a budget in NFE or images")
        return count

    def allowance(self, image: Cost) -> float:
        """Return the NFE for a strategy that itself decides how many go into an image. Without a limit in NFE, N images
        stand for the steps of N that cost ``image`` each.

        Raises:
            BadInput: it limits neither NFE nor images.
        """
        return self.paid(image) * image.nfe if self.nfe is None else self.nfe

    def minus(self, cost: Cost) -> Budget:
        """Return what is left after this cost, never below 0."""
        return replace(
            self,
            nfe=None if self.nfe is None else max(0.0, self.nfe - cost.nfe),
            images=None if self.images is None else max(0, self.images - cost.images),
        )

    def spent_of(self, whole: Budget) -> float:
        """Return the share of ``whole`` that is spent when this is left, 0..1: of NFE or of images, whichever is greater."""
        shares = [(self.nfe, whole.nfe), (self.images, whole.images)]
        return max((1 - left / all_ for left, all_ in shares if left is not None and all_), default=0.0)

    def __str__(self) -> str:
        parts = [f"{self.nfe:g} NFE"] if self.nfe is not None else []
        parts += [count_images(self.images)] if self.images is not None else []
        parts += [f"{self.seconds:g} s"] if self.seconds is not None else []
        return " and ".join(parts) or "without limit"


def count_images(count: int) -> str:
    """Write a number of images: ``1 image``, ``2 images``."""
    return f"{count} image{'' if count == 1 else 's'}"


@dataclass(kw_only=True)
class Ledger(Usage):
    """What a search spent, summed over all delivered trials, beside what it may spend.

    The cost of a trial is reserved when it is called, in virtual order. What it used is entered when it is delivered,
    once, however often it was tried.

    Attributes:
        limits: the budget.
        costs: what trials cost.
        reserved: the sum over all trials called so far.
        stopped: why the strategy does not spend the rest of the budget; "" where it does.
    """

    limits: Budget
    costs: Costs
    reserved: Cost = Cost()
    stopped: str = ""

    def stop(self, why: str) -> None:
        """Record for reports why the strategy does not spend what is :attr:`left`. The strategy itself has to end."""
        self.stopped = why

    @property
    def left(self) -> Budget:
        """The budget that is not reserved yet."""
        return self.limits.minus(self.reserved)

    @property
    def spent(self) -> float:
        """The share of the budget in NFE or images that delivered trials have used, 0..1; 0 where neither is limited."""
        return self.limits.minus(Cost(self.nfe, self.images)).spent_of(self.limits)

    @property
    def remaining(self) -> float:
        """NFE that are not reserved yet; infinite without a limit."""
        left = self.left.nfe
        return math.inf if left is None else left

    def cost_of(
        self, trial: Literal["sample", "refine", "localize", "score"], setting: int | MaskSource | None = None
    ) -> float:
        """Return the NFE of a trial, e.g. ``cost_of("refine", 8)`` from step 8 or ``cost_of("localize", source)``."""
        match trial, setting:
            case "sample", int() | None:
                return self.costs.trajectory(self.costs.steps if setting is None else setting).nfe
            case "refine", int() | None:
                return self.costs.refine(setting).nfe
            case "score", None:
                return self.costs.score.nfe
            case "localize", _ if not isinstance(setting, int):
                return self.costs.localize(setting).nfe
        raise BadInput(f"there is no cost of {trial!r} with {setting!r}")

    def reserve(self, cost: Cost) -> None:
        """Set the cost of a trial aside.

        Raises:
            BudgetExhausted: the budget does not cover it; nothing is reserved then.
        """
        if not self.left.pays(cost):
            raise BudgetExhausted(f"{cost.nfe:g} NFE and {count_images(cost.images)} are not left of {self.limits}")
        self.reserved = self.reserved + cost
