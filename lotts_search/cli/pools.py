"""Open the pool that the compute options describe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from lotts_search.actors.crew import Limits
from lotts_search.actors.placement import Placement
from lotts_search.backbones.load_options import LoadOptions
from lotts_search.cli.options import settings
from lotts_search.core.recipe import option
from lotts_search.errors import BadInput, notice
from lotts_search.registry import check_verifier, find_model, metric_class
from lotts_search.work.batch_sizes import ROWS, BatchSizes
from lotts_search.work.pool import Pool

THREADS = 1
"""Torch threads per generator, the same in all pools, so results are bitwise identical across pools."""


@dataclass(frozen=True)
class Compute:
    """Where to run: in this process (``local``), on the Ray cluster at ``address``, or on a private Ray.

    Attributes:
        local: run in this process.
        address: cluster to join.
        generators: number of generator actors, None = see :attr:`actors`.
        device: torch device.
        batch: rows of each network call, and images of each call of a verifier, as a text for
            :meth:`~lotts_search.work.batch_sizes.BatchSizes.parse`; None = 8.
        place: texts for :meth:`lotts_search.actors.placement.Placement.parse`.
        load: further options of the model, see :func:`lotts_search.registry.load_backbone`.
        limit: settings of :class:`~lotts_search.actors.crew.Limits` by name.
        ship: top-level packages and modules to copy to the workers of a joined cluster.

    Raises:
        BadInput: options that exclude each other, or no device of torch.
    """

    local: bool = False
    address: str | None = None
    generators: int | None = None
    device: str = "cpu"
    load: Mapping[str, Any] = field(default_factory=dict)
    batch: str | None = None
    place: Sequence[str] = ()
    limit: Mapping[str, object] = field(default_factory=dict)
    ship: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        local: bool,
        address: str | None,
        generators: int | None,
        device: str,
        batch: str | None,
        place: Sequence[str] | None,
        limit: Sequence[str] | None,
        ship: Sequence[str] | None,
        load: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return what the options of a command choose; those that may be repeated are None where they are not given.

        Raises:
            BadInput: as the class itself, or a limit is no NAME=SECONDS.
        """
        limits = settings(limit, "--limit")
        return cls(local, address, generators, device, load or {}, batch, place or (), limits, ship or ())

    def __post_init__(self) -> None:
        LoadOptions.of({**self.load, "device": self.device})
        if self.rows.most < 2:
            raise BadInput(f"--batch must be 2 or more, for a guided candidate has two rows, not {self.batch}")
        if self.local and self.address is not None:
            raise BadInput("--local and --address exclude each other")
        if self.local and self.generators not in (None, 1):
            raise BadInput("more than one generator needs Ray: leave out --local")
        for name in ("place", "limit", "ship"):
            if self.local and getattr(self, name):
                raise BadInput(f"--{name} is about actors on Ray: leave out --local")
        if self.ship and self.address is None and "RAY_ADDRESS" not in os.environ:
            raise BadInput(
                "--ship copies modules to a cluster, and a Ray of this machine has them: add --address, or leave it out"
            )
        if not self.local:
            self.placement.check_device(self.device)
            Limits.parse(self.limit)

    def beside(self, place: Mapping[str, str], models: Sequence[Mapping[str, Any]] = ()) -> Self:
        """Return this with what a study says of actors on Ray; ``--place`` of the command line goes before it.

        Args:
            place: texts as of ``--place``, and where each stands in the study file.
            models: load options of the study's models.

        Raises:
            BadInput: one is wrong, or a model cannot have the GPUs that its options ask for.
        """
        for text, where in place.items():
            try:
                Placement.parse([text])
            except BadInput as error:
                raise BadInput(f"{where}: {error}") from error
        if self.local:
            if place:
                notice("place of the study is about actors on Ray: --local does not use it")
            both = self
        else:
            both = replace(self, place=(*place, *self.place))
        for options in models:
            given = {"device": self.device, **options}
            LoadOptions.of(given)
            if not self.local:
                both.placement.generator(given)
        return both

    @cached_property
    def placement(self) -> Placement:
        """Return what the actors on Ray take."""
        return Placement.parse(self.place)

    @property
    def actors(self) -> int:
        """Return the number of generator actors on Ray; results do not depend on it."""
        return self.generators or (min(2, len(os.sched_getaffinity(0))) if self.device == "cpu" else 1)

    @property
    def rows(self) -> BatchSizes:
        """Return the rows of each network call."""
        return BatchSizes((ROWS,)) if self.batch is None else BatchSizes.parse(self.batch)

    def __str__(self) -> str:
        if self.local:
            return "this process"
        actors = f"{self.actors} generator actor{'s' if self.actors > 1 else ''}"
        return f"{actors} on Ray" + (f" at {self.address}" if self.address else "")

    def words(self) -> list[str]:
        """Return the options of the command line that choose this."""
        words = ["--local"] if self.local else []
        words += option("--address", self.address) if self.address else []
        words += option("--generators", self.generators) if self.generators else []
        words += option("--device", self.device) if self.device != "cpu" else []
        words += option("--batch", self.batch) if self.batch else []
        for pair in self.place:
            words += option("--place", pair)
        for name, value in self.limit.items():
            words += option("--limit", f"{name}={value}")
        for name in self.ship:
            words += option("--ship", name)
        return words

    def check_verifiers(self, verifiers: Sequence[str], metrics: Sequence[str] = ()) -> None:
        """Check the names and settings of verifiers, and of the verifiers among metrics, without loading any.

        Raises:
            BadInput: one is wrong. On Ray, a package that only its actor installs may be missing here.
        """
        for name in [*verifiers, *(name for name in metrics if metric_class(name) is None)]:
            try:
                check_verifier(name)
            except BadInput as error:
                missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
                if self.local or missing is None or name.startswith(missing):
                    raise
                notice(f"{name} is not checked: {error}")

    @contextmanager
    def pool(
        self,
        model: str,
        *verifiers: str,
        rewriters: Mapping[str, Mapping[str, object]] | None = None,
        **options: Any,
    ) -> Iterator[Pool]:
        """Open a pool for a model, verifiers and rewriters; the context closes it. Until then, what models and verifiers
        print goes to stderr, because stdout is the command's own.

        Args:
            model: registered name, folder or Hub id.
            verifiers: registered names or ``package.module:Class``.
            rewriters: settings by name.
            options: passed to the family's ``from_pretrained``.
        """
        options = {"device": self.device, **self.load, **options}
        with _stdout_on_stderr():
            pool = self._open(model, verifiers, rewriters or {}, options)
            try:
                yield pool
            finally:
                pool.close()

    def _open(
        self,
        model: str,
        verifiers: Sequence[str],
        rewriters: Mapping[str, Mapping[str, object]],
        options: dict[str, Any],
    ) -> Pool:
        if self.address is None:
            find_model(model, options.get("revision"))  # a wrong name is refused before anything is started
        if self.local:
            from lotts_search.engine.local_pool import LocalPool
            from lotts_search.registry import load_backbone, load_rewriter, load_verifier

            loaded = {name: load_verifier(name) for name in verifiers}
            writers = {name: load_rewriter(name, settings) for name, settings in rewriters.items()}
            return LocalPool(load_backbone(model, **options), loaded, self.rows.batch, THREADS, rewriters=writers)
        from lotts_search.actors.ray_pool import RayPool

        return RayPool(
            model,
            verifiers,
            generators=self.actors,
            batch=self.rows.batch,
            threads=THREADS,
            address=self.address,
            backbone_options=options,
            placement=self.placement,
            limits=Limits.parse(self.limit),
            packages=self.ship,
            rewriters=rewriters,
        )


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send to stderr what is printed, also by libraries in C and by processes that are started."""
    with suppress(OSError):
        sys.stdout.flush()
    kept = None
    with suppress(OSError):  # either may be closed
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)
