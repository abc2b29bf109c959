"""The block for Modular Diffusers, in pipelines that the installed diffusers builds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import (
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from lotts_search import BadInput, SearchPipeline, search
from lotts_search.integrations.blocks import PASSED, SearchBlock
from lotts_search.integrations.pipeline import ARGUMENTS
from lotts_search.testing import AnalyticPool

PROMPT = "red star"


@pytest.fixture
def pool() -> Iterator[AnalyticPool]:
    with AnalyticPool(shuffle=1) as made:
        yield made


def alone(prompt: str = PROMPT, **arguments: Any) -> Any:
    with AnalyticPool() as pool:
        return search(prompt, pool=pool, **arguments)


def made(blocks: Any, pool: AnalyticPool, **options: Any) -> ModularPipeline:
    pipeline = blocks.init_pipeline()
    pipeline.update_components(search=SearchPipeline(pool, **options))
    return pipeline


def test_a_pipeline_of_the_block_searches(pool: AnalyticPool) -> None:
    pipeline = made(SearchBlock(), pool, strategy="best-of-n")
    assert isinstance(pipeline, ModularPipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # diffusers warns of inputs that no block takes
        state = pipeline(prompt=PROMPT, negative_prompt="blue", seed=3, budget=2, guidance_scale=2.0,
                         num_inference_steps=4, num_images_per_prompt=2)  # fmt: skip
    for number, result in enumerate(state.results):
        other = alone(strategy="best-of-n", negative="blue", seed=3 + number, images=2, guidance=2.0, steps=4)
        assert np.array_equal(np.asarray(state.images[number]), other.image) and result.sampling == other.sampling
        assert result.ledger.images == 2
    images = pipeline(prompt=PROMPT, seed=1, nfe=20, output="images", output_type="np")
    assert np.array_equal((images[0] * 255).round().astype(np.uint8), alone(strategy="best-of-n", seed=1, nfe=20).image)


def test_a_generator_is_not_ignored(pool: AnalyticPool) -> None:
    generator = torch.Generator().manual_seed(7)
    (result,) = made(SearchBlock(), pool)(prompt=PROMPT, budget=1, generator=generator, output="results")
    assert result.seed == int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(7)))


class Wording(ModularPipelineBlocks):
    """A block of somebody else, before the search."""

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("subject", required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("prompt")]

    def __call__(self, components: Any, state: PipelineState) -> Any:
        block = self.get_block_state(state)
        block.prompt = f"red {block.subject}"
        self.set_block_state(state, block)
        return components, state


def test_it_follows_another_block(pool: AnalyticPool) -> None:
    blocks = SequentialPipelineBlocks.from_blocks_dict({"wording": Wording(), "search": SearchBlock()})
    state = made(blocks, pool)(subject="star", seed=2, budget=2)
    assert state.prompt == PROMPT and np.array_equal(np.asarray(state.images[0]), alone(seed=2, images=2).image)
    again = made(SearchBlock(), pool)(state=state, seed=3)
    assert again.results[0].budget.images == 2, "the budget of the state, not the images of the last search"


def test_it_documents_itself() -> None:
    block = SearchBlock()
    assert block.doc.count("TODO") == 0 and "SearchPipeline" in block.doc
    assert {one.name for one in block.inputs} == {*PASSED, "budget"} and set(PASSED) <= set(ARGUMENTS)


def test_what_is_missing_is_named(pool: AnalyticPool) -> None:
    with pytest.raises(BadInput, match=r"update_components\(search=SearchPipeline"):
        SearchBlock().init_pipeline()(prompt=PROMPT)
    with pytest.raises(ValueError, match="Required input 'prompt' is missing"):
        made(SearchBlock(), pool)(seed=1)
    with pytest.raises(BadInput, match="does not pay for one sample"):
        made(SearchBlock(), pool)(prompt=PROMPT, nfe=1)
