"""The handle through which a strategy searches. Every call starts its work at once; ``await`` it for its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lotts_search.core import segments
from lotts_search.core.book import Book
from lotts_search.core.calls import Calls, Draft
from lotts_search.core.candidate import Candidate, Mask
from lotts_search.core.trial_table import image_hash
from lotts_search.core.view import SearchView
from lotts_search.core.virtual_time import Trial
from lotts_search.errors import BadInput
from lotts_search.work.masks import MaskSource
from lotts_search.work.requests import (
    Background,
    Blank,
    Bytes,
    Encode,
    Fresh,
    Locate,
    Low,
    Mix,
    Near,
    Noise,
    Sampling,
    Segment,
    State,
    check_eta,
    check_guidance,
)


class Search(SearchView):
    """The calls of one search.

    Refusals (:class:`~lotts_search.errors.BudgetExhausted`) and failures (:class:`~lotts_search.errors.Failure`) are
    raised where a call is awaited and end that branch only. Wrong arguments raise
    :class:`~lotts_search.errors.BadInput` at the call and end the search.
    """

    def __init__(
        self, calls: Calls, book: Book, sampling: Sampling, seed: int, latent: tuple[int, int, int],
        image: Bytes | None = None, restart: bool = False,
    ):  # fmt: skip
        super().__init__(book, sampling, seed, latent, image, restart)
        self._calls = calls

    def fresh(self, seed: int) -> Fresh:
        """Return start noise drawn from a seed."""
        return Fresh(seed)

    def near(self, noise: Noise, tau: float, seed: int) -> Near:
        """Return a neighbour of a start noise; ``tau`` is the cosine between the two, -1..1."""
        return Near(noise, tau, seed)

    def mix(self, noise: Noise, beta: float, seed: int) -> Mix:
        """Return a mutation of a start noise, of which the share ``beta``, 0..1, is new."""
        return Mix(noise, beta, seed)

    def low(self, noise: Noise, values: npt.NDArray[np.floating]) -> Low:
        """Return start noise with the high frequencies of another one and these low ones, [C, rows, columns], of which there are
        ``latent[0]`` channels and as many rows and columns as frequencies are wanted. Standard normal coefficients make it
        a fresh noise; see :mod:`lotts_search.work.frequencies`."""
        return Low(noise, (values.shape[1], values.shape[2]), tuple(values.ravel().tolist()))

    def sample(
        self,
        noise: int | Noise,
        *,
        stop: int | None = None,
        prompt: str | None = None,
        negative: str | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        eta: float | None = None,
        score: bool = True,
    ) -> Trial[Candidate]:
        """Sample a candidate from pure noise. Costs ``stop`` NFE.

        Args:
            noise: a seed, or start noise from :meth:`fresh`, :meth:`near`, :meth:`mix` or :meth:`low`.
            stop: step to stop at, 0..T; T by default. 0 is the pure noise itself, to be scored and branched from.
            prompt, negative, guidance, steps, eta: replace those of the search. ``steps`` is T of this candidate; with
                ``eta=0`` the start noise alone decides the image.
            score: False leaves the image unscored; it cannot win until :meth:`score` scores it.
        """
        names = "prompt", "negative", "guidance", "steps", "eta"
        other: dict[str, Any] = dict(zip(names, (prompt, negative, guidance, steps, eta), strict=True))
        sampling = replace(self._sampling, **{name: value for name, value in other.items() if value is not None})
        check_eta(sampling.eta, sampling.solver)
        check_guidance(sampling.guidance, sampling.embedded)
        noise = Fresh(noise) if isinstance(noise, int) else noise
        return self._make(*segments.sample(self.seed, sampling, noise, stop), score)

    def encode(self, image: Bytes, *, score: bool = True) -> Trial[Candidate]:
        """Encode an image [h, w, 3] uint8 of the model's size as a complete candidate, to be scored as by :meth:`sample`.
        Costs no NFE."""
        name, steps = image_hash(image), self.steps
        draft = Draft("encode", (f"image {name}",), steps, steps, self._sampling)
        return self._make(Encode(image, steps), draft, (name,), score)

    def refine(
        self,
        parent: Candidate,
        mask: Mask,
        *,
        seed: int,
        start: int | None = None,
        integrate: int | None = None,
        background: Background = "fixed",
        spatial: bool = True,
        stop: int | None = None,
        prompt: str | None = None,
        score: bool = True,
        refresh: int = 1,
        warmup: int = 1,
        ring: int = 0,
    ) -> Trial[Candidate]:
        """Refine a candidate (LoTTS, Algorithm 2: LocalizedResample): re-noise it to ``start``, denoise only inside the mask.

        Costs ``stop - start`` NFE; with ``refresh`` above 1 less, see docs/architecture.md, Compute inside the mask.

        Args:
            parent: a complete candidate.
            mask: a mask that :meth:`localize` found, on the parent or on another candidate.
            seed: seed of the noise; different seeds give different refinements.
            start: t0, the step to re-noise to, 0..T-1; the model's default.
            integrate: tg, the number of last steps without the mask, 0..T-start; the model's default.
            background: the noise outside the mask: the same at all steps (``fixed``) or new at each step (``fresh``).
            spatial: False keeps the latent outside the mask clean (the ablation).
            stop: step to stop at, start+1..T; T by default.
            prompt: replaces the parent's.
            score: as for :meth:`sample`.
            refresh, warmup, ring: compute masked steps only inside the mask, as by strategies with these settings; 1 = all whole.
        """
        state, sampling = self._complete(parent, "refine"), self._book.samplings[parent.key]
        defaults = self.defaults.scaled(sampling.steps)
        found, costs = self._book.located[mask.key].mask, self.costs
        drafted = segments.refine(
            self.seed,
            parent,
            state,
            sampling,
            found,
            mask.key,
            noise=seed,
            start=defaults.t0 if start is None else start,
            integrate=integrate,
            default=defaults.integrate,
            background=background,
            spatial=spatial,
            stop=stop,
            prompt=prompt,
            confined=costs.confine(costs.touched(found), refresh, warmup, ring),
        )
        return self._make(*drafted, score)

    def advance(
        self, parent: Candidate, stop: int | None = None, *, seed: int | None = None, prompt: str | None = None
    ) -> Trial[Candidate]:
        """Denoise a partial candidate to step ``stop`` (T by default).

        Costs the steps that it takes, one less where :meth:`score` has paid for the first prediction.

        Args:
            parent: a partial candidate.
            seed: draws new noise from here on; None keeps the parent's noise.
            prompt: replaces the prompt from here on.
        """
        state, sampling = self._book.states[parent.key], self._book.samplings[parent.key]
        drafted = segments.advance(self.seed, parent, state, sampling, stop, noise=seed, prompt=prompt)
        return self._calls.make(*drafted)

    def child(self, parent: Candidate, stop: int, number: int) -> Trial[Candidate]:
        """Advance a partial candidate as its child ``number``: child 0 keeps the parent's noise, the others branch."""
        return self.advance(parent, stop, seed=number or None)

    def vary(self, candidate: Candidate, share: float, seed: int) -> Trial[Candidate]:
        """Take the last step of a candidate again with a mutation ``√(1−β²)·n + β·ε`` of its noise n, which is standard
        normal like any noise. Costs what that step costs: no NFE where :meth:`score` has scored the parent.

        Args:
            candidate: a partial candidate, one step after a partial parent.
            share: β, the share of the noise that is new, 0..1; six digits count.
            seed: of ε; different seeds give different mutations.
        """
        parent = candidate.parent
        if candidate.kind != "advance" or parent is None or candidate.step != parent.step + 1:
            raise BadInput(
                f"cannot vary candidate {candidate.key}: only one that advanced a partial candidate by a single step has a noise to vary"
            )
        if not 0 <= share <= 1:
            raise BadInput(f"the share of new noise must be within 0..1, not {share}")
        state, sampling = self._book.states[parent.key], self._book.samplings[parent.key]
        prompt = self._book.samplings[candidate.key].prompt
        drafted = segments.vary(self.seed, candidate, parent, state, sampling, prompt, share=share, noise=seed)
        return self._calls.make(*drafted)

    def compare(self, candidates: Sequence[Candidate], choices: npt.ArrayLike) -> Trial[list[float]]:
        """Return the guiding scores of mosaics: images that take each of their regions from one of the candidates' images,
        or of their x0 predictions. Only pixels are put together. Costs no NFE and one score per mosaic.

        Args:
            candidates: complete ones, or partial ones that :meth:`score` has scored.
            choices: whole numbers [K, rows, columns]; mosaic k shows in cell (i, j) of a grid over the image what
                candidate ``choices[k, i, j]`` shows there.
        """
        return self._calls.compare(candidates, choices)

    def compose(
        self, candidates: Sequence[Candidate], choice: npt.ArrayLike, *, exact: bool = False
    ) -> Trial[Candidate]:
        """Compose children of one parent by region: the result's noise is in each region that of the chosen child. The noise
        of a step is white, so before any selection the composed one has the same distribution. Costs no NFE.

        Args:
            candidates: partial candidates, all one step after the same parent under the same prompt, or all pure noise.
            choice: whole numbers [rows, columns]; cell (i, j) of a grid over the latent comes from candidate
                ``choice[i, j]``. A choice of one candidate alone returns that candidate.
            exact: let the next call of :meth:`score` or :meth:`advance` compute the x0 prediction, for 1 NFE; otherwise it is
                composed of the candidates' predictions, where :meth:`score` has paid for all of them.
        """
        return self._calls.compose(candidates, choice, exact)

    def localize(self, candidate: Candidate, source: MaskSource | None = None, *, blank: Blank = "fail") -> Trial[Mask]:
        """Locate the region of a complete candidate to resample. Costs its network rows pro rata.

        Args:
            source: how the region is found; the model's default. Where it needs a trajectory that is not known, its fallback.
            blank: what follows where the source's map is the same everywhere: the trial fails, or the mask is the whole
                image or random cells.
        """
        state, sampling = self._complete(candidate, "localize"), self._book.samplings[candidate.key]
        wanted = source or self.defaults.mask
        costs = replace(self.costs.under(sampling), traced=state.change is not None)
        source = costs.mask_source(wanted)
        image = self._book.images[candidate.key] if source.needs_image else None
        work = Locate(self.seed, candidate.lineage, state, sampling, source, image, blank)
        return self._calls.locate(work, candidate, costs.localize(source), wanted)

    def score(self, candidate: Candidate, *, last: bool = False) -> Trial[float]:
        """Return the guiding score. For a partial candidate it is the score of its x0 prediction; it costs the NFE of
        the next step, which is then free. A score that is known costs nothing, that of a complete candidate no NFE.

        Args:
            last: for a partial candidate, score the x0 prediction that its last step was made of. That prediction is one
                step older and costs no NFE.
        """
        if candidate.score is not None and (candidate.complete or not last):
            return Trial.settled(candidate.score)
        return self._calls.score(candidate, last and not candidate.complete)

    def rewrite(self, candidate: Candidate, count: int, *, last: bool = False) -> Trial[list[str]]:
        """Return revised prompts from the rewriter, which sees the search's prompt and a complete candidate's image or a
        partial one's x0 prediction. Where the rewriter fails, the search's prompt replaces its answer.

        Costs what :meth:`score` costs, and nothing after a call of :meth:`score`.

        Args:
            count: number of prompts, 1 or more.
            last: for a partial candidate, look at the x0 prediction that its last step was made of, for no NFE.
        """
        if count < 1:
            raise BadInput(f"the number of revised prompts must be 1 or more, not {count}")
        return self._calls.rewrite(candidate, count, last and not candidate.complete)

    def _make(
        self, work: Segment | Encode, draft: Draft, arguments: tuple[object, ...], score: bool
    ) -> Trial[Candidate]:
        if score:
            return self._calls.make(work, draft, arguments)
        return self._calls.make(work, replace(draft, score=False), (*arguments, "unscored"))

    def _complete(self, candidate: Candidate, what: str) -> State:
        if not candidate.complete:
            raise BadInput(f"cannot {what} candidate {candidate.key}: it is at step {candidate.step}, not complete")
        return self._book.states[candidate.key]
