"""Reading the YAML file of a study, which ``docs/study.md`` describes."""

from __future__ import annotations

import itertools
import json
import math
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lotts_search import registry
from lotts_search.backbones.load_options import LoadOptions
from lotts_search.core.strategy import Strategy
from lotts_search.errors import BadInput, unknown
from lotts_search.study.metrics import columns_of
from lotts_search.study.prompts import Prompt, load_prompts, prompt_file, sample, texts
from lotts_search.study.spec import Keep, Limit, ModelEntry, StrategyEntry, Study
from lotts_search.study.yaml_file import YamlNode, open_yaml
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.work.prices import PUBLISHED
from lotts_search.work.requests import MOST_STEPS, Solver

SAMPLING: dict[str, Callable[[YamlNode], object]] = {
    "steps": lambda node: node.integer("steps", 1, MOST_STEPS),
    "guidance": lambda node: node.number("guidance"),
    "negative": lambda node: "" if node.plain() in (None, "") else node.text("negative"),
    "eta": lambda node: node.number("eta", 0),
    "solver": lambda node: node.choice("solver", typing.get_args(Solver)),
}
LIMITS: dict[str, Callable[[YamlNode], Any]] = {
    "nfe": lambda node: node.number("nfe", 0),
    "images": lambda node: node.integer("images", 1),
    "flops": lambda node: node.number("flops", 0),
}
KEYS = (
    "name", "model", "models", "strategies", "prompts", "seeds", "budgets", "seconds", "verifier", "metrics", "judge",
    "baselines", "workers", "images", "at-once", "place", "rewriter", "as", *SAMPLING,
)  # fmt: skip
MOST_LABELS = 10_000
"""Most strategies of a study, with all combinations of its grids."""
MOST_SEARCHES = 1_000_000
"""Most searches of a study: a study is planned as a whole before it begins."""
RENAMED = {"guide": "verifier"}
"""New names of keys by their old ones, which still work."""


def read_study(path: Path) -> Study:
    """Read and check the file of a study, and fetch its prompts.

    Raises:
        BadInput: something in it is wrong; the message names the file and the line.
        Failure: prompts cannot be fetched.
    """
    root = open_yaml(path)
    keys = root.table("a study", KEYS, RENAMED)
    given = root.plain()
    renamed = [f"{keys[new].where}: {old!r} is now called {new!r}" for old, new in RENAMED.items() if old in given]
    for needed in ("strategies", "prompts", "budgets"):
        if needed not in keys:
            raise root.wrong(f"a study needs {needed!r}")
    sampling = {name: read(keys[name]) for name, read in SAMPLING.items() if name in keys}
    guided = list(_guided(root, _models(root, keys, sampling)))
    models = tuple(model for model, _ in guided)
    limits = tuple(_limits(keys["budgets"]))
    prompts, source = _prompts(keys["prompts"], path.parent)
    for model, node in guided:
        _check_judging(node, model.verifier, prompts, [model])
    metrics = _metrics(keys["metrics"], prompts, models) if "metrics" in keys else ()
    strategies = tuple(_strategies(keys["strategies"], limits))
    rewriter, writing = _rewriter(keys["rewriter"]) if "rewriter" in keys else ("", {})
    if not rewriter and any(entry.strategy.rewrites for entry in strategies):
        rewriter = _default(root, "rewriter", models, registry.default_rewriter)
    seeds = tuple(_seeds(keys["seeds"])) if "seeds" in keys else (0,)
    most = len(models) * len(prompts) * len(seeds) * sum(len(entry.limits) for entry in strategies)
    if most > MOST_SEARCHES:
        raise root.wrong(
            f"{len(models)} models with their verifiers × {len(strategies)} strategies with their budgets × "
            f"{len(prompts):,} prompts × {len(seeds):,} seeds are {most:,} searches: divide them into studies of at most {MOST_SEARCHES:,}"
        )
    return Study(
        name=_name(keys["name"]) if "name" in keys else path.stem,
        path=path,
        models=models,
        strategies=strategies,
        limits=limits,
        prompts=tuple(prompts),
        source=source,
        seeds=seeds,
        metrics=metrics,
        judged=typing.cast(Any, keys["judge"].choice("judge", ("all", "best")) if "judge" in keys else "all"),
        baselines=tuple(_baselines(keys["baselines"], strategies)) if "baselines" in keys else (),
        seconds=keys["seconds"].number("seconds", 0) if "seconds" in keys else None,
        workers=keys["workers"].integer("workers", 1, 2**31 - 1) if "workers" in keys else 8,
        keep=typing.cast(Keep, keys["images"].choice("images", typing.get_args(Keep)) if "images" in keys else "best"),
        rewriter=rewriter,
        writing=writing,
        at_once=keys["at-once"].integer("at-once", 1) if "at-once" in keys else None,
        place=_place(keys["place"]) if "place" in keys else {},
        renamed=tuple(renamed),
    )


