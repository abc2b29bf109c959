"""Micro-batched scoring."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
import pytest

from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.registry import load_verifier
from lotts_search.verifiers.batcher import ScoreBatcher
from lotts_search.work.mosaics import mosaic
from lotts_search.work.requests import Result, Score, ScoreMosaics


class RecordingVerifier:
    """Scores an image by its mean plus the length of its prompt, and keeps the arguments of each call."""

    name = "recorder"
    requirements: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], npt.NDArray[np.uint8]]] = []

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.calls.append((prompts, images))
        if "explode" in prompts:
            raise OSError("out of ink")
        scores = images.mean(axis=(1, 2, 3)) + np.array([len(p) for p in prompts])
        return np.where([p == "nan" for p in prompts], np.nan, scores).astype(np.float32)


def image(level: int, size: int = 4) -> npt.NDArray[np.uint8]:
    return np.full((size, size, 3), level, dtype=np.uint8)


def submit(batcher: ScoreBatcher, prompt: str, image: npt.NDArray[np.uint8]) -> Future[Result]:
    return batcher.submit(Score("recorder", prompt, image))


def test_waiting_requests_share_a_call_and_each_gets_its_own_score() -> None:
    verifier = RecordingVerifier()
    batcher = ScoreBatcher(verifier, batch=4)
    futures = [submit(batcher, "p" * i, image(10 * i)) for i in range(6)]
    assert batcher.outstanding == 6
    assert batcher.tick() and batcher.outstanding == 2
    assert batcher.tick() and batcher.outstanding == 0
    assert not batcher.tick()
    assert [f.result(0).score for f in futures] == [11.0 * i for i in range(6)]
    assert [len(prompts) for prompts, _ in verifier.calls] == [4, 4]
    assert sum(f.result(0).usage.scores for f in futures) == 6
    assert all(f.result(0).usage.nfe == 0 for f in futures)


def test_a_verifier_that_runs_out_of_memory_gets_smaller_batches() -> None:
    class Small(RecordingVerifier):
        def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            scores = super().score(prompts, images)
            if len(prompts) > 2:
                raise RuntimeError("MPS backend out of memory")
            return scores

    verifier = Small()
    batcher = ScoreBatcher(verifier, batch=5)
    futures = [submit(batcher, "p" * i, image(10 * i)) for i in range(7)]
    with pytest.warns(Notice, match="the verifier recorder takes at most 2 rows") as caught:
        assert batcher.tick()
    assert batcher.tick() and not batcher.tick()
    assert [future.result(0).score for future in futures] == [11.0 * i for i in range(7)]
    assert [len(prompts) for prompts, _ in verifier.calls] == [5, 3, 2, 2, 1, 2, 2, 1] and len(caught) == 1


def test_each_score_is_charged_what_the_verifier_says() -> None:
    class Heavy(RecordingVerifier):
        flops = 7.0

    images = np.stack([image(10), image(20)])
    for verifier, price in [(Heavy(), 7.0), (RecordingVerifier(), 0.0)]:
        batcher = ScoreBatcher(verifier, batch=4)  # padding is not charged
        one = submit(batcher, "p", image(1))
        many = batcher.submit(ScoreMosaics("recorder", "p", images, np.array([[[0]], [[1]], [[0]]])))
        while batcher.tick():
            pass
        assert (one.result(0).usage.flops, many.result(0).usage.flops) == (price, 3 * price)


def test_with_several_sizes_a_call_has_the_smallest_that_holds_its_images() -> None:
    verifier, limited = RecordingVerifier(), RecordingVerifier()
    limited.batch = 3  # type: ignore[attr-defined]
    for one in (verifier, limited):
        batcher = ScoreBatcher(one, (1, 2, 4))
        for count in (1, 2, 3, 4):
            futures = [submit(batcher, "p", image(count)) for _ in range(count)]
            while batcher.tick():
                pass
            assert all(future.done() for future in futures)
    assert [len(prompts) for prompts, _ in verifier.calls] == [1, 2, 4, 4]
    assert [len(prompts) for prompts, _ in limited.calls] == [1, 2, 3, 3, 1]


def test_padding_repeats_rows_of_the_batch_and_can_be_disabled() -> None:
    for pad, prompts in [(True, ["a", "b", "a", "b"]), (False, ["a", "b"])]:
        verifier = RecordingVerifier()
        batcher = ScoreBatcher(verifier, batch=4, pad=pad)
        submit(batcher, "a", image(1))
        submit(batcher, "b", image(2))
        batcher.tick()
        assert verifier.calls[0][0] == prompts
        assert verifier.calls[0][1][:, 0, 0, 0].tolist() == [ord(p) - ord("a") + 1 for p in prompts]


def test_the_device_time_of_a_call_is_split_evenly() -> None:
    batcher = ScoreBatcher(RecordingVerifier(), batch=3)
    results = [submit(batcher, "p", image(i)) for i in range(3)]
    batcher.tick()
    shares = [f.result(0).usage.device_s for f in results]
    first = results[0].result(0)
    assert len(set(shares)) == 1
    assert 0 < 3 * shares[0] <= first.finished - first.started + 0.05


def test_an_exception_fails_only_the_request_that_caused_it() -> None:
    batcher = ScoreBatcher(RecordingVerifier(), batch=4)
    good, bad, other = (submit(batcher, p, image(5)) for p in ("fine", "explode", "good"))
    batcher.tick()
    assert good.result(0).score == 9 and other.result(0).score == 9
    with pytest.raises(Failure, match=r"'recorder' failed: OSError: out of ink"):
        bad.result(0)


def test_a_nan_score_fails_only_its_own_future() -> None:
    batcher = ScoreBatcher(RecordingVerifier(), batch=4)
    good, bad = submit(batcher, "fine", image(5)), submit(batcher, "nan", image(5))
    batcher.tick()
    assert good.result(0).score == 9
    with pytest.raises(Failure, match="nan"):
        bad.result(0)


def test_images_of_different_sizes_go_into_separate_calls_in_order() -> None:
    verifier = RecordingVerifier()
    batcher = ScoreBatcher(verifier, batch=4, pad=False)
    futures = [submit(batcher, "p", image(i, size)) for i, size in enumerate([4, 8, 4, 8])]
    assert batcher.tick() and batcher.tick() and not batcher.tick()
    assert [images.shape for _, images in verifier.calls] == [(2, 4, 4, 3), (2, 8, 8, 3)]
    assert [f.result(0).score for f in futures] == [1, 2, 3, 4]


def test_a_cancelled_request_is_dropped() -> None:
    verifier = RecordingVerifier()
    batcher = ScoreBatcher(verifier, batch=2, pad=False)
    submit(batcher, "gone", image(0)).cancel()
    kept = submit(batcher, "kept", image(0))
    assert batcher.tick() and kept.result(0).score == 4
    assert verifier.calls[0][0] == ["kept"]


def test_mosaics_share_calls_with_other_images_and_come_back_in_order() -> None:
    verifier = RecordingVerifier()
    batcher = ScoreBatcher(verifier, batch=4, pad=False)
    layers = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    choices = np.random.default_rng(1).integers(0, 3, (6, 2, 2), np.uint8)
    mosaics = batcher.submit(ScoreMosaics("recorder", "pp", layers, choices))
    lone = submit(batcher, "p", image(7))
    assert batcher.outstanding == 7
    assert batcher.tick() and not mosaics.done()
    assert batcher.tick() and lone.done()
    expected = [2 + mosaic(layers, choice).mean() for choice in choices]
    assert mosaics.result(0).scores == pytest.approx(expected) and mosaics.result(0).score is None
    assert (mosaics.result(0).usage.scores, lone.result(0).score) == (6, 8)
    assert [len(prompts) for prompts, _ in verifier.calls] == [4, 3]


@pytest.mark.parametrize("prompt", ["explode", "nan"])
def test_a_mosaic_that_fails_fails_its_request_alone(prompt: str) -> None:
    """After a mosaic that fails the others of its request are not tried: a judge that dies of them would be given up."""
    verifier = RecordingVerifier()
    batcher = ScoreBatcher(verifier, batch=4, pad=False)
    layers, choices = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((6, 1, 1), np.uint8)
    bad = batcher.submit(ScoreMosaics("recorder", prompt, layers, choices))
    good = submit(batcher, "fine", image(5))
    while batcher.tick():
        pass
    assert good.result(0).score == 9
    with pytest.raises(Failure):
        bad.result(0)
    assert [len(prompts) for prompts, _ in verifier.calls] == ([4, 1, 1] if prompt == "explode" else [4, 1])


def test_a_cancelled_request_of_mosaics_is_dropped() -> None:
    verifier = RecordingVerifier()
    batcher = ScoreBatcher(verifier, batch=2)
    batcher.submit(
        ScoreMosaics("recorder", "p", np.zeros((1, 4, 4, 3), np.uint8), np.zeros((5, 1, 1), np.uint8))
    ).cancel()
    assert not batcher.tick() and not verifier.calls


def test_a_wrong_number_of_scores_is_a_failure() -> None:
    class WrongShape(RecordingVerifier):
        def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            return np.zeros(3, dtype=np.float32)

    batcher = ScoreBatcher(WrongShape(), batch=2)
    future = submit(batcher, "p", image(0))
    batcher.tick()
    with pytest.raises(Failure, match=r"shape \(3,\), not \(2,\)"):
        future.result(0)


def test_an_empty_batch_size_is_refused() -> None:
    with pytest.raises(BadInput, match="a batch has 1 row or more, not 0"):
        ScoreBatcher(RecordingVerifier(), batch=0)


@pytest.mark.parametrize(
    ("batch", "pad", "calls"),
    [
        (None, None, [4, 4]),
        (None, False, [4, 2]),
        (1, None, [1] * 6),
        (3, False, [3, 3]),
        (5, False, [5, 1]),
        (8, True, [8]),
    ],
)
def test_a_verifier_says_how_many_images_it_takes_and_whether_calls_are_filled(
    batch: int | None, pad: bool | None, calls: list[int]
) -> None:
    verifier = RecordingVerifier()
    if batch is not None:
        verifier.batch = batch  # type: ignore[attr-defined]
    if pad is not None:
        verifier.pad = pad  # type: ignore[attr-defined]
    batcher = ScoreBatcher(verifier, batch=4)
    futures = [submit(batcher, "p" * i, image(10 * i)) for i in range(6)]
    while batcher.tick():
        pass
    assert [len(prompts) for prompts, _ in verifier.calls] == calls
    assert [f.result(0).score for f in futures] == [11.0 * i for i in range(6)]


@pytest.mark.parametrize("batch", [0, -2, 2.5, "16"])
def test_a_batch_that_cannot_be_is_refused(batch: object) -> None:
    verifier = RecordingVerifier()
    verifier.batch = batch  # type: ignore[attr-defined]
    with pytest.raises(
        BadInput, match=f"batch of verifier 'recorder' must be a whole number of 1 or more, not {batch}"
    ):
        ScoreBatcher(verifier)


def test_a_pool_without_fixed_sizes_never_fills_calls() -> None:
    verifier = RecordingVerifier()
    verifier.pad = True  # type: ignore[attr-defined]
    batcher = ScoreBatcher(verifier, batch=4, pad=False)
    submit(batcher, "a", image(1))
    batcher.tick()
    assert len(verifier.calls[0][0]) == 1


def test_a_probe_needs_no_finite_score() -> None:
    batcher = ScoreBatcher(RecordingVerifier(), batch=2)
    probe = batcher.submit(Score("recorder", "nan", image(1), probe=True))
    real = submit(batcher, "nan", image(1))
    batcher.tick()
    assert np.isnan(probe.result(0).score)
    with pytest.raises(Failure, match="returned the score nan"):
        real.result(0)


class Unnamed:
    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        raise OSError("out of ink")


def test_a_verifier_without_a_name_is_called_by_its_class() -> None:
    batcher = ScoreBatcher(Unnamed())  # type: ignore[arg-type]
    future = submit(batcher, "a", image(1))
    batcher.tick()
    with pytest.raises(Failure, match="verifier 'Unnamed' failed: OSError: out of ink"):
        future.result(0)


class NoLoad(Unnamed):
    pass


class LoadOfObjects(Unnamed):
    def load(self) -> Unnamed:
        return self


class Broken(Unnamed):
    @classmethod
    def load(cls) -> Unnamed:
        raise RuntimeError("no weights")


class NoScore:
    @classmethod
    def load(cls) -> object:
        return cls()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("NoLoad", BadInput, r"NoLoad is not a verifier: it must be a class with a class method load\(\)"),
        (
            "LoadOfObjects",
            BadInput,
            r"LoadOfObjects is not a verifier: it must be a class with a class method load\(\)",
        ),
        ("image", BadInput, r"image is not a verifier"),
        ("Broken", Failure, "Broken' cannot be loaded: RuntimeError: no weights"),
        ("NoScore", BadInput, "returned no object with a method score"),
    ],
)
def test_what_is_not_a_verifier_is_refused_with_one_clear_message(
    name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_verifier(f"{__name__}:{name}")
