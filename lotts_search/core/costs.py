"""What trials cost before they run, in denoising steps (NFE), complete images and floating-point operations (FLOPs)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lotts_search.errors import BadInput
from lotts_search.work.confined import EVERY, FAMILIES, PAYS, Confined, active_count, check_confined, in_tokens
from lotts_search.work.masks import MaskSource, kind_of, with_settings
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Bools, Sampling, Usage


@dataclass(frozen=True)
class Cost:
    """A cost in denoising steps (NFE, see docs/architecture.md, Cost), complete images and FLOPs. Costs add: ``a + 2 * b``.

    FLOPs are whole numbers, so that their sums are exact.
    """

    nfe: float = 0.0
    images: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nfe + other.nfe, self.images + other.images, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.nfe * times, self.images * times, self.flops * times)

    __rmul__ = __mul__


def total(lines: Iterable[tuple[str, int, Cost]]) -> Cost:
    """Return what lines of a plan (kind, number, cost of one) cost together."""
    return sum((number * cost for _, number, cost in lines), Cost())


@dataclass(frozen=True)
class Costs:
    """What the trials of one search cost.

    Attributes:
        steps: T of the search.
        guided: whether a denoising step takes two network rows.
        defaults: the model's default settings on T steps.
        traced: whether localized images come from pure noise in two steps or more, so that their trajectory is known.
        prices: FLOPs of single operations; those that are not known count as 0.
        beside: what a localization takes beside its network rows, by the repr of its mask source; nothing for others.
        grid: rows and columns of the tokens that the network can compute one without another; (0, 0) = it cannot, None = not
            known.
        confined: how masked steps of trajectories are computed; None = whole.
        integrate: tg, the number of last steps without the mask, of confined trajectories.
    """

    steps: int
    guided: bool
    defaults: Defaults
    traced: bool = True
    prices: Prices = field(default_factory=Prices)
    beside: Mapping[str, Usage] = field(default_factory=dict)
    grid: tuple[int, int] | None = (0, 0)
    confined: Confined | None = None
    integrate: int = 0

    @classmethod
    def of(cls, info: ModelInfo, sampling: Sampling, *, image: bool = False, prices: Prices | None = None) -> Costs:
        """Return the costs on a model with these settings, for searches from pure noise or from a given image.

        Args:
            prices: None = those of the model.
        """
        traced = sampling.steps > 1 and not image
        defaults = info.defaults.scaled(sampling.steps)
        grid = None if info.confines is None else (0, 0)
        if side := info.confines:
            grid = info.latent[1] // side, info.latent[2] // side
        prices = info.prices if prices is None else prices
        return cls(sampling.steps, sampling.guided, defaults, traced, prices, grid=grid)

    def under(self, sampling: Sampling) -> Costs:
        """Return the costs of trials with other sampling settings than the search's."""
        return replace(
            self,
            steps=sampling.steps,
            guided=sampling.guided,
            defaults=self.defaults.scaled(sampling.steps),
        )

    @property
    def step(self) -> Cost:
        """The cost of a denoising step, without decoding and scoring."""
        rows = self.prices.rows_per_step or (2 if self.guided else 1)
        return Cost(1.0, 0, int(rows * self.prices.row))

    @property
    def tokens(self) -> int:
        """The number of tokens of the grid; 0 = none, or not known."""
        return math.prod(self.grid or (0, 0))

    @property
    def refresh(self) -> int:
        """Every how many masked steps one is whole where ``refresh`` is not chosen; 1 = all, because the model cannot be confined, or
        has too few tokens to gain by it."""
        return EVERY if self.tokens >= PAYS else 1

    def confine(self, masked: float, refresh: int, warmup: int, ring: int) -> Confined | None:
        """Return how refinements are computed whose mask covers this share of the tokens; None = whole, because all tokens would
        be active, all steps are, or the tokens are not known yet.

        Raises:
            BadInput: a setting out of its range, or the model cannot do this.
        """
        check_confined(refresh, warmup, ring)
        if self.grid is None or refresh == 1:
            return None
        if not self.tokens:
            raise BadInput(
                f"refresh={refresh} confines the network to the mask, which this model's cannot be: only those of the families"
                f" {', '.join(FAMILIES)} can, loaded without compile"
            )
        active = active_count(math.ceil(round(masked * self.tokens, 6)), self.tokens, ring)
        if active == self.tokens:
            return None
        return Confined(refresh, warmup, active, self.tokens, self.prices.confined(active / self.tokens))

    def touched(self, mask: Bools) -> float:
        """Return the share of the tokens that a mask [H, W] on the latent touches; of its cells where there are none."""
        return float(in_tokens(mask, mask.shape[0] // self.grid[0] if self.grid and self.tokens else 1).mean())

    def steps_of(self, calls: int, few: int, confined: Confined | None = None) -> Cost:
        """Return the cost of network calls of which ``few`` are confined."""
        whole = (calls - few) * self.step
        if confined is None or not few:
            return whole
        return whole + few * Cost(confined.share, 0, int(self.step.flops * confined.share))

    @property
    def decode(self) -> Cost:
        """The cost of decoding a latent that has reached step T, for an image that is left unscored."""
        return Cost(0.0, 1, int(self.prices.decode))

    @property
    def image(self) -> Cost:
        """The cost of decoding and scoring a latent that has reached step T."""
        return self.decode + self.scores(1)

    @property
    def preview(self) -> Cost:
        """The cost of decoding an x0 prediction of a partial candidate."""
        return Cost(flops=int(self.prices.preview))

    @property
    def encode(self) -> Cost:
        """The cost of encoding and scoring a given image."""
        return Cost(flops=int(self.prices.encode)) + self.scores(1)

    def scores(self, count: int) -> Cost:
        """Return the cost of scoring images that are there, such as mosaics."""
        return Cost(flops=count * int(self.prices.score))

    @property
    def sample(self) -> Cost:
        """The cost of an image from pure noise."""
        return self.trajectory(self.steps)

    def trajectory(self, steps: int) -> Cost:
        """Return the cost of an image from pure noise in ``steps`` steps."""
        return steps * self.step + self.image

    @property
    def score(self) -> Cost:
        """The cost of scoring a partial candidate: the network call of its next step, its decoding and its score. The score
        of a complete one is a part of :attr:`image`."""
        return self.step + self.known_score

    @property
    def known_score(self) -> Cost:
        """The cost of scoring an x0 prediction that is known: its decoding and its score."""
        return self.preview + self.scores(1)

    def segment(self, start: int, stop: int, scored: bool = False) -> Cost:
        """Return the cost of a part of a trajectory; ``scored``: the score of its start has paid for its first step."""
        calls = stop - start - int(scored)
        masked = calls - max(0, stop - max(start, self.steps - self.integrate))
        steps = self.steps_of(calls, self.confined.count(masked) if self.confined else 0, self.confined)
        return steps + self.image if stop == self.steps else steps

    def refine(self, start: int | None = None) -> Cost:
        """Return the cost of a refinement from step ``start`` (t0 by default): ``T − start`` NFE."""
        return self.segment(self.defaults.t0 if start is None else start, self.steps)

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
        """Return the cost of a localization: its network rows pro rata, half an NFE per row where a step takes two, and what
        else its source takes."""
        source = self.mask_source(source)
        rows = source.rows()
        nfe = rows / 2 if self.guided else rows
        used = self.beside.get(repr(source), Usage())
        return Cost(nfe, 0, int(rows * self.prices.row + self.flops("localize", used)))

    def flops(self, kind: str, usage: Usage) -> float:
        """Return the FLOPs of what a trial of this kind used: as counted, or at the prices of a published model."""
        if self.prices.rows_per_step is None:
            return usage.flops
        located = kind == "localize"
        work = {"steps": 0.0 if located else usage.nfe, "located": usage.rows if located else 0}
        return float(self.prices.flops(vars(usage) | work))