def _place(node: YamlNode) -> dict[str, str]:
    """Return what actors take as texts of ``--place``, with the file and line of each."""
    found = {}
    for name, value in node.table("place").items():
        given = value.plain()
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise value.wrong(f"{name} of place must be a number or a text, not {given!r}")
        found[f"{name}={given}"] = value.where
    return found


def _name(node: YamlNode) -> str:
    name = node.text("name")
    if "/" in name or name.startswith("."):
        raise node.wrong(f"name is also the name of a folder: {name!r} cannot be one")
    return name


def _verifier(node: YamlNode, guiding: bool) -> str:
    """Read a verifier, or a metric if it does not guide: a text, or a table of its name and settings."""
    try:
        spec = VerifierSpec.of(node.plain())
        _check_verifier(spec, guiding)
    except BadInput as error:
        raise node.wrong(error) from error
    return str(spec)


def _check_verifier(spec: VerifierSpec, guiding: bool) -> None:
    """Refuse an unknown or unfit verifier or metric, wrong settings, and such verifiers among those that it combines."""
    known = {**registry.verifiers(), **({} if guiding else registry.metrics())}
    if guiding and registry.metric_class(spec.name) is not None:
        raise BadInput(f"{spec.name} is held out: it may be a metric, never the verifier")
    if ":" not in spec.name and spec.name not in known:
        raise unknown("verifier", spec.name, known)
    if spec.settings:
        registry.check_verifier(str(spec))
    for part in spec.parts:
        _check_verifier(VerifierSpec.parse(part), guiding=True)


def _default(
    root: YamlNode, kind: str, models: Sequence[ModelEntry], named_by: Callable[[str, str | None], str]
) -> str:
    """Return the verifier or rewriter that the models themselves name, which must be the same for all."""
    try:
        named = {model.label: named_by(model.model, model.options.get("revision")) for model in models}
    except BadInput as error:
        raise root.wrong(error) from error
    if len(set(named.values())) > 1:
        each = ", ".join(f"{label} names {name}" for label, name in named.items())
        raise root.wrong(f"the models name several {kind}s: give {kind!r}, because {each}")
    return named[models[0].label]


def _metrics(node: YamlNode, prompts: Sequence[Prompt], models: Sequence[ModelEntry]) -> tuple[str, ...]:
    names: list[str] = []
    filled: dict[str, str] = {}
    for item in node.items("metrics") if not (node.is_list and node.plain() == []) else []:
        name = _verifier(item, guiding=False)
        if name in {model.verifier for model in models}:
            raise item.wrong(f"{name} guides the searches: its scores are in the column score")
        if name in names:
            raise item.wrong(f"the metric {name} is duplicated")
        _check_judging(item, name, prompts, models)
        try:
            columns = columns_of([name])
        except BadInput as error:
            raise item.wrong(error) from error
        for column in columns:
            if column in filled:
                raise item.wrong(
                    f"{name} and {filled[column]} both fill the column metric_{column}: rename one of them"
                )
            filled[column] = name
        names.append(name)
    return tuple(names)


def _check_judging(node: YamlNode, name: str, prompts: Sequence[Prompt], models: Sequence[ModelEntry]) -> None:
    sizes = [(model.model, model.options) for model in models]
    try:
        registry.check_judging(name, [prompt.text for prompt in prompts], sizes)
    except BadInput as error:
        raise node.wrong(error) from error


def _baselines(node: YamlNode, strategies: Sequence[StrategyEntry]) -> list[str]:
    return [item.choice("baseline", [entry.label for entry in strategies]) for item in node.items("baselines")]


def _rewriter(node: YamlNode) -> tuple[str, dict[str, Any]]:
    """Return the name of the rewriter and its settings."""
    parts = node.table("rewriter", ("name", "settings")) if node.is_table else {"name": node}
    if "name" not in parts:
        raise node.wrong("a rewriter needs the key 'name'")
    settings = {key: value.plain() for key, value in _table(parts.get("settings")).items()}
    try:
        registry.load_rewriter(parts["name"].text("rewriter"), settings)
    except BadInput as error:
        raise parts["name"].wrong(error) from error
    return parts["name"].text("rewriter"), settings


