"""What all strategies that resample located regions share: how a region is found and how it is resampled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lotts_search.core.candidate import Candidate, Mask
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.handle import Search
from lotts_search.core.strategy import Strategy
from lotts_search.core.virtual_time import Trial
from lotts_search.errors import BadInput, notice
from lotts_search.work.masks import MaskSource, replaced, with_settings, with_trajectory
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Background, Blank


@dataclass
class Localized(Strategy):
    """A strategy that locates regions (LoTTS, Algorithm 1: MaskGen) and resamples them (Algorithm 2: LocalizedResample).

    Subclasses start from :meth:`root`, so that they also accept a given image.

    Attributes:
        mask: how the region is found; None = the model's default.
        ratio: r, share of the image inside the mask, above 0 to 1.
        alpha: weight of the attention under the original prompt.
        level: training timestep at which the network looks at the image, 0..999.
        high: high-quality template p+, with {} for the prompt.
        low: low-quality template p-, with {} for the prompt.
        original: False leaves out the attention under the original prompt (ablation).
        contrast: False leaves out the contrast between p- and p+ (ablation).
        propagate: False leaves out the smoothing by self-attention (ablation).
        start: t0, the step that refinements start from; None = the model's.
        integrate: tg, the number of last steps without the mask; None = the model's.
        background: noise outside the mask: the same at all steps (fixed) or new at each step (fresh).
        spatial: False keeps the latent outside the mask clean (ablation).
        temporal: False starts refinements from pure noise, t0 = 0 (ablation).
        holistic: False masks all steps, tg = 0 (ablation).
        refresh: compute the masked steps of refinements only inside the mask, every ``refresh``-th one whole; 1 = all of them
            whole, None = every second where the model can do that and has 1024 tokens or more. Cheaper and not quite the
            same, see docs/architecture.md, Compute inside the mask.
        warmup: whole steps at the beginning of a refinement.
        ring: width in tokens of the ring around the mask that is computed as well.
        blank: what follows where a map is the same everywhere and so says nothing: the localization fails (fail), or the
            mask is the whole image (whole) or random cells of the same ratio (random).
    """

    takes_image: ClassVar[bool] = True
    confines: ClassVar[bool] = True
    """Whether its refinements can be computed inside the mask; otherwise all of their steps are whole."""
    traces: ClassVar[bool] = False
    """Whether the trajectory stands in for half of the draws of the model's default mask."""

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
    blank: Blank = "fail"
    refresh: int | None = None
    warmup: int = 1
    ring: int = 0

    def check(self, costs: Costs, info: ModelInfo) -> None:
        super().check(costs, info)
        source = self.mask_source(costs)
        if note := replaced(source, costs.mask_source(source)):
            notice(note)
        if self.refresh not in (None, 1) and not self.confines:
            raise BadInput(
                f"this strategy selects at every few steps, which are computed whole: it takes no refresh={self.refresh}"
            )
        self.confined(costs)
        steps, begin = costs.steps, self.begin(costs)
        if self.temporal:
            self.check_range("start", 0, steps - 1)
        if self.holistic and self.integrate is not None and not 0 <= self.integrate <= steps - begin:
            raise BadInput(
                f"integrate must be within 0..{steps - begin} for refinements that start at step {begin} of {steps},"
                f" not {self.integrate}"
            )

    def root(self, search: Search, seed: int = 0) -> Trial[Candidate]:
        """Return a complete candidate to start from: the given image, or a sample."""
        return search.sample(seed) if search.image is None else search.encode(search.image)

    async def located_root(self, search: Search) -> tuple[Candidate, Mask] | None:
        """Return the :meth:`root` with its mask; None where the rest of the budget does not pay for its first refinement."""
        parent = await self.root(search)
        if not search.budget.left.pays(self.located_refinement(search.costs)):
            return None
        return parent, await self.locate(search, parent)

    def locate(self, search: Search, candidate: Candidate) -> Trial[Mask]:
        """Locate the region of a complete candidate to resample (Algorithm 1)."""
        return search.localize(candidate, self.mask_source(search.costs), blank=self.blank)

    def refine(
        self,
        search: Search,
        parent: Candidate,
        mask: Mask,
        seed: int,
        stop: int | None = None,
        prompt: str | None = None,
    ) -> Trial[Candidate]:
        """Resample ``parent`` inside ``mask`` (Algorithm 2), up to the step ``stop`` (T by default), under its own or another
        prompt."""
        return search.refine(
            parent,
            mask,
            seed=seed,
            start=self.start if self.temporal else 0,
            integrate=self.integrate if self.holistic else 0,
            background=self.background,
            spatial=self.spatial,
            stop=stop,
            prompt=prompt,
            refresh=self.every(search.costs),
            warmup=self.warmup,
            ring=self.ring,
        )

    def mask_source(self, costs: Costs) -> MaskSource:
        """Return the mask source, with the settings of this strategy.

        Raises:
            BadInput: a setting that this kind of mask does not have.
        """
        chosen = {name: getattr(self, name) for name in ("ratio", "alpha", "level", "high", "low")}
        given = {name: value for name, value in chosen.items() if value is not None}
        off = {name: False for name in ("original", "contrast", "propagate") if not getattr(self, name)}
        source = with_settings(self.mask or costs.defaults.mask, given | off)
        return with_trajectory(source) if self.traces and self.mask is None and costs.traced else source

    def mask_sources(self, costs: Costs) -> list[MaskSource]:
        """Return the mask source with the settings of this strategy, and others among its settings."""
        return [
            costs.mask_source(self.mask_source(costs)),
            *(one for one in super().mask_sources(costs) if one is not self.mask),
        ]

    def begin(self, costs: Costs) -> int:
        """Return the step that refinements start from."""
        if not self.temporal:
            return 0
        return costs.defaults.t0 if self.start is None else self.start

    def localization(self, costs: Costs) -> Cost:
        """Return the cost of a localization."""
        return costs.localize(self.mask_source(costs))

    def refinement(self, costs: Costs) -> Cost:
        """Return the cost of a refinement."""
        return self.confined(costs).refine(self.begin(costs))

    def confined(self, costs: Costs) -> Costs:
        """Return the costs of trajectories inside the mask.

        Raises:
            BadInput: ``refresh``, ``warmup`` or ``ring`` is out of its range, or the model cannot be confined.
        """
        source, every = self.mask_source(costs), self.every(costs)
        covered = source.covers(costs.grid) if costs.grid and every > 1 else source.ratio
        how = costs.confine(covered, every, self.warmup, self.ring)
        default = min(costs.defaults.integrate, costs.steps - self.begin(costs))
        integrate = default if self.integrate is None else self.integrate
        return replace(costs, confined=how, integrate=integrate if self.holistic else 0)

    def every(self, costs: Costs) -> int:
        """Return every how many masked steps of a refinement one is whole."""
        if not self.confines:
            return 1
        return costs.refresh if self.refresh is None else self.refresh

    def located_refinement(self, costs: Costs) -> Cost:
        """Return the cost of the first refinement of an image: a localization and a refinement."""
        return self.localization(costs) + self.refinement(costs)

    def least(self, costs: Costs, image: bool = False) -> Cost:
        """Return the cost of a sample, or with a given image that of encoding it and of its first refinement."""
        return costs.encode + self.located_refinement(costs) if image else costs.sample
