"""The searches of a study: which there are, their ids, and their estimated costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from lotts_search import fingerprint, registry
from lotts_search.core.costs import Costs
from lotts_search.core.trial_table import image_hash
from lotts_search.errors import BadInput
from lotts_search.study.model_files import check_settings, costs_of, folder_of
from lotts_search.study.prompts import Prompt
from lotts_search.study.spec import Limit, ModelEntry, StrategyEntry, Study


class Estimate(NamedTuple):
    """What a search is expected to cost; None where only the loaded model can tell.

    Attributes:
        nfe, images, flops: in all.
        longest: NFE of its mean trial.
    """

    nfe: float | None
    images: int | None
    flops: float | None
    longest: float = 0.0


@dataclass(frozen=True)
class Task:
    """One search of a study.

    Attributes:
        number: its position in the study: by model, prompt, seed, strategy, budget.
        search_id: the hash of all of its inputs.
        seed: the study's seed.
        search_seed: the search's own seed: different for every prompt, so that prompts are independent; shared by
            strategies and budgets.
        cost: estimated.
    """

    number: int
    search_id: str
    model: ModelEntry
    entry: StrategyEntry
    prompt: Prompt
    seed: int
    search_seed: int
    limit: Limit
    cost: Estimate

    @property
    def image(self) -> bool:
        """Whether the search starts from the prompt's image."""
        return self.prompt.image is not None and self.entry.strategy.takes_image


def tasks_of(study: Study) -> list[Task]:
    """Return the searches of a study, in its order.

    Raises:
        BadInput: a strategy's settings cannot work on a model, or a budget does not pay for its first image.
    """
    found: list[Task] = []
    for model in study.models:
        costs = costs_of(model)
        runs = [
            (entry, contents(study, model, entry), limit, estimate(entry, limit, costs))
            for entry in study.strategies
            for limit in _limits(study, model, entry, costs)
        ]
        for prompt in study.prompts:
            for seed in study.seeds:
                own = seed_of(seed, prompt)
                for entry, decided, limit, price in runs:
                    search_id = _name(study, model, entry, decided, prompt, own, limit)
                    found.append(Task(len(found), search_id, model, entry, prompt, seed, own, limit, price))
    return found


def seed_of(seed: int, prompt: Prompt) -> int:
    """Return the seed of a prompt's searches: 0..2³¹−1."""
    return int.from_bytes(blake2b(f"{seed} {prompt.text}".encode(), digest_size=4).digest()) >> 1


def estimate(entry: StrategyEntry, limit: Limit, costs: Costs | None) -> Estimate:
    """Return the expected cost of a search. Where the costs are not known, it is what its budget says."""
    if costs is None or (limit.flops is not None and not costs.prices.row):
        return Estimate(limit.nfe, limit.images, limit.flops, limit.nfe or 0.0)
    budget = limit.budget
    try:
        plan = entry.strategy.plan(budget, costs)
    except (BadInput, NotImplementedError):
        most = (budget.count(costs.sample) or 0) * costs.sample.nfe if limit.nfe is None else limit.nfe
        return Estimate(most, limit.images, limit.flops, most)
    flops = plan.flops if costs.prices.row else None
    return Estimate(plan.nfe, plan.images, flops, plan.nfe / max(1, sum(plan.trials.values())))


def longest_first(tasks: Iterable[Task], at_once: int) -> list[Task]:
    """Return the order in which searches start.

    It is prompt by prompt, so that a stopped study has whole prompts. The last searches start with the longest, so
    that no generator waits for one late search.
    """
    ordered = list(tasks)
    end = max(0, len(ordered) - 2 * at_once)
    last = sorted(ordered[end:], key=lambda task: (-task.cost.longest, -(task.cost.nfe or 0.0), task.number))
    return ordered[:end] + last


def limits_on(entry: StrategyEntry, model: ModelEntry) -> list[Limit]:
    """Return all budgets of a strategy on a model, those in samples converted to NFE."""
    costs = costs_of(model)
    return list(dict.fromkeys(limit.on(costs) for limit in entry.limits))


def _limits(study: Study, model: ModelEntry, entry: StrategyEntry, costs: Costs | None) -> list[Limit]:
    """Return the budgets at which a strategy is run on a model: for a nested one only the largest."""
    limits = limits_on(entry, model)
    for image in {prompt.image is not None and entry.strategy.takes_image for prompt in study.prompts}:
        try:
            check_settings(entry.strategy, entry.name, model, image)
        except BadInput as error:
            raise BadInput(f"{study.path}: {entry.label} on {model.label}: {error}") from error
    if costs is not None:
        least = entry.strategy.least(costs)
        for limit in limits:
            if not limit.budget.pays(least):
                raise BadInput(
                    f"{study.path}, line {limit.line}: a budget of {limit} does not pay for the first image of "
                    f"{entry.label} on {model.label}, which costs {limit.budget.words(least)}"
                )
    if not entry.nested or len(limits) == 1:
        return limits
    if costs is not None and (costs.prices.row or all(limit.flops is None for limit in limits)):
        return [max(limits, key=lambda limit: limit.budget.count(costs.sample) or 0)]
    # Without a price NFE, images and FLOPs cannot be compared: the largest of each.
    by_size = sorted(limits, key=lambda limit: (limit.nfe or 0.0, limit.images or 0, limit.flops or 0.0))
    return list({(limit.nfe is None, limit.images is None, limit.flops is None): limit for limit in by_size}.values())


def _name(
    study: Study,
    model: ModelEntry,
    entry: StrategyEntry,
    decided: Mapping[str, Any],
    prompt: Prompt,
    search_seed: int,
    limit: Limit,
) -> str:
    # Searches of a study may restart from noise; one of equal arguments that may not is another search.
    given = prompt.image if entry.strategy.takes_image else None
    image = None if given is None else [image_hash(given), "restart"]
    parts = [
        fingerprint.FORMAT, model.model, model.options, model.sampling, entry.name, entry.arguments, model.verifier, prompt.text, image,
        search_seed, limit.nfe, limit.images, study.workers, decided,
    ]  # fmt: skip
    if limit.flops is not None or model.priced_as is not None:
        parts += ["flops", limit.flops, model.priced_as]
    if entry.strategy.rewrites:
        parts += [study.rewriter, study.writing]
    return fingerprint.combined(parts)


def contents(study: Study, model: ModelEntry, entry: StrategyEntry) -> dict[str, Any]:
    """Return the fingerprints of all that decides a search beside its settings: model files, code, verifier, rewriter."""
    found: dict[str, Any] = {
        f"model {model.model}": fingerprint.of_model(
            model.model, model.options.get("revision"), folder_of(model.model)
        ),
        "load options": fingerprint.of_options(model.options),
        f"strategy {entry.name}": fingerprint.of_settings(entry.strategy),
        f"verifier {model.verifier}": registry.verifier_contents(model.verifier),
    }
    if entry.strategy.rewrites:
        rewriter = registry.load_rewriter(study.rewriter, study.writing)
        found[f"rewriter {study.rewriter}"] = fingerprint.of_settings(rewriter)
    return found


def unchecked(study: Study) -> list[str]:
    """Name what decides searches of a study and cannot be looked at, so that a change of it goes unnoticed."""
    found = [contents(study, model, entry) for model in study.models for entry in study.strategies]
    return sorted({name for parts in found for name, value in parts.items() if _has_unchecked(value)})


def _has_unchecked(value: object) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return any(part == fingerprint.UNCHECKED for part in values)
