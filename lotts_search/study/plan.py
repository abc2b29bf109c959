"""From a study to its searches: which there are, what names them, and what they will cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from lotts_search.core.budget import Costs
from lotts_search.core.trial_table import image_hash
from lotts_search.errors import BadInput
from lotts_search.study.model_files import costs_of, fingerprint, verifier_fingerprint
from lotts_search.study.prompts import Prompt
from lotts_search.study.spec import Entrant, Limit, ModelEntry, Study

FORMAT = 1
"""Counts up when the same arguments begin to mean another search."""


@dataclass(frozen=True)
class Task:
    """One search of a study.

    Attributes:
        number: its place in the study: by model, prompt, seed, strategy, budget.
        search_id: the hash of everything that decides it.
        seed: of the study.
        search_seed: of the search: each prompt has its own, so that prompts are independent; strategies and budgets
            share it.
        nfe, images: what it will cost; ``longest``: NFE of its mean trial. None where only the loaded model can tell.
    """

    number: int
    search_id: str
    model: ModelEntry
    entrant: Entrant
    prompt: Prompt
    seed: int
    search_seed: int
    limit: Limit
    nfe: float | None
    images: int | None
    longest: float = 0.0

    @property
    def image(self) -> bool:
        """Whether it begins from the prompt's image."""
        return self.prompt.image is not None and self.entrant.strategy.takes_image


def tasks_of(study: Study) -> list[Task]:
    """The searches of a study, in its order.

    Raises:
        BadInput: a budget does not pay for the first image of a strategy.
    """
    found: list[Task] = []
    for model in study.models:
        costs = costs_of(model)
        limits = {entrant.label: _limits(study, model, entrant, costs) for entrant in study.entrants}
        estimates = {
            (entrant.label, limit): estimate(entrant, limit, costs)
            for entrant in study.entrants
            for limit in limits[entrant.label]
        }
        for prompt in study.prompts:
            for seed in study.seeds:
                for entrant in study.entrants:
                    for limit in limits[entrant.label]:
                        search_seed = seed_of(seed, prompt)
                        name = _name(study, model, entrant, prompt, search_seed, limit)
                        nfe, images, longest = estimates[entrant.label, limit]
                        found.append(
                            Task(
                                len(found), name, model, entrant, prompt, seed, search_seed, limit, nfe, images, longest
                            )
                        )
    return found


def seed_of(seed: int, prompt: Prompt) -> int:
    """The seed of a prompt's searches: 0..2³¹−1."""
    return int.from_bytes(blake2b(f"{seed} {prompt.text}".encode(), digest_size=4).digest()) >> 1


def estimate(entrant: Entrant, limit: Limit, costs: Costs | None) -> tuple[float | None, int | None, float]:
    """NFE and images that a search is going to take, and the NFE of its mean trial."""
    if costs is None:
        return limit.nfe, limit.images, limit.nfe or 0.0
    budget = limit.budget
    most = (budget.count(costs.sample) or 0) * costs.sample.nfe if limit.nfe is None else limit.nfe
    try:
        plan = entrant.strategy.plan(budget, costs)
    except (BadInput, NotImplementedError):
        return most, limit.images, most
    made = sum(count for kind, count in plan.trials.items() if kind not in ("localize", "score", "rewrite"))
    return plan.nfe, made, plan.nfe / max(1, sum(plan.trials.values()))


def longest_first(tasks: Iterable[Task], at_once: int) -> list[Task]:
    """The order in which searches begin: prompt by prompt, so that a study that is stopped has whole prompts; but those
    that will be under way at the end begin with the longest, so that no generator waits for one late search."""
    ordered = list(tasks)
    end = max(0, len(ordered) - 2 * at_once)
    last = sorted(ordered[end:], key=lambda task: (-task.longest, -(task.nfe or 0.0), task.number))
    return ordered[:end] + last


def _limits(study: Study, model: ModelEntry, entrant: Entrant, costs: Costs | None) -> list[Limit]:
    """The budgets at which a strategy is run on a model: of a nested one the largest alone."""
    if costs is not None:
        least = entrant.strategy.least(costs)
        for limit in entrant.limits:
            if not limit.budget.pays(least):
                raise BadInput(
                    f"{study.path}, line {limit.line}: a budget of {limit} does not pay for the first image of "
                    f"{entrant.label} on {model.label}, which costs {least.nfe:g} NFE"
                )
    if not entrant.nested or len(entrant.limits) == 1:
        return list(entrant.limits)
    if costs is not None:
        return [max(entrant.limits, key=lambda limit: limit.budget.count(costs.sample) or 0)]
    # Without a price NFE and images cannot be compared: the largest of each.
    by_unit = {(limit.nfe is None, limit.images is None): limit for limit in sorted(entrant.limits, key=_size)}
    return list(by_unit.values())


def _size(limit: Limit) -> tuple[float, int]:
    return limit.nfe or 0.0, limit.images or 0


def _name(study: Study, model: ModelEntry, entrant: Entrant, prompt: Prompt, search_seed: int, limit: Limit) -> str:
    image = image_hash(prompt.image) if prompt.image is not None and entrant.strategy.takes_image else None
    parts = [
        FORMAT, model.model, fingerprint(model.model), model.options, model.sampling, entrant.name, entrant.arguments,
        study.guide, verifier_fingerprint(study.guide), prompt.text, image, search_seed, limit.nfe, limit.images, study.workers,
    ]  # fmt: skip
    if entrant.strategy.rewrites:
        parts += [study.rewriter, study.writing]
    return blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