def _models(
    root: YamlNode, keys: Mapping[str, YamlNode], sampling: Mapping[str, Any]
) -> list[tuple[ModelEntry, YamlNode | None]]:
    """Return the models, and where the verifiers of each are named, if anywhere."""
    if "model" in keys and "models" in keys:
        raise keys["model"].wrong("give either 'model' or 'models'")
    node = keys.get("models") or keys.get("model")
    if node is None:
        return [(ModelEntry("shapes-sd", "shapes-sd", {}, dict(sampling), _priced_as(keys)), keys.get("verifier"))]
    found: list[tuple[ModelEntry, YamlNode | None]] = []
    for item in node.items("models"):
        options: dict[str, Any] = {}
        own = dict(sampling)
        if item.is_table:
            parts = item.table("a model", ("model", "label", "options", "as", "verifier", *SAMPLING))
            if "model" not in parts:
                raise item.wrong("a model needs the key 'model': a name, a folder or a hub id")
            where, label = parts["model"], parts["label"].text("label") if "label" in parts else None
            options = {name: value.plain() for name, value in _table(parts.get("options")).items()}
            try:
                LoadOptions.of(options)
            except BadInput as error:
                raise parts["options"].wrong(error) from error
            own |= {name: read(parts[name]) for name, read in SAMPLING.items() if name in parts}
        else:
            where, label, parts = item, None, {}
        model = where.text("a model")
        try:
            registry.check_model(model)
        except BadInput as error:
            raise where.wrong(error) from error
        label = label or (model if model in registry.models() else Path(model).name)
        if label in {other.label for other, _ in found}:
            raise where.wrong(f"two models have the label {label!r}: give one of them another 'label'")
        entry = ModelEntry(label, model, options, own, _priced_as(parts) or _priced_as(keys))
        found.append((entry, parts.get("verifier", keys.get("verifier"))))
    return found


def _guided(
    root: YamlNode, named: Sequence[tuple[ModelEntry, YamlNode | None]]
) -> Iterator[tuple[ModelEntry, YamlNode]]:
    """Yield each model once for every verifier that guides its searches, and where that is named. Those for which none is
    named have the one that they name themselves."""
    unnamed = [model for model, node in named if node is None]
    default = _default(root, "verifier", unnamed, registry.default_verifier) if unnamed else ""
    labels = {model.label for model, _ in named}
    for model, node in named:
        if node is None:
            yield replace(model, verifier=default), root
            continue
        items = node.items("verifier")
        found: set[str] = set()
        for item in items:
            name = _verifier(item, guiding=True)
            if name in found:
                raise item.wrong(f"the verifier {name} is duplicated")
            found.add(name)
            label = model.label if len(items) == 1 else f"{model.label}, {name}"
            if len(items) > 1 and label in labels:
                raise item.wrong(f"two models have the label {label!r}: give one of them another 'label'")
            yield replace(model, label=label, verifier=name), item


def _priced_as(parts: Mapping[str, YamlNode]) -> str | None:
    return parts["as"].choice("as", sorted(PUBLISHED)) if "as" in parts else None


def _table(node: YamlNode | None) -> dict[str, YamlNode]:
    return node.table("options") if node is not None else {}


def _strategies(node: YamlNode, limits: tuple[Limit, ...]) -> list[StrategyEntry]:
    found: dict[str, StrategyEntry] = {}
    for item in node.items("strategies"):
        for entry in _expanded(item, limits):
            if entry.label in found:
                raise item.wrong(f"two strategies have the label {entry.label!r}: give one of them another 'label'")
            found[entry.label] = entry
        if len(found) > MOST_LABELS:
            raise item.wrong(f"a study has at most {MOST_LABELS:,} strategies")
    return list(found.values())


def _expanded(item: YamlNode, limits: tuple[Limit, ...]) -> list[StrategyEntry]:
    """Return the strategies of one item: one for each combination of its grid."""
    if not item.is_table:
        parts: dict[str, YamlNode] = {"strategy": item}
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
    combinations = math.prod(len(values) for values in grid.values())
    if combinations > MOST_LABELS:
        raise parts["grid"].wrong(
            f"the grid has {combinations:,} combinations; a study has at most {MOST_LABELS:,} strategies"
        )
    own = tuple(_limits(parts["budgets"])) if "budgets" in parts else limits
    nested = parts["nested"].flag("nested") if "nested" in parts else None
    label = parts["label"].text("label") if "label" in parts else None
    found = []
    for point in itertools.product(*grid.values()):
        chosen = dict(zip(grid, point, strict=True))
        strategy = _strategy(item, name, fixed | chosen)
        settings = {key: value.plain() for key, value in (fixed | chosen).items()}
        shown = _label(label, name, settings, list(chosen))
        found.append(StrategyEntry(shown, name, strategy, own, strategy.nested if nested is None else nested))
    return found


