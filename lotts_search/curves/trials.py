"""A trial table as arrays: searches, their running costs and their best images, without any loop over rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lotts_search.curves.intervals import Bools, Doubles, Ints, binary
from lotts_search.errors import BadInput, unknown

if TYPE_CHECKING:
    import pyarrow as pa

AXES = {
    "images": "images per prompt",
    "nfe": "NFE per prompt",
    "rows": "network rows per prompt",
    "flops": "FLOPs per prompt",
    "device_s": "device seconds per prompt",
}
"""The costs that a curve can be drawn over (columns of the trial table), and the label of each axis."""
COUNTS = ("nfe", "rows", "decodes", "previews", "encodes", "scores")
"""The counted work that FLOPs follow from."""
Price: TypeAlias = "Callable[[Mapping[str, Doubles]], Doubles]"
"""Returns the FLOPs [n] of counts [n]: those of :data:`COUNTS`, and of the NFE and rows apart, ``steps`` of denoising and rows of
localizations (``located``)."""
LIMITS = ("budget_nfe", "budget_images", "budget_flops")
"""Columns of the budgets."""
IMAGES = ("sample", "encode", "refine", "advance")
"""Kinds of trials that make candidates."""
NEEDED = (
    "search_id", "prompt_id", "prompt", "model", "strategy", "search_seed", "kind", "parent_id", "score", "image", *AXES
)  # fmt: skip
"""Columns that a trial table must have."""


@dataclass(frozen=True)
class Setup:
    """One setup of a comparison: a strategy with its settings (``label``) on a model, with its limits (None = none)."""

    model: str
    label: str
    nfe: float | None = None
    images: int | None = None
    flops: float | None = None

    @property
    def budget(self) -> str:
        """The limits in words, e.g. ``100 NFE and 9 images``."""
        limits = [f"{self.nfe:g} NFE"] if self.nfe is not None else []
        if self.images is not None:
            limits.append(f"{self.images} image{'' if self.images == 1 else 's'}")
        limits += [f"{self.flops:.4g} FLOPs"] if self.flops is not None else []
        return " and ".join(limits) or "without limit"


@dataclass(frozen=True, eq=False)
class Trials:
    """The trials of many searches.

    Attributes:
        setups: the setups of the table, in its order.
        prompts: ids of the prompts.
        texts: the prompts, in the order of ``prompts``.
        strategies: registered name of each setup's strategy.
        setup, prompt, seed: of each search [s]; the first two are indices into ``setups`` and ``prompts``.
        ids: id of each search [s].
        first: [s + 1] first row of each search; its rows are contiguous, in virtual order.
        columns: the costs, ``score`` and ``metric_*`` of each row [n]; NaN where a row has none.
        independent: whether each row is a sample from pure noise, without a parent [n].
        image: whether each row made a complete image [n].
        refined: whether each row is a refinement [n].
        order: the place of each row in the table [n].
        counted: FLOPs of each row [n] as its search counted them; those of ``columns`` may be at other prices.
        nested: labels whose search with a small budget is the beginning of the one with a large budget.
        smaller: setups that are the beginning of the searches of another setup.
    """

    setups: list[Setup]
    prompts: list[str]
    texts: list[str]
    strategies: list[str]
    setup: Ints
    prompt: Ints
    seed: Ints
    ids: list[str]
    first: Ints
    columns: Mapping[str, Doubles]
    independent: Bools
    image: Bools
    refined: Bools
    order: Ints
    counted: Doubles
    nested: frozenset[str] = frozenset()
    smaller: tuple[Setup, ...] = ()
    _sums: dict[str, Doubles] = field(default_factory=dict, repr=False)
    _within: dict[Setup, Bools] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> list[str]:
        """Names of the held-out metrics."""
        return [name.removeprefix("metric_") for name in self.columns if name.startswith("metric_")]

    @cached_property
    def search(self) -> Ints:
        """The search of each row [n]."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def cost(self, over: str) -> Doubles:
        """Return what the search of each row has spent up to and including this row [n].

        Raises:
            BadInput: ``over`` is not one of :data:`AXES`.
        """
        if over not in AXES:
            raise unknown("cost", over, AXES)
        if over not in self._sums:
            self._sums[over] = self._running(self.columns[over])
        return self._sums[over]

    def _running(self, values: Doubles) -> Doubles:
        """Return the sums over the rows of each search, up to and including each row."""
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray(sums[1:] - sums[self.first[:-1]][self.search])

    def within(self, setup: Setup) -> Bools:
        """Return whether each row lies within the limits of a setup [n]; of an image, its score in the next row too."""
        if setup not in self._within:
            flops = self._running(self.counted)
            scored = np.append(self.search[1:] == self.search[:-1], False) & self.image
            flops = np.where(scored, np.append(flops[1:], 0.0), flops)
            spent = {"nfe": self.cost("nfe"), "images": self.cost("images"), "flops": flops}
            limits = {over: getattr(setup, over) for over in spent}
            parts = [spent[over] <= limit * (1 + 1e-12) for over, limit in limits.items() if limit is not None]
            self._within[setup] = np.logical_and.reduce([np.ones(len(self.order), dtype=bool), *parts])
        return self._within[setup]

    @cached_property
    def leading(self) -> Bools:
        """Whether each row's image is the best of its search so far [n]; of equal scores, the first counts."""
        score = np.where(self.image, np.nan_to_num(self.columns["score"], nan=-np.inf), -np.inf)
        # One running maximum serves all searches: the ranks of a later search lie above those of an earlier one.
        ranked = np.unique(score, return_inverse=True)[1] + self.search * (score.size + 1)
        before = np.concatenate([[-1], np.maximum.accumulate(ranked)[:-1]])
        return np.asarray((ranked > before) & (score > -np.inf))

    def values(self, of: str) -> Doubles:
        """Return a column of qualities [n]: the verifier's ``score``, or the metric of that name.

        Raises:
            BadInput: there is no such metric; the message names the known ones.
        """
        name = of if of == "score" else f"metric_{of}"
        if name not in self.columns:
            raise unknown("metric", of, ["score", *self.metrics])
        return self.columns[name]

    def share(self, of: str) -> bool:
        """Return whether ``of`` is 0 or 1 for every image, so that its mean is a share."""
        return binary(self.values(of))


