"""From the YAML file of a study to :class:`~lotts_search.study.spec.Study`. ``docs/study.md`` explains the file."""

from __future__ import annotations

import itertools
import json
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lotts_search import registry
from lotts_search.core.strategy import Strategy
from lotts_search.errors import BadInput, unknown
from lotts_search.study import model_files as models
from lotts_search.study.prompts import Prompt, load_prompts, sample, texts
from lotts_search.study.spec import ORACLE, Entrant, Keep, Limit, ModelEntry, Study
from lotts_search.study.yaml_file import Place, open_yaml
from lotts_search.work.requests import Solver

SAMPLING: dict[str, Callable[[Place], object]] = {
    "steps": lambda place: place.integer("steps", 1),
    "guidance": lambda place: place.number("guidance"),
    "negative": lambda place: str(place.plain() or ""),
    "eta": lambda place: place.number("eta", 0),
    "solver": lambda place: place.choice("solver", typing.get_args(Solver)),
}
KEYS = (
    "name", "model", "models", "strategies", "prompts", "seeds", "budgets", "guide", "metrics", "judge", "workers", "images",
    "at-once", "rewriter", *SAMPLING,
)  # fmt: skip


def read_study(path: Path) -> Study:
    """Read and check the file of a study, and fetch its prompts.

    Raises:
        BadInput: something in it is wrong; the message names the file and the line.
        Failure: prompts cannot be fetched.
    """
    root = open_yaml(path)
    keys = root.table("a study", KEYS)
    for needed in ("strategies", "prompts", "budgets"):
        if needed not in keys:
            raise root.wrong(f"a study needs {needed!r}")
    sampling = {name: read(keys[name]) for name, read in SAMPLING.items() if name in keys}
    guide = _guide(keys["guide"]) if "guide" in keys else "shapes-reward"
    limits = tuple(_limits(keys["budgets"]))
    prompts, source = _prompts(keys["prompts"], path.parent)
    metrics = _metrics(keys["metrics"], guide, prompts) if "metrics" in keys else ()
    rewriter, writing = _rewriter(keys["rewriter"]) if "rewriter" in keys else ("shapes-rewriter", {})
    return Study(
        name=_name(keys["name"]) if "name" in keys else path.stem,
        path=path,
        models=tuple(_models(root, keys, sampling)),
        entrants=tuple(_entrants(keys["strategies"], limits)),
        limits=limits,
        prompts=tuple(prompts),
        source=source,
        seeds=tuple(_seeds(keys["seeds"])) if "seeds" in keys else (0,),
        guide=guide,
        metrics=metrics,
        judged=typing.cast(Any, keys["judge"].choice("judge", ("all", "best")) if "judge" in keys else "all"),
        workers=keys["workers"].integer("workers", 1) if "workers" in keys else 8,
        keep=typing.cast(Keep, keys["images"].choice("images", typing.get_args(Keep)) if "images" in keys else "best"),
        rewriter=rewriter,
        writing=writing,
        at_once=keys["at-once"].integer("at-once", 1) if "at-once" in keys else None,
    )


def _name(place: Place) -> str:
    name = place.text("name")
    if "/" in name or name.startswith("."):
        raise place.wrong(f"name is also that of a folder: {name!r} cannot be one")
    return name


def _guide(place: Place) -> str:
    name = place.text("guide")
    if name.removeprefix("shapes-") in ("oracle", "perfect"):
        raise place.wrong(f"{name} is held out: it may be a metric, never the guide")
    return _verifier(place, "guide")


def _verifier(place: Place, what: str, *more: str) -> str:
    name = place.text(what)
    if ":" not in name and name not in registry.verifiers() and name not in more:
        raise place.wrong(unknown("verifier", name, [*registry.verifiers(), *more]))
    return name


def _metrics(place: Place, guide: str, prompts: list[Prompt]) -> tuple[str, ...]:
    names = []
    for item in place.items("metrics") if not (place.is_list and place.plain() == []) else []:
        name = _verifier(item, "a metric", ORACLE)
        if name == guide:
            raise item.wrong(f"{name} is the guide: its scores are in the column score")
        if name in names:
            raise item.wrong(f"the metric {name} is there twice")
        if name == ORACLE:
            _check_scenes(item, prompts)
        names.append(name)
    return tuple(names)


