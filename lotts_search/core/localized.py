"""What strategies that resample located regions have in common: how a region is found, how a refinement goes."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.core.budget import Cost, Costs
from lotts_search.core.candidate import Candidate, Mask
from lotts_search.core.handle import Search
from lotts_search.core.strategy import Strategy
from lotts_search.core.virtual_time import Trial
from lotts_search.work.masks import MaskSource, with_settings
from lotts_search.work.requests import Background


@dataclass
class Localized(Strategy):
    """A strategy that locates regions (LoTTS Algorithm 1) and resamples them (Algorithm 2).

    Attributes:
        mask: how the region is found; None = the model's default.
        ratio: r, share of the image inside the mask, above 0 to 1.
        alpha: weight of the original prompt's attention.
        level: training timestep at which the image is looked at, 0..999.
        high: quality template p+, with {} for the prompt.
        low: quality template p-, with {} for the prompt.
        original: False leaves out the original prompt's attention (ablation).
        contrast: False leaves out the contrast of p- and p+ (ablation).
        propagate: False leaves out the smoothing by self-attention (ablation).
        start: t0, the step that refinements start from; None = the model's.
        integrate: tg, the number of last steps without the mask; None = the model's.
        background: noise outside the mask, one for all steps (fixed) or new at each (fresh).
        spatial: False keeps the latent outside the mask clean (ablation).
        temporal: False starts refinements from pure noise, t0 = 0 (ablation).
        holistic: False masks all steps, tg = 0 (ablation).
    """

    mask: MaskSource | None = None
    ratio: float | None = None
    alpha: float | None = None
    level: int | None = None
    high: str | None = None
    low: str | None = None
    original: bool = True
    contrast: bool = True
    propagate: bool = True
    start: int | None = None
    integrate: int | None = None
    background: Background = "fixed"
    spatial: bool = True
    temporal: bool = True
    holistic: bool = True

    def mask_source(self, costs: Costs) -> MaskSource:
        """How regions are found, with the settings given here.

        Raises:
            BadInput: a setting that this kind of mask does not have.
        """
        chosen = {name: getattr(self, name) for name in ("ratio", "alpha", "level", "high", "low")}
        given = {name: value for name, value in chosen.items() if value is not None}
        off = {name: False for name in ("original", "contrast", "propagate") if not getattr(self, name)}
        return with_settings(self.mask or costs.defaults.mask, given | off)

    def localization(self, costs: Costs) -> Cost:
        """What a localization costs."""
        return costs.localize(self.mask_source(costs))

    def refinement(self, costs: Costs) -> Cost:
        """What a refinement costs."""
        return costs.refine(self.begin(costs))

    def locate(self, search: Search, candidate: Candidate) -> Trial[Mask]:
        """The region of a complete candidate to resample."""
        return search.localize(candidate, self.mask_source(search.costs))

    def begin(self, costs: Costs) -> int:
        """The step that refinements start from."""
        return (costs.defaults.t0 if self.start is None else self.start) if self.temporal else 0

    def root(self, search: Search, seed: int = 0) -> Trial[Candidate]:
        """A complete candidate to begin from: the given image, or a sample."""
        return search.sample(seed) if search.image is None else search.encode(search.image)

    def refine(
        self, search: Search, parent: Candidate, mask: Mask, seed: int, stop: int | None = None
    ) -> Trial[Candidate]:
        """A refinement of ``parent`` inside ``mask``, up to the step ``stop`` (T by default)."""
        return search.refine(
            parent,
            mask,
            seed=seed,
            start=self.start if self.temporal else 0,
            integrate=self.integrate if self.holistic else 0,
            background=self.background,
            spatial=self.spatial,
            stop=stop,
        )
