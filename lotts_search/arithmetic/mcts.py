"""The arithmetic of Monte Carlo tree search over denoising steps: values, visits, and where to descend.

Source: Jain et al. 2025, "Diffusion tree sampling: scalable inference-time alignment of diffusion models". The soft
value of a state x is ``V(x) = log E[exp λ·r(x0) | x] / λ``, estimated by its children: ``log(mean(exp λ·V)) / λ``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt


class Latent(Protocol):
    """What a node must know of a latent: the steps done, whether these are all, and the score of a complete one."""

    step: int
    score: float | None

    @property
    def complete(self) -> bool: ...


L = TypeVar("L", bound=Latent)


@dataclass(eq=False)
class Node(Generic[L]):
    """A state of the tree.

    Attributes:
        candidate: the latent; None at the root, before all noise.
        children: states that were reached from here.
        born: number of children ever started, including those under way.
        visits: descents through here.
        value: estimate of the soft value, None before the first image below; of an image its score.
    """

    candidate: L | None = None
    children: list[Node[L]] = field(default_factory=list)
    born: int = 0
    visits: int = 0
    value: float | None = None

    @property
    def step(self) -> int:
        return 0 if self.candidate is None else self.candidate.step

    @property
    def inner(self) -> list[Node[L]]:
        """The children that are not complete."""
        return [child for child in self.children if child.candidate is not None and not child.candidate.complete]

    def add(self, candidate: L) -> Node[L]:
        """Add a child, visited by the descent under way."""
        child = Node(candidate, visits=1, value=candidate.score if candidate.complete else None)
        self.children.append(child)
        return child


def soft_value(values: Sequence[float] | npt.NDArray[np.float64], strength: float) -> float:
    """Return ``log(mean(exp λ·v)) / λ`` of values [n]: between their mean (λ → 0) and their maximum (λ → ∞)."""
    scaled = strength * np.asarray(values, dtype=np.float64)
    top = scaled.max()
    return float((top + np.log(np.mean(np.exp(scaled - top)))) / strength)


def back_up(path: Sequence[Node[L]], strength: float) -> None:
    """Pass the value of the last state of a path up to the first."""
    for node in reversed(path[:-1]):
        known = [child.value for child in node.children if child.value is not None]
        if known:
            node.value = soft_value(known, strength)


def upper_bound(node: Node[L], children: Sequence[Node[L]], exploration: float) -> Node[L]:
    """Return the child with the highest ``V + c·√(ln(visits of the node) / visits)`` (UCT); those without a value come
    last."""

    def bound(child: Node[L]) -> float:
        value = -math.inf if child.value is None else child.value
        return value + exploration * math.sqrt(math.log(max(node.visits, 1)) / max(child.visits, 1))

    return max(children, key=bound)


def boltzmann(children: Sequence[Node[L]], strength: float, rng: np.random.Generator) -> Node[L]:
    """Draw a child with probability ∝ exp(λ·V); those without a value only where none has one."""
    known = [child for child in children if child.value is not None] or list(children)
    scaled = strength * np.array([child.value or 0.0 for child in known])
    weights = np.exp(scaled - scaled.max())
    return known[int(rng.choice(len(known), p=weights / weights.sum()))]
