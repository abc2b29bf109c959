"""Win rates of paired searches."""

from __future__ import annotations

from dataclasses import dataclass

from lotts_search.curves.intervals import Doubles, share_interval

TIE = 1e-12
"""Values at most this far apart are equal."""


@dataclass(frozen=True)
class WinRate:
    """How often one strategy beats another on the same prompt; a tie counts half.

    Attributes:
        rate: share of the prompts, 0 to 1.
        low, high: its 95 % interval.
        wins, ties, losses: numbers of prompts.
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    def __str__(self) -> str:
        return f"{100 * self.rate:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def win_rate(ours: Doubles, theirs: Doubles, confidence: float = 0.95) -> WinRate:
    """Return how often ``ours`` [prompts] is greater than ``theirs`` [prompts] on the same prompts.

    The interval is Wilson's, with a tie as half a win. Unlike a bootstrap interval it does not collapse when one side
    always wins. With ties it is conservative.

    Raises:
        ValueError: there are no prompts, or the two sides have different numbers of them.
    """
    if not ours.size or ours.shape != theirs.shape:
        raise ValueError("a win rate needs the same prompts on both sides, and at least one")
    wins, losses = int((ours - theirs > TIE).sum()), int((theirs - ours > TIE).sum())
    ties = ours.size - wins - losses
    found = share_interval((wins + ties / 2) / ours.size, ours.size, confidence)
    return WinRate(found.mean, found.low, found.high, wins, ties, losses)
