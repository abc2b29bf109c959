"""The tree of a search, ready to be laid out: images, located regions and scores under their parents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lotts_search.core.trial_table import TrialRecord
from lotts_search.report.images import area, colour_map, data_uri, outline
from lotts_search.work.requests import Bytes, Located

DRAWN = frozenset({"sample", "encode", "refine", "advance"})
"""Kinds of trials that make a candidate and so a card of the tree; a localization belongs to its candidate's card."""


@dataclass(frozen=True)
class Stage:
    """One map of a localization: its name, its colours as a data URI and its range of values."""

    name: str
    uri: str
    low: float
    high: float


@dataclass(frozen=True)
class Region:
    """A located region: its stages, and its mask as SVG paths on a grid of ``width`` by ``height`` latent cells."""

    stages: list[Stage]
    heat: str
    outline: str
    area: str
    width: int
    height: int
    share: float
    nfe: float


@dataclass
class Node:
    """One candidate of the tree, what was located on it and what was made from it.

    Attributes:
        trial: its record.
        uri: its image, None where there is none (a partial candidate, a failed trial).
        winner: whether the search handed it out.
        gain: its score minus its parent's, None where either is missing.
    """

    trial: TrialRecord
    uri: str | None
    winner: bool
    gain: float | None = None
    regions: list[Region] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @property
    def on_path(self) -> bool:
        """Whether the winner is this candidate or descends from it."""
        return self.winner or any(child.on_path for child in self.children)

    @property
    def inner(self) -> bool:
        """Whether something was located on it or made from it."""
        return bool(self.children or self.regions)

    @property
    def seed(self) -> str:
        """The seed that made it, e.g. ``seed 3`` or ``refine@8 1``."""
        if self.trial.kind == "encode" or not self.trial.lineage:
            return "given" if self.trial.kind == "encode" else self.trial.kind
        return self.trial.lineage[-1]


def region(located: Located, nfe: float) -> Region:
    """A localization that cost ``nfe``, for the page."""
    height, width = located.mask.shape
    stages = [
        Stage(name, data_uri(colour_map(values)), float(values.min()), float(values.max()))
        for name, values in located.stages.items()
    ]
    heat, mask = data_uri(colour_map(located.heat)), located.mask
    return Region(stages, heat, outline(mask), area(mask), width, height, float(mask.mean()), nfe)


def build(
    trials: Sequence[TrialRecord], images: Mapping[str, Bytes], located: Mapping[str, Located], best: str | None
) -> list[Node]:
    """The roots of the tree, in virtual order, as are the children of every node.

    Args:
        trials: the records of one search.
        images: images by trial id.
        located: localizations by the id of their trial.
        best: id of the trial whose image won.
    """
    nodes: dict[str, Node] = {}
    roots: list[Node] = []
    for trial in trials:
        parent = nodes.get(trial.parent_id) if trial.parent_id else None
        if trial.kind in DRAWN:
            image = images.get(trial.trial_id)
            node = Node(trial, data_uri(image) if image is not None else None, trial.trial_id == best)
            if parent is not None and parent.trial.score is not None and trial.score is not None:
                node.gain = trial.score - parent.trial.score
            nodes[trial.trial_id] = node
            (roots if parent is None else parent.children).append(node)
        elif trial.trial_id in located and parent is not None:
            parent.regions.append(region(located[trial.trial_id], trial.nfe))
    return roots


def walk(roots: Sequence[Node]) -> Iterator[Node]:
    """All nodes, parents before their children."""
    for root in roots:
        yield root
        yield from walk(root.children)
