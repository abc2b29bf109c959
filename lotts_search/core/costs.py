"""What trials cost before they run, in denoising steps (NFE), complete images and floating-point operations (FLOPs)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lotts_search.errors import BadInput
from lotts_search.work.masks import MaskSource, kind_of, with_settings
from lotts_search.work.model import Defaults, ModelInfo
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Sampling, Usage


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
    """

    steps: int
    guided: bool
    defaults: Defaults
    traced: bool = True
    prices: Prices = field(default_factory=Prices)
    beside: Mapping[str, Usage] = field(default_factory=dict)

    @classmethod
    def of(cls, info: ModelInfo, sampling: Sampling, *, image: bool = False, prices: Prices | None = None) -> Costs:
        """Return the costs on a model with these settings, for searches from pure noise or from a given image.

        Args:
            prices: None = those of the model.
        """
        traced = sampling.steps > 1 and not image
        defaults = info.defaults.scaled(sampling.steps)
        return cls(sampling.steps, sampling.guided, defaults, traced, info.prices if prices is None else prices)

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
        steps = (stop - start - int(scored)) * self.step
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
