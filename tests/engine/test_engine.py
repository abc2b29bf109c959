from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.engine import Engine
from lotts_search.engine.local_pool import LocalPool
from lotts_search.engine.prompt_stage import TEXT_BATCH
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.work.masks import AttentionMask, ErrorContrastMask, RandomMask, WholeMask
from lotts_search.work.prices import Prices
from lotts_search.work.requests import (
    Encode,
    Fresh,
    Generate,
    Locate,
    Predict,
    Region,
    Result,
    Sampling,
    Score,
    Segment,
    State,
    Usage,
)
from tests.tiny import run, sample, tiny_backbone

RED = Sampling("a red circle", 6, 4.0)
BLUE = Sampling("a blue star on the left", 8, 1.0)
GREEN = Sampling("green square", 5, 2.0, negative="bad quality", eta=0.5)


class Watched(StableDiffusion):
    """A backbone that counts calls and can be made to fail."""

    def __init__(self, backbone: StableDiffusion):
        vars(self).update(vars(backbone))
        self.rows: list[int] = []
        self.texts: list[list[str]] = []
        self.decoded: list[int] = []
        self.error: Exception | None = None
        self.poison = 0.0
        self.memory = 1000
        """Rows that fit into a call."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        self.rows.append(len(latents))
        if self.error is not None:
            raise self.error
        self._fit(len(latents))
        self._taste(latents)
        return super().predict(latents, timesteps, conditioning)

    def _fit(self, rows: int) -> None:
        if rows > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {rows} rows")

    def _taste(self, latents: Tensor) -> None:
        """Refuse a call in which one row is nothing but the poison."""
        if self.poison and bool((latents == self.poison).flatten(1).all(1).any()):
            raise RuntimeError("poisoned")

    def encode_prompts(self, prompts: list[str]) -> list[Tensor]:
        self.texts.append(prompts)
        if "poison" in prompts:
            raise RuntimeError("poisoned")
        return super().encode_prompts(prompts)

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        self.decoded.append(len(latents))
        self._fit(len(latents))
        self._taste(latents)
        return super().decode(latents)

    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        self._fit(len(images))
        return super().encode(images)


@pytest.fixture(scope="module")
def finished() -> State:
    (result,) = run(Engine(tiny_backbone(), 2), sample(11, RED))
    assert result.state is not None
    return result.state


def mixed_work(finished: State) -> list[Generate]:
    """Different prompts, steps, schedules, guidance, masks, searches and kinds."""
    rng = np.random.default_rng(0)
    mask = rng.random((8, 8)) < 0.4
    fixed = Region(mask, finished.latent, ("seed 11", "refine@2 0"), 1)
    fresh = replace(fixed, mask=~mask, integrate=2, background="fresh")
    (part,) = run(Engine(tiny_backbone(), 2), sample(4, GREEN, stop=2))
    assert part.state is not None
    return [
        sample(0, RED),
        sample(1, BLUE, search_seed=9),
        sample(2, GREEN, stop=3),
        Segment(1, RED, ("seed 11", "refine@2 0"), 6, state=finished, renoise=2, region=fixed),
        Segment(2, BLUE, ("seed 11", "refine@3 1"), 7, state=finished, renoise=3, region=fresh),
        Segment(1, GREEN, ("seed 4",), 5, state=part.state),
        Predict(part.state, GREEN),
        Locate(1, ("seed 11",), finished, RED, ErrorContrastMask(levels=(200, 600))),
        Locate(1, ("seed 11",), finished, RED, AttentionMask(level=300, noised=True)),
        Encode(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), 6),
    ]


def arrays(result: Result) -> list[npt.NDArray[Any]]:
    """Everything numerical of an answer."""
    found: list[npt.NDArray[Any]] = []
    if result.image is not None:
        found.append(result.image)
    if result.state is not None:
        parts = result.state.latent, result.state.previous, result.state.predicted, result.state.change
        found += [part for part in parts if part is not None]
    if result.located is not None:
        found += [result.located.heat, result.located.mask, *result.located.stages.values()]
    return found


@pytest.mark.parametrize("pad", [True, False])
def test_work_of_all_kinds_together_equals_each_alone(finished: State, pad: bool) -> None:
    works = mixed_work(finished)
    together = run(Engine(tiny_backbone(), 8, pad), *works)
    backwards = run(Engine(tiny_backbone(), 8, pad), *reversed(works))[::-1]
    for work, a, b in zip(works, together, backwards, strict=True):
        (alone,) = run(Engine(tiny_backbone(), 8, pad), work)
        assert len(arrays(alone)) > 0
        for want, first, second in zip(arrays(alone), arrays(a), arrays(b), strict=True):
            if pad:
                assert np.array_equal(want, first) and np.array_equal(want, second)
            elif want.dtype == np.float32:
                # Standardised and min-max normalised maps amplify rounding.
                limit = 1e-5 * max(1.0, float(np.abs(want).max())) if a.located is None else 1e-3
                assert np.abs(want - first).max() <= limit and np.abs(want - second).max() <= limit
            elif want.dtype == np.uint8:
                assert np.abs(want.astype(int) - first).max() <= 1


def test_calls_that_do_not_fit_into_memory_are_halved_and_the_results_are_the_same(finished: State) -> None:
    works = [*mixed_work(finished), *(sample(seed, BLUE) for seed in range(20, 26))]
    whole = run(Engine(tiny_backbone(), 8), *works)
    watched = Watched(tiny_backbone())
    watched.memory = 2
    with pytest.warns(Notice) as caught:
        parts = run(Engine(watched, 8, decode_batch=4), *works)
    assert watched.rows[:9] == [3, 2, 1, 8, 4, 2, 2, 2, 2]  # three rows of attention, and the first call for all
    assert set(watched.rows[9:]) == {2}
    assert sorted(str(each.message)[:33] for each in caught if each.category is Notice) == [
        "out of memory: the attention of t",
        "out of memory: the decoder of tin",
        "out of memory: the encoder of tin",
        "out of memory: the network of tin",
    ]
    for work, a, b in zip(works, whole, parts, strict=True):
        assert replace(a.usage, device_s=0) == replace(b.usage, device_s=0)
        for want, found in zip(arrays(a), arrays(b), strict=True):
            limit = 1 if want.dtype == np.uint8 else 1e-3 if isinstance(work, Locate) else 1e-5
            assert np.abs(want.astype(float) - found.astype(float)).max() <= limit * max(1.0, float(np.abs(want).max()))


def test_work_fails_where_not_even_one_row_fits_into_memory() -> None:
    watched = Watched(tiny_backbone())
    watched.memory = 0
    with pytest.raises(Failure, match="OutOfMemoryError: CUDA out of memory"):
        run(Engine(watched, 4), sample(0, BLUE))


def test_every_padded_call_has_the_same_size(finished: State) -> None:
    watched = Watched(tiny_backbone())
    works = [work for work in mixed_work(finished) if not isinstance(work, Locate | Encode)]
    run(Engine(watched, 5, decode_batch=3), *works)
    assert set(watched.rows) == {5}
    assert set(watched.decoded) == {3}
    assert {len(texts) for texts in watched.texts} == {TEXT_BATCH}


@pytest.mark.parametrize("sampling", [RED, BLUE, replace(RED, eta=0.0)])
def test_a_sample_can_be_stopped_and_continued_bitwise(sampling: Sampling) -> None:
    engine = Engine(tiny_backbone(), 4)
    (whole,) = run(engine, sample(3, sampling))
    (part,) = run(engine, sample(3, sampling, stop=3))
    assert part.state is not None and part.image is None and part.state.step == 3
    (rest,) = run(engine, Segment(1, sampling, ("seed 3",), sampling.steps, state=part.state))
    assert np.array_equal(rest.image, whole.image)  # type: ignore[arg-type]
    assert rest.state is not None and whole.state is not None
    assert np.array_equal(rest.state.latent, whole.state.latent)
    assert part.usage.nfe == 3 and rest.usage.nfe == sampling.steps - 3


def test_a_prediction_is_used_by_the_next_step_and_charged_once() -> None:
    engine = Engine(tiny_backbone(), 4)
    (whole,) = run(engine, sample(3, RED))
    (part,) = run(engine, sample(3, RED, stop=2))
    assert part.state is not None
    (seen,) = run(engine, Predict(part.state, RED))
    assert seen.state is not None and seen.state.predicted is not None and seen.image is not None
    assert np.array_equal(seen.image, tiny_backbone().decode(_tensor(seen.state.predicted))[0])
    again, one, rest = run(
        engine,
        Predict(seen.state, RED),
        Segment(1, RED, ("seed 3",), 3, state=seen.state),
        Segment(1, RED, ("seed 3",), 6, state=seen.state),
    )
    assert np.array_equal(rest.image, whole.image)  # type: ignore[arg-type]
    assert np.array_equal(again.image, seen.image)  # type: ignore[arg-type]
    assert (seen.usage.nfe, again.usage.nfe, one.usage.nfe, rest.usage.nfe) == (1, 0, 0, 3)
    assert (seen.usage.images, seen.usage.decodes) == (0, 1)
    # A branch: the same prediction, other noise from here on.
    (branch,) = run(engine, Segment(1, RED, ("seed 3", "branch@2 1"), 3, state=seen.state))
    assert branch.state is not None and one.state is not None
    assert not np.array_equal(branch.state.latent, one.state.latent)
    assert np.array_equal(branch.state.previous, one.state.previous)  # type: ignore[arg-type]


def _tensor(latent: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.stack([latent] * 4))


def test_usage(finished: State) -> None:
    works = mixed_work(finished)
    engine = Engine(tiny_backbone(), 8)
    futures = [engine.submit(work) for work in works]
    assert engine.outstanding_nfe == sum(work.nfe for work in works)
    while engine.tick():
        assert engine.outstanding_nfe <= sum(work.nfe for work in works)
    assert engine.outstanding_nfe == 0
    usages = [future.result().usage for future in futures]
    assert [usage.nfe for usage in usages] == [6, 8, 3, 4, 4, 3, 1, 2, 1.5, 0]
    assert [usage.nfe for usage in usages] == [work.nfe for work in works]
    assert [usage.rows for usage in usages] == [12, 8, 6, 8, 4, 6, 2, 4, 3, 0]
    assert [usage.images for usage in usages] == [1, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    assert [usage.decodes for usage in usages] == [1, 1, 0, 1, 0, 1, 1, 0, 0, 0]
    assert [usage.previews for usage in usages] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert [usage.encodes for usage in usages] == [0] * 9 + [1]
    prices = tiny_backbone().info.prices
    assert all(usage.flops == prices.flops(vars(usage)) for usage in usages)
    assert usages[0].flops == 12 * prices.row + prices.decode
    assert all(usage.device_s > 0 for usage in usages)
    assert sum(usage.nfe for usage in usages if usage.rows == 4 and usage.decodes == 0) == 6


def test_previews_and_encodings_are_charged_at_their_own_prices(finished: State) -> None:
    class Cheap(StableDiffusion):
        def __init__(self) -> None:
            vars(self).update(vars(tiny_backbone()))
            self.info = replace(self.info, prices=Prices(row=1000.0, decode=100.0, preview=10.0, encode=1.0))

    image = np.zeros((32, 32, 3), np.uint8)
    start = Segment(0, RED, ("seed 0",), 2, noise=Fresh(0))
    engine = Engine(Cheap(), 4)
    (begun,) = run(engine, start)
    assert begun.state is not None
    results = run(
        engine, Predict(begun.state, RED), Segment(0, RED, ("seed 0",), 6, state=begun.state), Encode(image, 6)
    )
    assert [result.usage.flops for result in results] == [2010, 8100, 1]
    counts = [(result.usage.decodes, result.usage.previews, result.usage.encodes) for result in results]
    assert counts == [(1, 1, 0), (1, 0, 0), (0, 0, 1)]


def test_unguided_localization_costs_whole_steps(finished: State) -> None:
    unguided = replace(RED, guidance=1.0)
    works = [Locate(0, (), finished, unguided, source) for source in (AttentionMask(), RandomMask(), WholeMask())]
    results = run(Engine(tiny_backbone(), 4), *works)
    assert [result.usage.nfe for result in results] == [3, 0, 0]


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_broken_latent_fails_alone_and_is_named(finished: State, ahead: int) -> None:
    bad = replace(finished, latent=np.where(np.arange(8) == 3, np.nan, finished.latent).astype(np.float32))
    broken = Segment(1, GREEN, ("seed 0", "refine@2 0"), 5, state=bad, renoise=2)
    look = Predict(State(bad.latent, 2, 5), GREEN)
    engine = Engine(tiny_backbone(), 8, ahead=ahead)
    futures = [engine.submit(work) for work in (sample(0, RED), broken, look, sample(1, BLUE))]
    while engine.tick():
        pass
    for failed in (futures[1], futures[2]):
        with pytest.raises(Failure, match=r"NaN or infinite at step 2 of 5 .*green square"):
            failed.result()
    for future, work in ((futures[0], sample(0, RED)), (futures[3], sample(1, BLUE))):
        (alone,) = run(Engine(tiny_backbone(), 8), work)
        assert np.array_equal(future.result().image, alone.image)  # type: ignore[arg-type]
    # The slot that held NaN is clean again.
    (after,) = run(engine, sample(0, RED))
    assert np.array_equal(after.image, futures[0].result().image)  # type: ignore[arg-type]


def test_a_failing_call_fails_what_was_in_it_and_nothing_else(finished: State) -> None:
    watched = Watched(tiny_backbone())
    engine = Engine(watched, 4)
    locate = Locate(1, (), finished, RED, ErrorContrastMask())
    # Two rows, one and one make a full call; the last work does not fit in.
    futures = [engine.submit(work) for work in (sample(0, RED), sample(1, BLUE), locate, sample(2, GREEN))]
    watched.error = RuntimeError("device lost")
    while not futures[0].done():
        assert engine.tick()
    watched.error = None
    while engine.tick():
        pass
    for failed in futures[:3]:
        with pytest.raises(Failure, match="RuntimeError: device lost"):
            failed.result()
    (alone,) = run(Engine(tiny_backbone(), 4), sample(2, GREEN))
    assert np.array_equal(futures[3].result().image, alone.image)  # type: ignore[arg-type]
    assert engine.outstanding_nfe == 0


def test_a_failing_call_is_repeated_without_what_makes_it_fail() -> None:
    watched = Watched(tiny_backbone())
    watched.poison = 7.0
    poison = State(np.full((4, 8, 8), 7.0, np.float32), 2, 5)
    engine = Engine(watched, 8)
    healthy = [sample(0, RED), sample(1, BLUE), sample(2, GREEN)]
    futures = [engine.submit(work) for work in (*healthy[:2], Predict(poison, GREEN), healthy[2])]
    while engine.tick():
        pass
    with pytest.raises(Failure, match="model tiny failed: RuntimeError: poisoned"):
        futures.pop(2).result()
    for future, work in zip(futures, healthy, strict=True):
        (alone,) = run(Engine(tiny_backbone(), 8), work)
        assert np.array_equal(future.result().image, alone.image)  # type: ignore[arg-type]
    # The first call and its halves, of which only the second is halved again; every call has its fixed size.
    assert len(watched.rows) == 8 + 4 and set(watched.rows) == {8}
    assert engine.outstanding_nfe == 0


def test_failing_prompts_and_images_fail_alone(finished: State) -> None:
    watched = Watched(tiny_backbone())
    watched.poison = 7.0
    poison = State(np.full((4, 8, 8), 7.0, np.float32), 6, 6)
    engine = Engine(watched, 8, decode_batch=3)
    works = [
        Segment(1, BLUE, (), 8, state=replace(finished, steps=8, step=8)),
        sample(1, replace(BLUE, prompt="poison")),
        Segment(1, RED, (), 6, state=poison),
        Segment(1, RED, (), 6, state=finished),
    ]
    futures = [engine.submit(work) for work in works]
    while engine.tick():
        pass
    for failed in futures[1:3]:
        with pytest.raises(Failure, match="poisoned"):
            failed.result()
    want = tiny_backbone().decode(_tensor(finished.latent)[:3])[0]
    for future in (futures[0], futures[3]):
        assert np.array_equal(future.result().image, want)  # type: ignore[arg-type]


def test_an_error_of_the_device_is_not_provoked_again() -> None:
    watched = Watched(tiny_backbone())
    watched.error = torch.AcceleratorError("an illegal memory access was encountered")
    engine = Engine(watched, 8)
    futures = [engine.submit(sample(seed, RED)) for seed in range(3)]
    while engine.tick():
        pass
    assert len(watched.rows) == 1
    for future in futures:
        with pytest.raises(Failure, match="illegal memory access") as raised:
            future.result()
        assert raised.value.__cause__ is watched.error


def test_outcomes_that_are_seen_later_are_the_same(finished: State) -> None:
    works = mixed_work(finished)
    at_once, later = run(Engine(tiny_backbone(), 4), *works), run(Engine(tiny_backbone(), 4, ahead=2), *works)
    for now, then in zip(at_once, later, strict=True):
        assert replace(now.usage, device_s=0) == replace(then.usage, device_s=0)
        for one, other in zip(arrays(now), arrays(then), strict=True):
            assert np.array_equal(one, other)


def test_localizations_that_share_a_padded_call_equal_each_alone(finished: State) -> None:
    sizes: list[int] = []

    class Counted(Watched):
        def attend(self, latents: Tensor, *rest: Any) -> Any:
            sizes.append(len(latents))
            return tiny_backbone().attend(latents, *rest)

    works = [
        Locate(seed, ("seed 11",), finished, replace(RED, prompt=prompt), AttentionMask(level=300, noised=True))
        for seed, prompt in enumerate(("a red circle", "a blue star", "green square"))
    ]
    together = run(Engine(Counted(tiny_backbone()), 8, capture_rows=8), *works)
    assert sizes == [8, 8]
    for work, result in zip(works, together, strict=True):
        (alone,) = run(Engine(tiny_backbone(), 8, capture_rows=8), work)
        assert all(np.array_equal(a, b) for a, b in zip(arrays(alone), arrays(result), strict=True))
        assert result.usage.rows == 3 and result.usage.nfe == 1.5


def test_images_wait_for_each_other_only_while_no_trajectory_waits_for_them() -> None:
    watched = Watched(tiny_backbone())
    short, long = replace(BLUE, steps=2), replace(BLUE, steps=3)
    run(Engine(watched, 2, decode_batch=2), *(sample(seed, (short, long)[seed % 2]) for seed in range(4)))
    # The first two together; when the third is done nobody is left to take a place, so it does not wait.
    assert watched.decoded == [2, 2, 2]


def test_with_several_sizes_a_call_has_the_smallest_that_holds_its_rows() -> None:
    watched = Watched(tiny_backbone())
    engine = Engine(watched, (1, 2, 4, 8))
    works = [sample(seed, replace(BLUE, steps=2 + seed)) for seed in range(3)]
    together = run(engine, *works)
    # Three rows, then two, then one: as each arrives.
    assert watched.rows == [4, 4, 2, 1] and set(watched.decoded) <= {1, 2, 4}
    for work, result in zip(works, together, strict=True):
        (alone,) = run(Engine(tiny_backbone(), 8), work)
        assert result.usage.rows == alone.usage.rows and result.state is not None and alone.state is not None
        np.testing.assert_allclose(result.state.latent, alone.state.latent, atol=1e-4)


def test_prompts_are_encoded_once_and_forgotten_in_order() -> None:
    watched = Watched(tiny_backbone())
    engine = Engine(watched, 4, pad=False, prompts=4)
    run(engine, sample(0, replace(RED, steps=1)), sample(1, replace(RED, steps=1)))
    run(engine, sample(2, replace(RED, steps=1)))
    assert watched.texts == [["a red circle", ""]]
    for name in ("red", "green", "blue"):
        run(engine, sample(0, Sampling(name, 1, 1.0)))
    run(engine, sample(0, Sampling("red", 1, 1.0)))
    assert watched.texts[1:] == [["red"], ["green"], ["blue"]]
    # Five prompts, four places: the one that was used least lately is gone.
    run(engine, sample(3, replace(RED, steps=1)))
    assert watched.texts[4:] == [["a red circle"]]


def test_localizations_do_not_wait_for_a_queue_of_segments(finished: State) -> None:
    engine = Engine(tiny_backbone(), 4)
    samples = [engine.submit(sample(seed, BLUE)) for seed in range(12)]
    engine.tick()
    located = engine.submit(Locate(1, (), finished, RED, ErrorContrastMask()))
    while not located.done():
        assert engine.tick()
    assert sum(future.done() for future in samples) <= 4
    while engine.tick():
        pass
    assert all(future.done() for future in samples)


def test_cancelled_work_is_not_done() -> None:
    watched = Watched(tiny_backbone())
    engine = Engine(watched, 4)
    future = engine.submit(sample(0, RED))
    assert future.cancel()
    while engine.tick():
        pass
    assert watched.rows == [] and engine.outstanding_nfe == 0


def test_work_that_is_cancelled_while_it_runs_stops_at_the_next_tick(finished: State) -> None:
    """Wherever it is: in the network, in a queue, before the decoder, before the text encoder. The rest does not notice."""
    works = [*mixed_work(finished), sample(5, RED, stop=6), sample(6, BLUE)]
    alone = run(Engine(tiny_backbone(), 6), *works)
    total = run_rows(works)
    for ticks in range(0, 16, 3):
        watched = Watched(tiny_backbone())
        engine = Engine(watched, 6)
        futures = [engine.submit(work) for work in works]
        for _ in range(ticks):
            engine.tick()
        cancelled = [future.cancel() for future in futures[::2]]
        assert any(cancelled)
        while engine.tick():
            pass
        assert engine.outstanding_nfe == 0
        for future, expected in zip(futures, alone, strict=True):
            if not future.cancelled():
                assert all(map(np.array_equal, arrays(future.result(0)), arrays(expected)))
        assert len(watched.rows) < total or ticks > 9


def run_rows(works: list[Generate]) -> int:
    """The network calls of works that all end."""
    watched = Watched(tiny_backbone())
    run(Engine(watched, 6), *works)
    return len(watched.rows)


def test_cancelling_leaves_no_row_in_the_batch() -> None:
    watched = Watched(tiny_backbone())
    engine = Engine(watched, 4, pad=False)
    futures = [engine.submit(sample(seed, BLUE)) for seed in range(3)]
    while not watched.rows:
        engine.tick()
    futures[1].cancel()
    engine.tick()
    assert watched.rows == [3, 2]


def test_bad_work_is_refused_with_a_message(finished: State) -> None:
    engine = Engine(tiny_backbone(), 4)
    part = State(finished.latent, 3, 6)
    wide = replace(finished, latent=np.zeros((4, 9, 9), np.float32))
    region = Region(np.ones((4, 4), np.bool_), finished.latent, (), 1)
    cases: list[tuple[Generate, str]] = [
        (sample(0, replace(RED, prompt="  ")), "prompt is empty"),
        (sample(0, RED, stop=7), "stop within 0..6, got 7"),
        (Segment(1, RED, (), 2, state=part), "stop within 3..6, got 2"),
        (Segment(1, replace(RED, steps=9), (), 9, state=part), "schedule of 6 steps, not of 9"),
        (Segment(1, RED, (), 6, state=part, renoise=2), "only a complete candidate"),
        (Segment(1, RED, (), 6, state=finished, renoise=6), r"within 0..5, got 6"),
        (Segment(1, RED, (), 6, state=finished, renoise=2, region=region), "mask must be"),
        (Segment(1, RED, (), 6, state=wide, renoise=2), "latent of tiny has shape"),
        (sample(0, replace(RED, steps=0)), "number of steps"),
        (sample(0, replace(RED, eta=-1.0)), "eta must be a number of 0 or more"),
        (Predict(finished, RED), "nothing to predict"),
        (Encode(np.zeros((31, 32, 3), np.uint8), 6), "must be 32x32x3 bytes, got 31x32x3"),
        (Locate(0, (), part, RED, WholeMask()), "only a finished image"),
        (Locate(0, (), finished, RED, AttentionMask(grid=3)), "grid must be one of 4, 8, got 3"),
    ]
    futures = [engine.submit(work) for work, _ in cases]
    while engine.tick():
        pass
    for future, (_, message) in zip(futures, cases, strict=True):
        with pytest.raises(BadInput, match=message):
            future.result(timeout=0)
    narrow = Engine(tiny_backbone(), 1)
    refused = narrow.submit(sample(0, RED))
    narrow.tick()
    with pytest.raises(BadInput, match="2 or more for guided"):
        refused.result(timeout=0)


class Brightness:
    """A verifier that answers with the mean of the image, or breaks."""

    name = "brightness"
    requirements = ()

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return images.mean(axis=(1, 2, 3)).astype(np.float32)


def test_the_local_pool_answers_as_the_engine_does() -> None:
    with LocalPool(tiny_backbone(), {"brightness": Brightness()}, batch=4, threads=1) as pool:
        assert pool.info == tiny_backbone().info
        futures = [pool.submit(sample(seed, RED)) for seed in range(3)]
        results = [future.result(timeout=60) for future in futures]
        image = results[0].image
        assert image is not None
        score = pool.submit(Score("brightness", "a red circle", image)).result(timeout=60)
        assert score.score == pytest.approx(image.mean(), rel=1e-5)
        with pytest.raises(BadInput, match=r"brightnes.*did you mean 'brightness'"):
            pool.submit(Score("brightnes", "a", image))
    for result, alone in zip(
        results, run(Engine(tiny_backbone(), 4), *(sample(s, RED) for s in range(3))), strict=True
    ):
        assert np.array_equal(result.image, alone.image)  # type: ignore[arg-type]
    with pytest.raises(Failure, match="closed"):
        pool.submit(sample(0, RED))


def test_closing_the_local_pool_fails_what_is_left() -> None:
    pool = LocalPool(tiny_backbone(), {}, batch=2, threads=1)
    futures = [pool.submit(sample(seed, Sampling("a", 400, 1.0))) for seed in range(4)]
    pool.close()
    for future in futures:
        with pytest.raises(Failure, match="closed"):
            future.result(timeout=60)


def test_usage_adds_up() -> None:
    total = Usage(nfe=1, rows=2)
    total += Usage(nfe=0.5, rows=1, device_s=3)
    assert total == Usage(nfe=1.5, rows=3, device_s=3)


def test_start_noise_of_a_segment_is_the_symbols_noise() -> None:
    (zero,) = run(Engine(tiny_backbone(), 2), Segment(1, BLUE, ("seed 5",), 0, noise=Fresh(5)))
    from lotts_search.work.noise import start_noise

    assert zero.state is not None and zero.usage.nfe == 0
    assert np.array_equal(zero.state.latent, start_noise(1, Fresh(5), (4, 8, 8)))
