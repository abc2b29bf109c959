"""Recorded network calls, and the engine on a CUDA device: bits and neighbours as on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.cuda_graphs import RecordedNetwork, _clone, _tensors
from lotts_search.engine.engine import Engine
from lotts_search.errors import Failure
from lotts_search.work.masks import AttentionMask, ErrorContrastMask
from lotts_search.work.prices import Prices
from lotts_search.work.requests import Locate, Predict, Region, Sampling, Segment, State
from tests.tiny import backbone_of, run, sample, tiny_backbone, tiny_pipeline

RED = Sampling("a red circle", 6, 4.0)
BLUE = Sampling("a blue star on the left", 8, 1.0)


@dataclass(frozen=True)
class Text:
    states: torch.Tensor
    weight: torch.Tensor | None
    more: Any = ()


def test_the_tensors_of_a_conditioning_are_found_and_copied() -> None:
    one, two = torch.arange(3.0), torch.arange(2.0)
    text = Text(one, None, {"a": [two]})
    assert list(_tensors(text)) == [one, two]
    assert list(_tensors((one, "words"))) == [one, None]
    twin = _clone(text)
    assert torch.equal(twin.states, one) and twin.weight is None and torch.equal(twin.more["a"][0], two)
    assert {part.data_ptr() for part in _tensors(twin)}.isdisjoint(part.data_ptr() for part in (one, two))


def test_a_call_that_cannot_be_recorded_is_made() -> None:
    class Plain:
        info = replace(tiny_backbone().info, prices=Prices(row=1.0))

        def predict(self, latents: Any, timesteps: Any, conditioning: Any) -> Any:
            return latents + len(conditioning[1])

    replay = RecordedNetwork(Plain())  # type: ignore[arg-type]
    latents = torch.zeros(2, 4, 8, 8)
    for words in ("a", "abc"):
        assert float(replay.predict(latents, torch.zeros(2), (latents, words)).mean()) == len(words)


@pytest.fixture(scope="module")
def on_gpu() -> StableDiffusion:
    pipeline = tiny_pipeline()
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.to("cuda")
    return backbone_of(pipeline)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_work_together_equals_each_alone_on_the_device(on_gpu: StableDiffusion, graphs: bool) -> None:
    (first,) = run(Engine(on_gpu, 8, graphs=graphs), sample(11, RED))
    (near,) = run(Engine(tiny_backbone(), 8), sample(11, RED))
    assert first.state is not None and near.state is not None
    assert np.abs(first.state.latent - near.state.latent).max() < 0.05 * np.abs(near.state.latent).max()
    mask = np.random.default_rng(0).random((8, 8)) < 0.4
    region = Region(mask, first.state.latent, ("seed 11", "refine@2 0"), 1, background="fresh")
    works: list[Any] = [
        sample(0, RED),
        sample(1, BLUE),
        sample(2, BLUE, stop=5),
        Segment(1, RED, region.lineage, 6, state=first.state, renoise=2, region=region),
        Segment(1, BLUE, region.lineage, 5, state=first.state, renoise=2, region=replace(region, background="fixed")),
        Predict(State(first.state.latent, 3, 6), RED),
        *(Locate(seed, (), first.state, RED, ErrorContrastMask(levels=(200, 600))) for seed in range(3)),
        *(Locate(seed, (), first.state, RED, AttentionMask(level=300, noised=True)) for seed in range(3)),
        *(sample(seed, RED) for seed in range(20, 40)),
    ]
    together = run(Engine(on_gpu, 8, graphs=graphs), *works)
    for work, result in zip(works, together, strict=True):
        (alone,) = run(Engine(on_gpu, 8, graphs=graphs), work)
        assert result.usage.device_s > 0
        if alone.state is not None and result.state is not None:
            assert np.array_equal(alone.state.latent, result.state.latent)
        if alone.image is not None:
            assert np.array_equal(alone.image, result.image)  # type: ignore[arg-type]
        if alone.located is not None and result.located is not None:
            assert np.array_equal(alone.located.mask, result.located.mask)


@pytest.mark.gpu
def test_a_broken_latent_fails_alone_on_the_device(on_gpu: StableDiffusion) -> None:
    bad = State(np.full((4, 8, 8), np.nan, np.float32), 6, 6)
    engine = Engine(on_gpu, 8)
    futures = [engine.submit(work) for work in (sample(0, RED), Segment(1, RED, (), 6, state=bad, renoise=2))]
    while engine.tick():
        pass
    with pytest.raises(Failure, match="NaN or infinite at step 2 of 6"):
        futures[1].result()
    (alone,) = run(Engine(on_gpu, 8), sample(0, RED))
    assert np.array_equal(futures[0].result().image, alone.image)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_recorded_calls_equal_the_calls(on_gpu: StableDiffusion) -> None:
    replay = RecordedNetwork(on_gpu)
    texts = on_gpu.encode_prompts(["a red circle", "a blue star"])
    for number in range(3):
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(number)).cuda()
        times = torch.tensor([100.0, 900.0 - number], device="cuda")
        text = on_gpu.stack(texts if number % 2 else texts[::-1])
        with torch.inference_mode():
            got = replay.predict(latents, times, text).clone()
        assert torch.equal(got, on_gpu.predict(latents, times, text))
