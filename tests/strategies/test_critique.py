"""Critique: what the critic is shown, which prompts refinements are made with, and which images it continues from."""

from __future__ import annotations

import base64
import io
from collections import Counter
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lotts_search import BadInput, SearchResult, search
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.rewriters.chat import ChatRewriter
from lotts_search.rewriters.runner import RewriteRunner
from lotts_search.strategies.critique import Critique
from lotts_search.strategies.resampling import Resampling
from lotts_search.testing import AnalyticPool
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.work.requests import Result, Rewrite, Segment, Work
from tests.serving import completion, serving

# On the analytic model a sample costs 8 NFE, a localization 1 and a refinement 5; its rewriter numbers the prompt.


class TestCritique(StrategyConformance):
    uses_time = True

    def strategy(self) -> Strategy:
        return Critique()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.localize() + costs.refine()


def run(strategy: Strategy, **arguments: Any) -> tuple[SearchResult, list[Work]]:
    with AnalyticPool() as pool:
        return search("red star", strategy=strategy, pool=pool, **arguments), pool.asked


def test_each_image_is_refined_with_its_revised_prompts_until_one_is_better() -> None:
    """The rule, applied again to the scores of the trial table."""
    result, asked = run(Critique(prompts=3), nfe=300)
    rows = {t.trial_id: t for t in result.trials}
    prompts = {work.lineage: work.sampling.prompt for work in asked if isinstance(work, Segment)}
    located = [t.parent_id for t in result.trials if t.kind == "localize"]
    assert located == [t.parent_id for t in result.trials if t.kind == "rewrite"] and len(set(located)) == len(located)
    better = 0
    for place, key in enumerate(located):
        refined = [t for t in result.trials if t.kind == "refine" and t.parent_id == key]
        assert [prompts[t.lineage] for t in refined] == [f"red star, version {1 + n % 3}" for n in range(len(refined))]
        gains = [(t.score or 0.0) > (rows[key].score or 0.0) for t in refined]
        last = place == len(located) - 1
        assert last or gains[-1] or len(refined) == 3
        assert not any(gains[:-1]) and (last or len(refined) <= 3)
        if not last:
            following = rows[located[place + 1]]
            assert following.kind == "sample" if not gains[-1] else following.trial_id == refined[-1].trial_id
        better += gains[-1]
    assert better > 5 and sum(t.kind == "sample" for t in result.trials) > 3


def test_what_does_not_pay_for_another_image_goes_into_further_refinements() -> None:
    result, asked = run(Critique(prompts=1), nfe=8 + 1 + 5 + 5 + 5 - 0.5, seed=5)
    assert Counter(t.kind for t in result.trials)["sample"] == 1 and result.ledger.nfe > 8 + 1 + 5 + 4
    refined = [work for work in asked if isinstance(work, Segment) and work.renoise is not None]
    assert len({work.lineage for work in refined}) == len(refined)


def test_a_given_image_is_refined_to_the_end() -> None:
    plain, _ = run(Resampling(), nfe=8)
    result, _ = run(Critique(), nfe=40, image=plain.image)
    kinds = Counter(t.kind for t in result.trials)
    assert kinds["encode"] == 1 and kinds["sample"] == 0 and result.ledger.nfe > 40 - 6


class Criticised(AnalyticPool):
    """The analytic model with a rewriter behind an endpoint."""

    def __init__(self, url: str):
        super().__init__()
        self.runner = RewriteRunner(ChatRewriter(url, model="critic", retries=0))

    def submit(self, work: Work) -> Future[Result]:
        return self.runner.submit(work) if isinstance(work, Rewrite) else super().submit(work)

    def close(self) -> None:
        self.runner.close()
        super().close()


def test_a_model_behind_an_endpoint_sees_the_image_and_its_prompts_are_used() -> None:
    def critic(asked: Any) -> Any:
        return completion({"prompts": ["a vivid red star", "one red star"]})

    with serving(critic) as server, Criticised(server.url) as pool:
        result = search("red star", strategy=Critique(), pool=pool, nfe=60)
    rewritten = [t for t in result.trials if t.kind == "rewrite"]
    assert len(server.requests) == len(rewritten) > 1
    for asked, row in zip(server.requests, rewritten, strict=True):
        text, image = asked["messages"][1]["content"]
        assert "The prompt: red star\n" in text["text"] and "2 revised prompts" in text["text"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), result.images[row.parent_id or ""])
        assert row.prompts == ("a vivid red star", "one red star")
    made = [work.sampling.prompt for work in pool.asked if isinstance(work, Segment) and work.renoise is not None]
    assert set(made) == {"a vivid red star", "one red star"}
    sampled = [work.sampling.prompt for work in pool.asked if isinstance(work, Segment) and work.noise is not None]
    assert set(sampled) == {"red star"}


def test_without_a_critic_images_are_refined_under_the_original_prompt() -> None:
    with serving(lambda asked: 500) as server, Criticised(server.url) as pool:
        result = search("red star", strategy=Critique(prompts=1), pool=pool, nfe=60)
    assert result.ledger.fallbacks == result.ledger.rewrites > 0 and result.ledger.nfe > 54
    assert {work.sampling.prompt for work in pool.asked if isinstance(work, Segment)} == {"red star"}


def test_refinements_under_other_prompts_are_other_trials() -> None:
    result, _ = run(Critique(prompts=4), nfe=200)
    keys = [t.trial_id for t in result.trials if t.kind == "refine"]
    assert len(set(keys)) == len(keys) and all(a != b for a, b in pairwise(keys))
    with pytest.raises(BadInput, match=r"prompts must be within 1\.\.100, not 0"):
        Critique(prompts=0)
    with pytest.raises(BadInput, match=r"prompts must be within 1\.\.100, not 101"):
        Critique(prompts=101)
