"""Opening the pool that the compute options ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lotts_search.errors import BadInput
from lotts_search.pool import Pool


@dataclass(frozen=True)
class Compute:
    """Where to run: in this process (``local``), on a Ray of our own, or on the cluster at ``address``.

    Raises:
        BadInput: options that exclude each other.
    """

    local: bool = False
    address: str | None = None
    generators: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.local and self.address is not None:
            raise BadInput("--local and --address exclude each other")
        if self.local and self.generators != 1:
            raise BadInput("several --generators need Ray: leave out --local")

    def __str__(self) -> str:
        if self.local:
            return "this process"
        actors = f"{self.generators} generator actor{'s' if self.generators > 1 else ''}"
        return f"{actors} of Ray" + (f" at {self.address}" if self.address else "")

    @contextmanager
    def pool(self, model: str, verifier: str) -> Iterator[Pool]:
        """A pool for one model and one verifier, closed at the end."""
        options = {} if self.device == "cpu" else {"device": self.device}
        pool: Pool
        if self.local:
            from lotts_search.local import LocalPool
            from lotts_search.registry import load_backbone, load_verifier

            pool = LocalPool(load_backbone(model, **options), {verifier: load_verifier(verifier)})
        else:
            from lotts_search.actors.pool import RayPool

            pool = RayPool(
                model, [verifier], generators=self.generators, address=self.address, backbone_options=options
            )
        try:
            yield pool
        finally:
            pool.close()