def _strategy(item: YamlNode, name: str, settings: Mapping[str, YamlNode]) -> Strategy:
    for key, value in settings.items():
        try:  # one by one, so that the message names the line of the setting
            registry.make_strategy(name, {key: value.plain()})
        except BadInput as error:
            if key in str(error):  # otherwise it is about another setting that this one needs
                raise value.wrong(error) from error
    try:
        return registry.make_strategy(name, {key: value.plain() for key, value in settings.items()})
    except BadInput as error:
        raise item.wrong(error) from error


def _label(label: str | None, name: str, settings: Mapping[str, Any], varied: list[str]) -> str:
    """Return ``label`` with every ``{setting}`` filled in, and the settings of the grid that it does not show."""
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


def _limits(node: YamlNode) -> list[Limit]:
    found: list[Limit] = []
    for item in node.items("budgets") if node.is_list else [node]:
        parts = item.table("budgets", ("nfe", "images", "flops", "samples"))
        if not parts:
            raise item.wrong("a budget needs 'nfe', 'images', 'flops' or 'samples'")
        given = {name: parts[name].items(name) for name in LIMITS if name in parts}
        if node.is_list and len(given) > 1 and all(len(values) == 1 for values in given.values()):
            whole: dict[str, Any] = {name: LIMITS[name](value) for name, (value,) in given.items()}
            found.append(Limit(**whole, line=item.line))  # all limits at once
        else:
            for name, values in given.items():
                found += [Limit(**{name: LIMITS[name](value)}, line=value.line) for value in values]
        for part in parts["samples"].items("samples") if "samples" in parts else []:
            found.append(Limit(samples=part.number("samples", 1), line=part.line))
    for limit, times in Counter(found).items():
        if times > 1:
            raise node.wrong(f"the budget of {limit} is given {times} times")
    return found


def _seeds(node: YamlNode) -> list[int]:
    if not node.is_list:
        count = node.integer("the number of seeds", 1)
        if count > MOST_SEARCHES:
            raise node.wrong(f"the number of seeds is at most {MOST_SEARCHES:,}, not {count:,}")
        return list(range(count))
    seeds = [item.integer("a seed", -(2**63)) for item in node.items("seeds")]
    if max(seeds) >= 2**63:
        raise node.wrong(f"a seed must be below 2^63, not {max(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise node.wrong(f"a seed is duplicated: {seeds}")
    return seeds


def _prompts(node: YamlNode, folder: Path) -> tuple[list[Prompt], dict[str, Any]]:
    """Return the prompts, and their description for ``study.json``."""
    if node.is_list:
        found = texts(item.text("a prompt") for item in node.items("prompts"))
        return found, {"source": "given", "count": len(found)}
    if not node.is_table:
        source, options = node, {}
    else:
        options = node.table("prompts", ("from", "count", "seed", "where", "column", "split", "texts"))
        if "texts" in options:
            for unused in options.keys() - {"texts", "count", "seed"}:
                raise options[unused].wrong(f"{unused!r} would not be used: the prompts are the 'texts'")
            found = texts(item.text("a prompt") for item in options["texts"].items("texts"))
            count = options["count"].integer("count", 1) if "count" in options else None
            seed = options["seed"].integer("seed") if "seed" in options else None
            found = sample(found, count, seed)
            return found, {"source": "given", "count": len(found), "seed": seed}
        if "from" not in options:
            raise node.wrong("prompts need 'from': a set or a file; or 'texts'")
        source = options["from"]
    name = source.text("prompts")
    name = str(prompt_file(name, folder) or name)
    seed = 0
    if "seed" in options:
        seed = None if options["seed"].plain() is None else options["seed"].integer("seed")
    given: dict[str, Any] = {
        "count": options["count"].integer("count", 1) if "count" in options else None,
        "seed": seed,
        "where": {key: value.plain() for key, value in _table(options.get("where")).items()},
        "column": options["column"].text("column") if "column" in options else None,
        "split": options["split"].text("split") if "split" in options else None,
    }
    try:
        found = load_prompts(name, **given)
    except BadInput as error:
        raise source.wrong(error) from error
    said = {key: value for key, value in given.items() if value not in (None, {})}
    return found, {"source": source.text("prompts"), **said, "count": len(found)}