def _rewriter(place: Place) -> tuple[str, dict[str, Any]]:
    """The name of the rewriter and its settings."""
    parts = place.table("rewriter", ("name", "settings")) if place.is_table else {"name": place}
    if "name" not in parts:
        raise place.wrong("a rewriter needs the key 'name'")
    settings = {key: value.plain() for key, value in _table(parts.get("settings")).items()}
    try:
        registry.load_rewriter(parts["name"].text("rewriter"), settings)
    except BadInput as error:
        raise parts["name"].wrong(error) from error
    return parts["name"].text("rewriter"), settings


def _check_scenes(place: Place, prompts: list[Prompt]) -> None:
    from lotts_search.shapes.world.scene import parse_caption

    for prompt in prompts:
        try:
            parse_caption(prompt.text)
        except ValueError as error:
            raise place.wrong(f"{ORACLE} judges scenes of the shapes world alone: {error}") from error


def _models(root: Place, keys: Mapping[str, Place], sampling: Mapping[str, Any]) -> list[ModelEntry]:
    if "model" in keys and "models" in keys:
        raise keys["model"].wrong("give either 'model' or 'models'")
    place = keys.get("models") or keys.get("model")
    if place is None:
        return [ModelEntry("shapes-sd", "shapes-sd", {}, dict(sampling))]
    found: list[ModelEntry] = []
    for item in place.items("models"):
        options: dict[str, Any] = {}
        own = dict(sampling)
        if item.is_table:
            parts = item.table("a model", ("model", "label", "options", *SAMPLING))
            if "model" not in parts:
                raise item.wrong("a model needs the key 'model': a name, a folder or a hub id")
            where, label = parts["model"], parts["label"].text("label") if "label" in parts else None
            options = {name: value.plain() for name, value in _table(parts.get("options")).items()}
            own |= {name: read(parts[name]) for name, read in SAMPLING.items() if name in parts}
        else:
            where, label = item, None
        model = where.text("a model")
        try:
            models.check(model)
        except BadInput as error:
            raise where.wrong(error) from error
        label = label or (model if model in registry.models() else Path(model).name)
        if label in {other.label for other in found}:
            raise where.wrong(f"two models have the label {label!r}: give one another 'label'")
        found.append(ModelEntry(label, model, options, own))
    return found


def _table(place: Place | None) -> dict[str, Place]:
    return place.table("options") if place is not None else {}


def _entrants(place: Place, limits: tuple[Limit, ...]) -> list[Entrant]:
    found: list[Entrant] = []
    for item in place.items("strategies"):
        for entrant in _spread(item, limits):
            if entrant.label in {other.label for other in found}:
                raise item.wrong(f"two strategies have the label {entrant.label!r}: give one another 'label'")
            found.append(entrant)
    return found


def _spread(item: Place, limits: tuple[Limit, ...]) -> list[Entrant]:
    """The entrants of one item: one for each combination of its grid."""
    if not item.is_table:
        parts: dict[str, Place] = {"strategy": item}
    else:
        parts = item.table("a strategy", ("strategy", "label", "settings", "grid", "budgets", "nested"))
        if "strategy" not in parts:
            raise item.wrong("a strategy needs the key 'strategy': a name, or package.module:Class")
    name = parts["strategy"].text("a strategy")
    try:
        registry.resolve_strategy(name)
    except BadInput as error:
        raise parts["strategy"].wrong(error) from error
    fixed = parts["settings"].table("settings") if "settings" in parts else {}
    grid = {key: value.items(f"the grid of {key}") for key, value in
            (parts["grid"].table("grid") if "grid" in parts else {}).items()}  # fmt: skip
    for key, values in grid.items():
        if key in fixed:
            raise values[0].wrong(f"{key} is both in 'settings' and in 'grid'")
    own = tuple(_limits(parts["budgets"])) if "budgets" in parts else limits
    nested = parts["nested"].flag("nested") if "nested" in parts else None
    label = parts["label"].text("label") if "label" in parts else None
    found = []
    for point in itertools.product(*grid.values()):
        chosen = dict(zip(grid, point, strict=True))
        strategy = _strategy(item, name, fixed | chosen)
        settings = {key: value.plain() for key, value in (fixed | chosen).items()}
        shown = _label(label, name, settings, list(chosen))
        found.append(Entrant(shown, name, strategy, own, strategy.nested if nested is None else nested))
    return found


