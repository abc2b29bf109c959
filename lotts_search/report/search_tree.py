"""The tree of a search, ready for layout: images, located regions and scores under their parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lotts_search.core.trial_table import TrialRecord
from lotts_search.report.images import area, colour_map, data_uri, outline
from lotts_search.work.requests import Bytes, Located

DRAWN = frozenset({"sample", "encode", "refine", "advance", "compose"})
"""Kinds of trials that make a candidate, each a card of the tree. A localization belongs to the card of its candidate.
"""


@dataclass(frozen=True)
class StageView:
    """One stage of a localization: its name, its map as a data URI, and the range of its values."""

    name: str
    uri: str
    low: float
    high: float


@dataclass(frozen=True)
class RegionView:
    """A located region: its stages, and its mask as SVG paths on a grid of ``width`` by ``height`` cells.

    Attributes:
        stages: the maps of the localization, in the order of the algorithm.
        heat: the heat map as a data URI.
        outline, area: SVG paths of the mask.
        share: share of the image inside the mask, 0..1.
        nfe: cost of the localization.
    """

    stages: list[StageView]
    heat: str
    outline: str
    area: str
    width: int
    height: int
    share: float
    nfe: float


@dataclass
class Card:
    """One candidate of the tree, with the regions located on it and the candidates made from it.

    Attributes:
        trial: its record.
        uri: its image as a data URI, for a partial candidate that of its x0 prediction; None without one.
        winner: whether the search returned it.
        score: its score, for a partial candidate that of its x0 prediction; None where it was not scored.
        nfe: its cost, with that of its score.
        gain: its score minus its parent's where both are images; None elsewhere.
    """

    trial: TrialRecord
    uri: str | None
    winner: bool
    score: float | None
    nfe: float
    gain: float | None = None
    regions: list[RegionView] = field(default_factory=list)
    children: list[Card] = field(default_factory=list)

    @property
    def on_path(self) -> bool:
        """Whether the winner is this candidate or descends from it."""
        return self.winner or any(child.on_path for child in self.children)

    @property
    def inner(self) -> bool:
        """Whether it has a located region or children."""
        return bool(self.children or self.regions)

    @property
    def chain(self) -> list[Card]:
        """This candidate and its descendants, as long as each has only one child."""
        found = [self]
        while len(found[-1].children) == 1:
            found += found[-1].children
        return found

    @property
    def seed(self) -> str:
        """Its origin in words, e.g. ``seed 3`` or ``refined from step 8, seed 1``."""
        if self.trial.kind == "encode" or not self.trial.lineage:
            return "given" if self.trial.kind == "encode" else self.trial.kind
        return in_words(self.trial.lineage[-1])


WORDS = {
    "refine@": "refined from step {}, seed {}",
    "branch@": "branched at step {}, seed {}",
    "vary@": "step {} with its noise varied by {}, seed {}",
    "compose@": "composed at step {} from siblings, choice {}",
    "near ": "noise near the one before (cosine {}), seed {}",
    "low ": "the noise before with other low frequencies ({}, {})",
    "mix ": "the noise before, mixed with {} of new noise, seed {}",
}
"""The entries of a lineage in words, by their beginnings."""


def in_words(entry: str) -> str:
    """Return an entry of a lineage in words; an unknown one is returned as it is."""
    kind = next((kind for kind in WORDS if entry.startswith(kind)), None)
    return entry if kind is None else WORDS[kind].format(*entry.removeprefix(kind).split(" "))


def _region(located: Located, nfe: float) -> RegionView:
    """Prepare a localization that cost ``nfe`` for the page."""
    height, width = located.mask.shape
    stages = [
        StageView(name, data_uri(colour_map(values)), float(values.min()), float(values.max()))
        for name, values in located.stages.items()
    ]
    heat, mask = data_uri(colour_map(located.heat)), located.mask
    return RegionView(stages, heat, outline(mask), area(mask), width, height, float(mask.mean()), nfe)


def build(
    trials: Sequence[TrialRecord], images: Mapping[str, Bytes], located: Mapping[str, Located], best: str | None
) -> list[Card]:
    """Build the tree of a search and return its roots. Roots and children are in virtual order.

    Args:
        trials: the records of one search, in virtual order.
        images: images by trial id.
        located: localizations by trial id.
        best: id of the trial whose image the search returned.
    """
    cards: dict[str, Card] = {}
    roots: list[Card] = []
    for trial in trials:
        parent = cards.get(trial.parent_id) if trial.parent_id else None
        if trial.kind in DRAWN:
            image = images.get(trial.trial_id)
            uri = data_uri(image) if image is not None else None
            card = Card(trial, uri, trial.trial_id == best, trial.score, trial.nfe)
            if parent is not None and parent.trial.score is not None and trial.score is not None:
                card.gain = trial.score - parent.trial.score
            cards[trial.trial_id] = card
            (roots if parent is None else parent.children).append(card)
        elif trial.kind == "score" and parent is not None and trial.score is not None and parent.score is None:
            parent.score, parent.nfe = trial.score, parent.nfe + trial.nfe
            if trial.trial_id in images:
                parent.uri = data_uri(images[trial.trial_id])
        elif trial.trial_id in located and parent is not None:
            parent.regions.append(_region(located[trial.trial_id], trial.nfe))
    return roots
