"""The images that searches returned: winners by prompt, and repeated searches with their masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from lotts_search.curves import Results, Setup, best_so_far
from lotts_search.curves.panel import common
from lotts_search.errors import BadInput, notice

if TYPE_CHECKING:
    import pyarrow as pa

    from lotts_search.core.events import Event
    from lotts_search.core.result import SearchResult

SIDE = 256
"""Greatest side of an image on a page; larger ones are scaled down."""


@dataclass(frozen=True)
class Winner:
    """The image that one search returned.

    Attributes:
        label: of the strategy.
        image: as a data URI; None if the study did not keep it.
        values: score and metrics by name.
        ahead: whether it is better than all others of its prompt, by the main value.
    """

    label: str
    image: str | None
    values: dict[str, float]
    ahead: bool


@dataclass(frozen=True)
class Case:
    """One prompt: the gap between two setups, and the winners of all setups."""

    prompt: int
    text: str
    gap: float
    winners: list[Winner]


class Gallery:
    """The images of a study.

    Args:
        results: of the study.
        table: the trial table that ``results`` was made from.
        folders: run folders, with the images in ``images/``.
    """

    def __init__(self, results: Results, table: pa.Table, folders: Sequence[Path]) -> None:
        self.results, self.table, self.folders = results, table, folders

    def cases(self, setups: Sequence[Setup], main: str, values: Sequence[str], count: int) -> list[Case]:
        """Return the prompts where the first setup gains most over the second, and those where it loses most.

        Args:
            setups: those shown; the gap is between the first two. With one setup, it is the value itself.
            main: the value that the gap is measured in.
            values: names of the values shown with each image.
            count: number of prompts at each end.
        """
        panels = [best_so_far(self.results.trials, setup, main, "nfe") for setup in setups[:2]]
        a, b = common(panels[0], panels[-1])
        gaps = a.final - b.final if len(setups) > 1 else a.final
        order = np.argsort(-gaps, kind="stable")
        chosen = list(dict.fromkeys([*order[:count], *order[max(len(order) - count, 0) :]]))
        return [self._case(int(a.prompts[i]), float(gaps[i]), setups, main, values) for i in chosen]

    def _case(self, prompt: int, gap: float, setups: Sequence[Setup], main: str, values: Sequence[str]) -> Case:
        rows = {setup.label: row for setup in setups if (row := self.winner(setup, prompt)) is not None}
        trials = self.results.trials
        shown = {label: {of: float(trials.values(of)[row]) for of in values} for label, row in rows.items()}
        best = max(of[main] for of in shown.values())
        alone = len(shown) > 1 and sum(of[main] == best for of in shown.values()) == 1
        winners = [
            Winner(label, self.image(rows[label]), found, alone and found[main] == best)
            for label, found in shown.items()
        ]
        return Case(prompt, trials.texts[prompt], gap, winners)

    def search(self, setup: Setup, prompt: int) -> int | None:
        """Return the first search of a setup for a prompt."""
        trials = self.results.trials
        whole = [i for i, a in enumerate(trials.setups) if (a.model, a.label) == (setup.model, setup.label)]
        place = trials.setups.index(setup) if setup in trials.setups else whole[0]
        found = np.flatnonzero((trials.setup == place) & (trials.prompt == prompt))
        return int(found[0]) if found.size else None

    def winner(self, setup: Setup, prompt: int) -> int | None:
        """Return the row of the image that this search returned."""
        search, trials = self.search(setup, prompt), self.results.trials
        if search is None:
            return None
        first, last = trials.first[search : search + 2]
        leads = np.flatnonzero((trials.leading & trials.within(setup))[first:last])
        return int(first + leads[-1]) if leads.size else None

    def image(self, row: int) -> str | None:
        """Return the image of a row as a data URI; None if it was not kept."""
        name = self.table.column("image")[int(self.results.trials.order[row])].as_py()
        path = next((p for folder in self.folders if (p := folder / "images" / f"{name}.png").is_file()), None)
        return thumbnail(path) if path is not None else None


def guiding(about: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return the verifier that guides the searches on a model of ``study.json``; "" if that names none."""
    # Files of older versions name one for all models, the oldest as "guide".
    return str(model.get("verifier") or about.get("verifier") or about.get("guide", ""))


def thumbnail(path: Path, side: int = SIDE) -> str:
    """Return an image file as a data URI: the file itself if it is small, else a scaled JPEG."""
    with Image.open(path) as image:
        if max(image.size) <= side:
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Again:
    """Repeats searches of a study in this process, for their trees and masks.

    On the same kind of hardware they are exactly the same: network calls have as many rows and threads as the study's.

    Args:
        about: ``study.json``.
        device: where to run.
    """

    def __init__(self, about: Mapping[str, Any], device: str = "cpu") -> None:
        self.about, self.device = about, device
        self._pools: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self._pools.values():
            pool.close()

    def search(
        self, setup: Setup, prompt: str, prompt_id: str, seed: int, *,
        journal: Path | None = None, on_event: Callable[[Event], object] | None = None,
    ) -> SearchResult:  # fmt: skip
        """Repeat the search of ``setup`` for a prompt with the search seed ``seed``.

        Args:
            journal: of an earlier repetition, which is replayed; a stale one is replaced.
            on_event: called with the events of the search.

        Raises:
            BadInput: ``study.json`` does not describe the search.
        """
        from lotts_search.api import search
        from lotts_search.core.records import JournalError

        model = next((m for m in self.about.get("models", ()) if m["label"] == setup.model), None)
        found = [s for s in self.about.get("strategies", ()) if s["label"] == setup.label]
        if model is None or not found:
            raise BadInput(f"study.json does not describe {setup.label} on {setup.model}")
        rewriters = self.about.get("rewriters") or {}
        again = partial(
            search,
            prompt, pool=self._pool(model), strategy=found[0]["strategy"], settings=found[0]["settings"],
            verifier=guiding(self.about, model), nfe=setup.nfe, images=setup.images, flops=setup.flops,
            as_=model.get("as"), seed=seed, steps=model.get("steps"),
            guidance=model.get("guidance"), eta=model.get("eta"), solver=model.get("solver"),
            negative=model.get("negative") or "", rewriter=next(iter(rewriters), None), workers=self.about.get("workers", 8), prompt_id=prompt_id,
            journal=journal, on_event=on_event,
        )  # fmt: skip
        try:
            return again()
        except (BadInput, JournalError):
            if journal is None or not journal.exists():
                raise
            notice(f"{journal} is of another version, or of files that have changed since: its search is repeated")
            journal.unlink()
            return again()

    def _pool(self, model: Mapping[str, Any]) -> Any:
        from lotts_search import registry
        from lotts_search.engine.local_pool import LocalPool

        if model["label"] not in self._pools:
            verifier = guiding(self.about, model)
            rewriters = (self.about.get("rewriters") or {}).items()
            backbone = registry.load_backbone(model["model"], **{"device": self.device, **model.get("options", {})})
            self._pools[model["label"]] = LocalPool(
                backbone,
                {verifier: registry.load_verifier(verifier)},
                batch=(self.about.get("machine") or {}).get("batch", 16),  # of runs that did not say it
                threads=1,  # as the pools of commands have it
                rewriters={name: registry.load_rewriter(name, settings) for name, settings in rewriters},
            )
        return self._pools[model["label"]]