def _strategy(item: Place, name: str, settings: Mapping[str, Place]) -> Strategy:
    for key, value in settings.items():
        try:  # one by one: the message then has the line of the setting
            registry.make_strategy(name, {key: value.plain()})
        except BadInput as error:
            if key in str(error):  # and not about another setting that it needs
                raise value.wrong(error) from error
    try:
        return registry.make_strategy(name, {key: value.plain() for key, value in settings.items()})
    except BadInput as error:
        raise item.wrong(error) from error


def _label(label: str | None, name: str, settings: Mapping[str, Any], varied: list[str]) -> str:
    """``label`` with its ``{setting}`` filled in; what it does not show of the grid is added."""
    if label is None:
        label, shown = name.rpartition(":")[2], []
        varied = list(settings)
    else:
        shown = [key for key in settings if f"{{{key}}}" in label]
        for key in shown:
            label = label.replace(f"{{{key}}}", _short(settings[key]))
    rest = [f"{key}={_short(settings[key])}" for key in varied if key not in shown]
    return " ".join([label, *rest])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join([str(value.get("kind", "")), *(f"{k}={_short(v)}" for k, v in value.items() if k != "kind")])
    return value if isinstance(value, str) else json.dumps(value).replace(" ", "")


def _limits(place: Place) -> list[Limit]:
    found: list[Limit] = []
    for item in place.items("budgets") if place.is_list else [place]:
        parts = item.table("budgets", ("nfe", "images"))
        if not parts:
            raise item.wrong("a budget needs 'nfe' or 'images'")
        nfe = [(p.number("nfe", 0), p.line) for p in parts["nfe"].items("nfe")] if "nfe" in parts else []
        images = (
            [(p.integer("images", 1), p.line) for p in parts["images"].items("images")] if "images" in parts else []
        )
        if place.is_list and len(nfe) == len(images) == 1:
            found.append(Limit(nfe[0][0], images[0][0], item.line))  # both limits at once
            continue
        found += [Limit(nfe=value, line=line) for value, line in nfe]
        found += [Limit(images=value, line=line) for value, line in images]
    for limit, times in Counter(found).items():
        if times > 1:
            raise place.wrong(f"the budget of {limit} is there {times} times")
    return found


def _seeds(place: Place) -> list[int]:
    if not place.is_list:
        return list(range(place.integer("seeds, their number,", 1)))
    seeds = [item.integer("a seed") for item in place.items("seeds")]
    if len(set(seeds)) < len(seeds):
        raise place.wrong(f"a seed is there twice: {seeds}")
    return seeds


def _prompts(place: Place, folder: Path) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts, and what ``study.json`` says of them."""
    if place.is_list:
        found = texts(item.text("a prompt") for item in place.items("prompts"))
        return found, {"source": "given", "count": len(found)}
    if not place.is_table:
        source, options = place, {}
    else:
        options = place.table("prompts", ("from", "count", "seed", "where", "column", "split", "texts"))
        if "texts" in options:
            found = texts(item.text("a prompt") for item in options["texts"].items("texts"))
            count = options["count"].integer("count", 1) if "count" in options else None
            seed = options["seed"].integer("seed") if "seed" in options else None
            found = sample(found, count, seed)
            return found, {"source": "given", "count": len(found), "seed": seed}
        if "from" not in options:
            raise place.wrong("prompts need 'from': a set or a file; or 'texts'")
        source = options["from"]
    name = source.text("prompts")
    if (folder / name).is_file() and not Path(name).is_absolute():
        name = str(folder / name)
    given: dict[str, Any] = {
        "count": options["count"].integer("count", 1) if "count" in options else None,
        "seed": options["seed"].plain() if "seed" in options else 0,
        "where": {key: value.plain() for key, value in _table(options.get("where")).items()},
        "column": options["column"].text("column") if "column" in options else None,
        "split": options["split"].text("split") if "split" in options else None,
    }
    if given["seed"] is not None and not isinstance(given["seed"], int):
        raise options["seed"].wrong(f"seed must be an integer or null, not {given['seed']!r}")
    try:
        found = load_prompts(name, **given)
    except BadInput as error:
        raise source.wrong(error) from error
    said = {key: value for key, value in given.items() if value not in (None, {})}
    return found, {"source": source.text("prompts"), **said, "count": len(found)}
