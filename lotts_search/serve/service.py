"""What the endpoint does: searches on shared pools, within limits. No HTTP here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from lotts_search import registry
from lotts_search.api import asearch
from lotts_search.core.costs import Costs
from lotts_search.core.events import Event, SearchEnded
from lotts_search.core.result import SearchResult
from lotts_search.errors import BadInput
from lotts_search.serve.answers import ModelCard, Setting, StrategyCard
from lotts_search.serve.asked import Asked
from lotts_search.serve.config import Config, Model
from lotts_search.serve.errors import ApiError
from lotts_search.serve.keys import Keys, Quota
from lotts_search.serve.metrics import Metrics
from lotts_search.work.fair import FairPool, room
from lotts_search.work.pool import Pool
from lotts_search.work.requests import Sampling

Listen: TypeAlias = Callable[[Event], object]
EVERYONE = "everyone"
"""Whom requests are charged to where there are no keys."""


@dataclass(frozen=True)
class Served:
    """A model that is served, with its pool."""

    model: Model
    pool: Pool
    fair: FairPool

    @classmethod
    def of(cls, model: Model, pool: Pool) -> Self:
        """Share a pool fairly among all requests for the model."""
        batch = model.sizes.most
        return cls(model, pool, FairPool(pool, room(model.generators, batch), batch))


@dataclass(frozen=True)
class Outcome:
    """What came of one search; ``late``: the server stopped it."""

    result: SearchResult
    late: bool

    @property
    def status(self) -> str:
        return "deadline" if self.late else self.result.status


class Service:
    """Runs the searches of all requests.

    Args:
        pools: by the name of the model; the service closes them.
    """

    def __init__(self, config: Config, pools: Mapping[str, Pool]):
        self.config = config
        self.keys = Keys.load(config.keys)
        self.quota = Quota(config.key_nfe, config.key_window_s)
        self.served = {model.name: Served.of(model, pools[model.name]) for model in config.models}
        self.metrics = Metrics(self)
        self.running = 0
        self.closed = False

    def model(self, name: str | None) -> Served:
        """Return the model that a request asks for, the first by default.

        Raises:
            ApiError: 404, it is not served.
        """
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise ApiError(
                404,
                f"model {name[:100]!r} is not served here, but {', '.join(self.served)}",
                code="model_not_found",
                param="model",
            )
        return self.served[name]

    @asynccontextmanager
    async def admitted(self, asked: Asked, owner: str | None) -> AsyncIterator[list[SearchResult]]:
        """Hold a place for the searches of a request and the NFE that they may use; the block adds their results to the list.

        Raises:
            ApiError: 429, there is no place or there are not so many NFE left.
        """
        name = owner or EVERYONE
        if self.running + asked.count > self.config.searches:
            raise ApiError(
                429,
                f"{self.running} of {self.config.searches} searches are running: try again later",
                code="overloaded",
                retry_s=self.config.retry_after_s,
            )
        self.quota.take(name, asked.nfe)
        self.running += asked.count
        results: list[SearchResult] = []
        try:
            yield results
        finally:
            self.running -= asked.count
            used = sum(result.ledger.nfe for result in results)
            self.quota.settle(name, asked.nfe, used)
            self.metrics.spent(name, asked.recipe, results)

    async def search(
        self,
        asked: Asked,
        number: int,
        results: list[SearchResult],
        listen: Listen | None = None,
        preview: bool = False,
    ) -> Outcome:
        """Run one search of a request. Cancelling it stops its work within a tick.

        Args:
            number: of the search within the request, from 0.
            results: of the admission; what the search used is charged, however it ends.

        Raises:
            LottsError: as :func:`lotts_search.api.asearch`.
            ApiError: 504, the deadline passed before there was an image.
        """
        share = self.served[asked.recipe.model].fair.share()
        ended: list[SearchResult] = []

        def hear(event: Event) -> None:
            if isinstance(event, SearchEnded):  # however it ended
                ended.append(event.result)
            if listen is not None:
                listen(event)

        arguments = asked.arguments(asked.of(number))
        task = asyncio.ensure_future(asearch(**arguments, pool=share, on_event=hear, preview=preview))
        try:
            done, _ = await asyncio.wait({task}, timeout=self.config.deadline_s)
        finally:
            share.close()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            results += ended
        if done:
            return Outcome(task.result(), False)
        if not ended or ended[0].best is None:
            raise ApiError(504, f"no image was finished within {self.config.deadline_s:g} s", code="deadline")
        return Outcome(ended[0], True)

    def ready(self) -> bool:
        """Return whether searches can run now."""
        if self.closed:
            return False
        workers = [getattr(served.pool, "workers", None) for served in self.served.values()]
        return all(found is None or any(one.name.startswith("generator") for one in found()) for found in workers)

    def alive(self) -> bool:
        """Return whether the pools take work."""
        return not self.closed

    def close(self) -> None:
        """Close the pools."""
        self.closed = True
        for served in self.served.values():
            served.pool.close()

    def models(self) -> list[ModelCard]:
        """Return a card of each model."""
        cards = []
        for name, served in self.served.items():
            info = served.pool.info
            height, width = info.image
            costs = Costs.of(info, Sampling.of(info, "x"))
            cards.append(
                ModelCard(
                    id=name,
                    family=info.family,
                    size=f"{width}x{height}",
                    steps=info.defaults.steps,
                    guidance=info.defaults.guidance,
                    nfe_per_image=costs.sample.nfe,
                    strategy=registry.default_strategy(served.pool.verifiers[0]),
                    verifiers=list(served.pool.verifiers),
                    rewrites=bool(served.pool.rewriters),
                )
            )
        return cards

    def strategies(self) -> list[StrategyCard]:
        """Return a card of each strategy."""
        return [_card(name) for name in dict.fromkeys([*registry.strategies(), *self.config.strategies])]


def names_of(model: Model) -> tuple[list[str], list[str]]:
    """Return the verifiers and rewriters of a model, by default those that it names.

    Raises:
        BadInput: it names no verifier.
    """
    revision = model.load.get("revision")
    verifiers = model.verifiers or [registry.default_verifier(model.name, revision)]
    if model.rewriter is not None:
        return verifiers, [model.rewriter]
    try:
        return verifiers, [registry.default_rewriter(model.name, revision)]
    except BadInput:  # it names none: strategies that revise prompts are refused
        return verifiers, []


def _card(name: str) -> StrategyCard:
    cls, info = registry.resolve_strategy(name), registry.describe_strategy(name)
    settings = [Setting(name=s.name, type=s.type, default=s.shown, doc=s.doc) for s in info.settings]
    return StrategyCard(
        id=name,
        summary=info.summary,
        doc=info.doc,
        source=info.source,
        formula=info.formula,
        takes_image=cls.takes_image,
        rewrites=cls.rewrites,
        settings=settings,
    )


def local_pools(config: Config) -> dict[str, Pool]:
    """Open the pools of a server in this process, without Ray."""
    from lotts_search.engine.local_pool import LocalPool

    pools: dict[str, Pool] = {}
    for model in config.models:
        verifiers, rewriters = names_of(model)
        options: dict[str, Any] = {"threads": config.threads, "batch": model.batch}
        pools[model.name] = LocalPool(
            registry.load_backbone(model.name, **model.load),
            {name: registry.load_verifier(name) for name in verifiers},
            rewriters={name: registry.load_rewriter(name) for name in rewriters},
            **options,
        )
    return pools