def load_table(path: Path | str, *, whole: bool = True) -> tuple[pa.Table, dict[str, Any]]:
    """Read the trial table of a run folder or a Parquet file, and the ``study.json`` beside it ({} without one).

    Args:
        path: the folder or the file.
        whole: read all columns; False reads only those that :func:`from_table` uses.

    Raises:
        BadInput: there is no trial table, or it is empty or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    file = path / "trials.parquet" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"no trials in {path}: expected the folder of a study or a trials.parquet")
    try:
        names = pq.read_schema(file).names
        used = [
            n
            for n in names
            if whole or n in NEEDED or n in COUNTS or n in ("label", *LIMITS) or n.startswith("metric_")
        ]
        table = pq.read_table(file, columns=used)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{file} is not a Parquet file: {error}") from error
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise BadInput(f"{file} is not a trial table: it has no column {missing[0]!r}")
    if not len(table):
        raise BadInput(f"{file} is empty: no search has finished yet")
    about = file.with_name("study.json")
    return table, json.loads(about.read_text()) if about.is_file() else {}


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Join trial tables. A search that an earlier table has under the same label is left out of a later one; a metric
    that a table lacks is null in its rows."""
    import pyarrow as pa

    known: set[tuple[str, str]] = set()
    kept = []
    for table in tables:
        search, ids = _codes(table, "search_id")
        label, labels = _labels(table)
        pairs, of_row = np.unique(search * len(labels) + label, return_inverse=True)
        names = [(ids[pair // len(labels)], labels[pair % len(labels)]) for pair in pairs]
        new = np.array([name not in known for name in names], dtype=bool)
        known.update(names)
        kept.append(table if new.all() else table.filter(pa.array(new[of_row])))
    return pa.concat_tables(kept, promote_options="permissive")


def from_table(table: pa.Table, about: Mapping[str, Any] | None = None, price: Price | None = None) -> Trials:
    """Convert a trial table to arrays.

    Args:
        table: a non-empty trial table (``docs/run-folder.md`` lists its columns). A search without a ``label`` takes
            the name of its strategy.
        about: the contents of ``study.json``.
        price: gives the FLOPs of each row instead of those in the table.
    """
    # Two labels with equal settings share the ids of their searches, and the table has the rows of each.
    search, ids = _codes(table, "search_id")
    strategies, strategy_names = _codes(table, "strategy")
    labels, label_names = _labels(table)
    group = search * len(label_names) + labels
    order = np.argsort(group, kind="stable") if (np.diff(group) < 0).any() else np.arange(len(group))
    group = group[order]
    first = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1], [True]]))
    heads = order[first[:-1]]

    prompt, prompts = _codes(table, "prompt_id")
    texts, known = _codes(table, "prompt")
    kinds, kind_names = _codes(table, "kind")
    models, model_names = _codes(table, "model")
    budgets = [_numbers(table, name)[heads] for name in LIMITS]

    columns = {name: np.nan_to_num(_numbers(table, name)[order]) for name in AXES}
    counted = columns["flops"]
    if price is not None:
        counts = {name: np.nan_to_num(_numbers(table, name)[order]) for name in COUNTS}
        located = np.isin(kinds, [i for i, name in enumerate(kind_names) if name == "localize"])[order]
        counts |= {"steps": counts["nfe"] * ~located, "located": counts["rows"] * located}
        columns["flops"] = price(counts)
    for name in ["score", *(c for c in table.column_names if c.startswith("metric_"))]:
        columns[name] = _numbers(table, name)[order]

    made = np.isin(kinds, [i for i, name in enumerate(kind_names) if name in IMAGES])
    seen, rootless = _given(table, "image"), ~_given(table, "parent_id")
    sampled = np.isin(kinds, [i for i, name in enumerate(kind_names) if name == "sample"])

    parts = np.stack([models[heads], labels[heads], *(np.nan_to_num(b, nan=-1.0) for b in budgets)], axis=1)
    kept, firsts, setup = np.unique(parts, axis=0, return_index=True, return_inverse=True)
    place = np.argsort(firsts)  # setups in the order of the table
    setups = [
        Setup(
            model_names[int(m)],
            label_names[int(name)],
            None if nfe < 0 else float(nfe),
            None if images < 0 else int(images),
            None if flops < 0 else float(flops),
        )
        for m, name, nfe, images, flops in kept[place]
    ]
    of_prompt = np.full(len(prompts), -1)
    of_prompt[prompt[heads]] = texts[heads]
    nested, smaller = _nested(setups, about or {})
    return Trials(
        setups=setups,
        prompts=prompts,
        texts=[known[i] for i in of_prompt],
        strategies=[strategy_names[strategies[heads[firsts[i]]]] for i in place],
        setup=np.argsort(place)[setup.ravel()],
        prompt=prompt[heads],
        seed=np.asarray(_numbers(table, "search_seed")[heads], dtype=np.int64),
        ids=[ids[i] for i in search[heads]],
        first=first,
        columns=columns,
        independent=(sampled & rootless)[order],
        image=(made & seen)[order],
        refined=np.isin(kinds, [i for i, name in enumerate(kind_names) if name == "refine"])[order],
        order=order,
        counted=counted,
        nested=nested,
        smaller=smaller,
    )


