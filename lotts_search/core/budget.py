"""What a search may spend (:class:`Budget`) and what it has spent (:class:`Ledger`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

from lotts_search.core.costs import Cost, Costs
from lotts_search.errors import BadInput, BudgetExhausted
from lotts_search.work.masks import MaskSource
from lotts_search.work.requests import Usage

EPSILON = 1e-9
"""NFE are multiples of one half; their sums may be off by rounding. Images and FLOPs are whole numbers."""
CURRENCIES = ("nfe", "images", "flops")
"""What is reserved when a trial is called: fields of a cost and of a budget."""
UNCOUNTED = "the number of trials needs a budget in NFE, images or FLOPs"


@dataclass(frozen=True)
class Budget:
    """What a search may spend; None = without limit.

    Attributes:
        nfe: denoising steps of one latent; localization counts pro rata.
        images: number of complete images.
        seconds: wall-clock time after which the search stops, but not before its first image.
        target: guiding score at which the search stops.
        flops: floating-point operations, see docs/architecture.md, Cost; a fraction of one is cut off.
    """

    nfe: float | None = None
    images: int | None = None
    seconds: float | None = None
    target: float | None = None
    flops: float | None = field(default=None, repr=False)  # ids of searches without it are hashes of the rest

    def __post_init__(self) -> None:
        for name in ("nfe", "images", "seconds", "flops"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadInput(f"a budget's {name} must be a number of 0 or more, not {value}")
        if self.flops is not None:
            object.__setattr__(self, "flops", int(self.flops))
        if self.images is not None and self.images != int(self.images):
            raise BadInput(f"a budget's images must be a whole number, not {self.images}")
        if self.target is not None and math.isnan(self.target):
            raise BadInput("a budget's target must be a number, not nan")

    @property
    def counted(self) -> bool:
        """Whether NFE, images or FLOPs are limited, so that the number of trials is known beforehand."""
        return any(getattr(self, name) is not None for name in CURRENCIES)

    @overload
    def count(self, cost: Cost, most: int) -> int: ...

    @overload
    def count(self, cost: Cost, most: int | None = None) -> int | None: ...

    def count(self, cost: Cost, most: int | None = None) -> int | None:
        """Return how many trials of this cost the budget pays for, at most ``most``; None = without limit."""
        counts = [] if most is None else [most]
        return min([*counts, *(_times(limit, price) for limit, price in self._limits(cost))], default=None)

    def fraction(self, cost: Cost) -> float:
        """Return how many trials of this cost the budget pays for, with the fraction of the last one; infinite without
        limit."""
        return min((limit / price for limit, price in self._limits(cost)), default=math.inf)

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
            raise BadInput(UNCOUNTED)
        return count

    def allowed(self, image: Cost) -> Budget:
        """Return the budget of a strategy that itself decides how much goes into an image: where neither NFE nor FLOPs are
        limited, the NFE of N images that cost ``image`` each stand for N images.

        Raises:
            BadInput: it limits neither NFE nor images nor FLOPs.
        """
        if self.nfe is not None or self.flops is not None:
            return self
        return replace(self, nfe=self.paid(image) * image.nfe)

    def minus(self, cost: Cost) -> Budget:
        """Return what is left after this cost, never below 0."""
        limited: dict[str, Any] = {
            name: max(0, limit - getattr(cost, name))
            for name in CURRENCIES
            if (limit := getattr(self, name)) is not None
        }
        return replace(self, **limited)

    def price(self, cost: Cost) -> float:
        """Return a cost in the currency that the budget limits: in NFE, or in FLOPs where these are limited; where both are, as
        a share of the limit of which it takes more. For comparing trials with each other."""
        if self.flops is None:
            return cost.nfe
        if self.nfe is None:
            return float(cost.flops)
        return max(cost.nfe / self.nfe, cost.flops / self.flops)

    def spent_of(self, whole: Budget) -> float:
        """Return the share of ``whole`` that is spent when this is left, 0..1: of NFE, images or FLOPs, whichever is greatest."""
        shares = [(getattr(self, name), getattr(whole, name)) for name in CURRENCIES]
        return max((1 - left / all_ for left, all_ in shares if left is not None and all_), default=0.0)

    def _limits(self, cost: Cost) -> list[tuple[float, float]]:
        """Return the limits of all that this costs, each with the cost."""
        pairs = [(getattr(self, name), getattr(cost, name)) for name in CURRENCIES]
        return [(limit, price) for limit, price in pairs if limit is not None and price > 0]

    def words(self, cost: Cost) -> str:
        """Write a cost: in NFE and images, and in FLOPs where the budget limits them."""
        limited = f" and {cost.flops:.4g} FLOPs" if self.flops is not None else ""
        return f"{cost.nfe:g} NFE and {count_images(cost.images)}{limited}"

    def __str__(self) -> str:
        parts = [f"{self.nfe:g} NFE"] if self.nfe is not None else []
        parts += [count_images(self.images)] if self.images is not None else []
        parts += [f"{self.flops:.4g} FLOPs"] if self.flops is not None else []
        parts += [f"{self.seconds:g} s"] if self.seconds is not None else []
        return " and ".join(parts) or "without limit"


def _times(limit: float, price: float) -> int:
    if isinstance(limit, int) and isinstance(price, int):
        return limit // price  # exact, however large
    return math.floor(limit / price + EPSILON)


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
        costs: what trials cost, in all currencies.
        reserved: the sum over all trials called so far.
        stopped: why the strategy does not spend the rest of the budget; "" where it does.
    """

    limits: Budget
    costs: Costs
    reserved: Cost = field(default_factory=Cost)
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
        """The share of the budget in NFE, images or FLOPs that delivered trials have used, 0..1; 0 where none is limited."""
        return self.limits.minus(Cost(self.nfe, self.images, int(self.flops))).spent_of(self.limits)

    @property
    def remaining(self) -> float:
        """NFE that are not reserved yet; infinite without a limit."""
        left = self.left.nfe
        return math.inf if left is None else left

    def price(self, cost: Cost) -> float:
        """Return a cost in the currency of the whole budget, see :meth:`Budget.price`."""
        return self.limits.price(cost)

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
            raise BudgetExhausted(f"{self.limits.words(cost)} are not left of {self.limits}")
        self.reserved = self.reserved + cost
