"""What the ratios of ``lotts-search bench ratios`` share: the model, how it is called, and how time is taken in alternation."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.work.requests import Sampling

WORDS = ("red", "green", "blue", "yellow", "white", "black"), ("circle", "square", "star", "triangle", "ring", "cross")
PLACES = "left", "right", "top", "bottom"
Actions = Mapping[str, Callable[[int], float]]
"""By name: perform one of the rounds, and return the amount of work done."""


@dataclass(frozen=True)
class Ratio:
    """A measured ratio.

    Attributes:
        name: what is compared.
        rounds: [n] its value in each round, 1 or more.
        least, most: what the value must not be below and above, None = no demand.
    """

    name: str
    rounds: list[float]
    least: float | None = None
    most: float | None = None

    @property
    def value(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def met(self) -> bool:
        """Whether the demands are met."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: registered name, folder or Hub id.
        backbone: the loaded model.
        verifier: registered name of the verifier.
        batch: network rows in one call.
        rounds: number of rounds of what alternates.
        threads: torch's threads.
        graphs: whether the engine records network calls as CUDA graphs.
    """

    model: str
    backbone: StableDiffusion
    verifier: str
    batch: int = 16
    rounds: int = 3
    threads: int = 1
    graphs: bool = False

    @property
    def sampling(self) -> Sampling:
        """The model's own settings, without a prompt."""
        return Sampling.of(self.backbone.info, "")

    @property
    def at_once(self) -> int:
        """The images whose rows fill a network call."""
        return self.batch // 2 if self.sampling.guided else self.batch

    def now(self) -> float:
        """Return seconds: CPU time of this process where one thread computes, so that other load counts little; otherwise wall
        time, after what runs on the GPU."""
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)
        elif self.threads == 1:
            return time.process_time()
        return time.perf_counter()

    def alternate(self, actions: Actions, clock: Callable[[], float] | None = None) -> dict[str, list[float]]:
        """Return the seconds per unit of work of each action in each round.

        One round more warms up, and every other round is reversed, so that other load on the machine affects all alike.

        Args:
            actions: what is compared.
            clock: returns seconds; None = :meth:`now`.
        """
        now = clock or self.now
        taken: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(-1, self.rounds):
            for name in list(actions)[:: 1 if number % 2 else -1]:
                began = now()
                work = actions[name](number)
                if number >= 0:
                    taken[name].append((now() - began) / work)
        return taken


def of(one: list[float], other: list[float]) -> list[float]:
    """Return the quotients of two lists, round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]


def prompts() -> Iterator[str]:
    """Yield prompts that do not repeat for 5184 images."""
    things = [f"{colour} {shape}" for colour, shape in itertools.product(*WORDS)]
    for one, other, place in itertools.cycle(itertools.product(things, things, PLACES)):
        yield f"a {one} and a {other} on the {place}"
