"""What a strategy sees of its search: its prompt, its model, what it may spend, and the best image so far."""

from __future__ import annotations

import numpy as np

from lotts_search.core.book import Book
from lotts_search.core.budget import Ledger
from lotts_search.core.candidate import Candidate
from lotts_search.core.costs import Costs
from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults
from lotts_search.work.requests import Bytes, Sampling


class SearchView:
    """One search: a prompt, a model, a verifier, a seed and a budget.

    Attributes:
        prompt: what to search for; images are scored against it, whatever prompt they were made with.
        seed: all noise is drawn from it.
        latent: shape C, H, W of the model's latents and noise.
        image: an image [h, w, 3] uint8 to start from, for :meth:`~lotts_search.core.handle.Search.encode`; None without one.
        restart: whether images from pure noise may take the place of ``image``; True without one.
        rng: the only randomness that a strategy may use.
    """

    def __init__(
        self,
        book: Book,
        sampling: Sampling,
        seed: int,
        latent: tuple[int, int, int],
        image: Bytes | None = None,
        restart: bool = False,
    ):
        self._book = book
        self._sampling = sampling
        self.prompt = sampling.prompt
        self.seed = seed
        self.latent = latent
        self.image = image
        self.restart = restart or image is None
        self.rng = np.random.default_rng([abs(seed), int(seed < 0)])

    @property
    def steps(self) -> int:
        """T, the steps of a schedule, unless a sample sets its own."""
        return self._sampling.steps

    @property
    def guided(self) -> bool:
        """Whether a step takes two network rows (classifier-free guidance)."""
        return self._sampling.guided

    @property
    def eta(self) -> float:
        """Noise amount of the solver; at 0 the start alone decides a trajectory, and it cannot branch."""
        return self._sampling.eta

    @property
    def defaults(self) -> Defaults:
        """The model's default settings, with t0 and tg scaled to T steps."""
        return self.costs.defaults

    @property
    def costs(self) -> Costs:
        """What trials cost, in NFE, images and FLOPs."""
        return self._book.ledger.costs

    @property
    def budget(self) -> Ledger:
        """The ledger, with ``left``, ``remaining``, ``price`` and ``cost_of``."""
        return self._book.ledger

    @property
    def best(self) -> Candidate | None:
        """The complete candidate with the highest guiding score so far, in virtual order."""
        return self._book.best

    def check_noise(self) -> None:
        """Refuse a solver without noise, for strategies that branch trajectories: all children would be the same.

        Raises:
            BadInput: eta is 0.
        """
        if self.eta == 0:
            raise BadInput("this strategy branches trajectories by the noise of the solver: eta must be above 0, not 0")