def _nested(setups: list[Setup], about: Mapping[str, Any]) -> tuple[frozenset[str], tuple[Setup, ...]]:
    """Return the labels that ran once for all their budgets, and the setups that are beginnings of those searches."""
    known = [s for s in about.get("strategies", ()) if s.get("nested")]
    smaller = []
    for setup in setups:
        for budget in (b for s in known if s["label"] == setup.label for b in s.get("budgets", ())):
            part = Setup(setup.model, setup.label, budget.get("nfe"), budget.get("images"), budget.get("flops"))
            if budget.get("model", setup.model) == setup.model and part not in setups and part not in smaller:
                smaller.append(part)
    return frozenset(s["label"] for s in known), tuple(smaller)


def _codes(table: pa.Table, name: str) -> tuple[Ints, list[str]]:
    """Return a text column as indices into its distinct values, and these values in order of first occurrence."""
    import pyarrow as pa

    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # a table without rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode(null_encoding="encode")
    codes = np.asarray(column.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return codes, ["" if value is None else str(value) for value in column.dictionary.to_pylist()]


def _labels(table: pa.Table) -> tuple[Ints, list[str]]:
    """Return the label of each row, or its strategy's name where it has no label, as :func:`_codes` does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "label" not in table.column_names:
        return _codes(table, "strategy")
    given, names = (table.column(name).cast(pa.string()) for name in ("label", "strategy"))
    return _codes(pa.table({"label": pc.if_else(pc.equal(pc.fill_null(given, ""), ""), names, given)}), "label")


def _numbers(table: pa.Table, name: str) -> Doubles:
    """Return a column as doubles, NaN where it is null or missing."""
    import pyarrow as pa

    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(), dtype=np.float64)


def _given(table: pa.Table, name: str) -> Bools:
    """Return where a column is not null."""
    return np.asarray(table.column(name).is_valid().to_numpy(), dtype=bool)
