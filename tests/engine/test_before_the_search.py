"""What a pool refuses or reports of a search before its first trial, and maps without information."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from lotts_search import LocalPool, SearchFailed, search
from lotts_search.backbones.base import Backbone
from lotts_search.core.localized import Localized
from lotts_search.engine.checks import unread
from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.localization.locate import locate
from lotts_search.localization.select import flat, from_heat, informed, unit
from lotts_search.strategies.lotts import LoTTS
from lotts_search.work.masks import (
    AttentionMask,
    ConceptMask,
    DisagreementMask,
    ErrorContrastMask,
    FusionMask,
    GivenMask,
    MaskSource,
    QualityMask,
    RandomMask,
)
from lotts_search.work.requests import Bytes, Locate, Located, Sampling, State
from tests.tiny import tiny_backbone
from tests.tiny_flux import shared_flux
from tests.tiny_sd3 import sd3_backbone_of, tiny_sd3_pipeline
from tests.tiny_xl import tiny_xl_backbone

SETTINGS = {"steps": 4, "guidance": 2.0}
LAST = "{} high quality", "{} low quality"
"""Templates whose quality words a long prompt pushes out of what the text encoder reads."""


@cache
def sd3(t5: bool) -> Backbone:
    return sd3_backbone_of(tiny_sd3_pipeline(t5=t5))


FAMILIES = {
    "sd": tiny_backbone,
    "sdxl": tiny_xl_backbone,
    "sd3": lambda: sd3(True),
    "sd3 without t5": lambda: sd3(False),
    "flux": shared_flux,
}


class Recorder:
    """Scores by redness, and records how many images each call has; fails for other sizes than ``side``."""

    name = "recorder"
    requirements = ()

    def __init__(self, side: int | None = None, error: Exception | None = None, batch: int | None = None):
        self.side, self.error, self.calls = side, error, list[int]()
        self.batch = batch

    def score(self, prompts: list[str], images: Bytes) -> np.ndarray:
        self.calls.append(len(images))
        if self.error is not None:
            raise self.error
        if self.side is not None and images.shape[1] != self.side:
            raise BadInput(f"recorder expects {self.side} pixels, not {images.shape[1]}")
        return images[..., 0].mean(axis=(1, 2)).astype(np.float32)


class Counting(LocalPool):
    """Counts the generating work."""

    def __init__(self, backbone, verifier):
        super().__init__(backbone, {"recorder": verifier}, batch=4, threads=1)
        self.paid: list[object] = []

    def submit(self, work):
        if work.nfe:
            self.paid.append(work)
        return super().submit(work)


@pytest.mark.parametrize(
    ("verifier", "error", "message"),
    [
        (Recorder(side=64), BadInput, "recorder expects 64 pixels, not 32"),
        (Recorder(side=512), BadInput, "recorder expects 512 pixels, not 32"),
        (Recorder(error=OSError("no key")), Failure, "verifier 'recorder' failed: OSError: no key"),
        (Recorder(error=Failure("the judge is not reachable")), Failure, "the judge is not reachable"),
    ],
)
def test_a_verifier_that_cannot_score_the_models_images_is_refused_before_the_first_step(verifier, error, message):
    with Counting(tiny_backbone(), verifier) as pool:
        for _ in range(2):  # a failed probe is repeated by the next search
            with pytest.raises(error, match=message) as raised:
                search("a red star", verifier="recorder", pool=pool, images=2, **SETTINGS)
            assert not isinstance(raised.value, SearchFailed)
        assert pool.paid == []


def test_a_verifier_is_probed_once_for_all_searches_of_a_pool():
    verifier = Recorder()
    verifier.pad = False
    with LocalPool(tiny_backbone(), {"recorder": verifier}, batch=4, threads=1) as pool:
        for seed in range(3):
            search("a red star", verifier="recorder", pool=pool, strategy="resampling", images=1, seed=seed, **SETTINGS)
    assert verifier.calls == [1] * 4


def test_a_verifier_without_a_score_for_noise_is_not_refused():
    class Picky(Recorder):
        def score(self, prompts, images):
            self.calls.append(len(images))
            return np.full(len(images), np.nan if len(self.calls) == 1 else 0.5, np.float32)

    with LocalPool(tiny_backbone(), {"recorder": Picky()}, batch=4, threads=1) as pool:
        assert (
            search("a star", verifier="recorder", pool=pool, strategy="resampling", images=1, **SETTINGS).score == 0.5
        )


@pytest.mark.parametrize(
    ("backbone", "source", "message"),
    [
        (tiny_backbone, ConceptMask(), "gives no maps of concepts"),
        (tiny_backbone, AttentionMask(grid=7), "grid must be one of"),
        (tiny_backbone, AttentionMask(draws=0), "draws must be 1 or more, got 0"),
        (tiny_backbone, AttentionMask(level=1000), "1000"),
        (tiny_backbone, ErrorContrastMask(levels=()), "at least one level"),
        (tiny_backbone, ErrorContrastMask(levels=(-1,)), "-1"),
        (tiny_backbone, DisagreementMask(draws=1), "two draws"),
        (tiny_backbone, RandomMask(block=0), "block must be 1 or more"),
        (tiny_backbone, QualityMask(map="nothing"), "unknown quality map 'nothing'"),
        (tiny_backbone, GivenMask(b"no image"), "mask"),
        (tiny_backbone, FusionMask(sources=(RandomMask(), ConceptMask())), "gives no maps of concepts"),
        (shared_flux, AttentionMask(word_only=True, high="a {}", low="a {}"), "do not differ in a word"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:50]),  # an address would differ from process to process
)
def test_a_mask_source_that_does_not_fit_the_model_is_refused_before_the_first_step(backbone, source, message):
    with Counting(backbone(), Recorder()) as pool:
        with pytest.raises(BadInput, match=message):
            search("a star", strategy=LoTTS(mask=source), verifier="recorder", pool=pool, images=9, steps=4)
        assert pool.paid == []


def long(backbone: Backbone) -> str:
    """Return a prompt that is longer than what any text encoder of a model reads."""
    return " ".join(["red star on the left and"] * (1 + max(most for _, most in backbone.readers())))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_is_cut_is_reported(family):
    backbone = FAMILIES[family]()
    assert unread(backbone, "a red star") == ""
    assert "star" in unread(backbone, long(backbone))
    with Counting(backbone, Recorder()) as pool:
        common = {"verifier": "recorder", "pool": pool, "strategy": "resampling", "images": 1, "steps": 2}
        with pytest.warns(Notice, match="the text encoder does not read the end of the prompt: '"):
            search(long(backbone), **common)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)
            search("a red star", **common)


def test_exactly_what_no_encoder_reads_is_named():
    backbone = tiny_backbone()  # 16 tokens, two of which begin and end the text
    fits = " ".join(["red"] * 14)
    assert unread(backbone, fits) == ""
    assert unread(backbone, f"{fits} blue") == "blue"
    assert unread(backbone, f"{fits} blue circle") == "blue circle"
    assert unread(sd3(False), f"{fits} blue") == "blue"
    assert unread(sd3(True), f"{fits} blue") == ""  # T5 reads on


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", [ErrorContrastMask(levels=(400,)), AttentionMask()], ids=["error", "attention"])
def test_quality_words_that_are_cut_off_are_refused_before_the_first_step(family, source):
    backbone = FAMILIES[family]()
    with Counting(backbone, Recorder()) as pool:
        common = {"verifier": "recorder", "pool": pool, "images": 9, "steps": 4}
        lost = LoTTS(mask=source, high=LAST[0], low=LAST[1])
        with pytest.raises(BadInput, match="are the same to the text encoder: it does not read where they differ"):
            search(long(backbone), strategy=lost, **common)
        with pytest.raises(BadInput, match="their templates are equal"):
            search("a star", strategy=LoTTS(mask=source, high="a {}", low="a {}"), **common)
        assert pool.paid == []


def test_one_uninformed_part_of_a_fused_mask_is_reported():
    fused = FusionMask(sources=(ErrorContrastMask(levels=(400,), high="a {}", low="a {}"), RandomMask()))
    with (
        Counting(tiny_backbone(), Recorder()) as pool,
        pytest.warns(Notice, match="so this map will be the same everywhere"),
    ):
        result = search("a star", strategy=LoTTS(mask=fused), verifier="recorder", pool=pool, images=2, **SETTINGS)
    assert {trial.status for trial in result.trials} == {"done"}
    assert next(iter(result.located.values())).heat.std() > 0


class Constant:
    """A model whose prediction does not depend on its input, so that every map is the same everywhere."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def predict(self, latents, timesteps, conditioning):
        return torch.zeros_like(latents)

    def decode(self, latents):
        return np.full((len(latents), *self.info.image, 3), 90, np.uint8)


def work(backbone: Backbone, source: MaskSource, blank: str = "fail") -> Locate:
    rng = np.random.default_rng(3)
    state = State(rng.normal(size=backbone.info.latent).astype(np.float32), 4, 4)
    grey = np.full((*backbone.info.image, 3), 90, np.uint8)
    return Locate(5, ("seed 3",), state, Sampling("a star", 4, 2.0), source, grey, blank)


BLANK = [
    ErrorContrastMask(levels=(150, 400)),
    ErrorContrastMask(levels=(400,), relative=True),
    QualityMask(map="grain"),
]
BLANK += [
    QualityMask(map="sharpness"),
    FusionMask(sources=(ErrorContrastMask(levels=(400,)), QualityMask(map="grain"))),
]


@pytest.mark.parametrize("source", BLANK, ids=lambda source: str(source)[:40])
def test_a_map_without_information_fails_or_falls_back(source):
    backbone = Constant(tiny_backbone())
    with pytest.raises(Failure, match=f"the map of {type(source).__name__} is the same everywhere"):
        locate(backbone, work(backbone, source))
    assert locate(backbone, work(backbone, source, "whole")).mask.all()
    chance = locate(backbone, work(backbone, replace(source, ratio=0.25), "random")).mask
    assert chance.sum() == chance.size // 4
    assert not chance[: chance.shape[0] // 4].all()
    expected = locate(backbone, work(backbone, RandomMask(ratio=0.25))).mask
    assert np.array_equal(chance, expected)


def test_rounding_errors_are_no_information():
    noise = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    for level in (1.0, 100.0, -3.0):
        assert flat(level + level * 1e-7 * noise) and not flat(level + level * 1e-4 * noise)
        assert not unit((level + level * 1e-7 * noise).astype(np.float32)).any()
    assert flat(1e-8 * noise, scale=1.0) and not flat(1e-8 * noise)
    assert flat(np.zeros((4, 4))) and not flat(np.full((4, 4), np.nan))


def test_a_map_of_rounding_errors_is_blank_and_a_whole_mask_needs_no_map():
    backbone = tiny_backbone()
    heat = (2 + 1e-7 * np.random.default_rng(0).normal(size=(8, 8))).astype(np.float32)
    asked = work(backbone, RandomMask(ratio=0.5))
    with pytest.raises(Failure, match="the same everywhere"):
        informed(from_heat(heat, 0.5, (8, 8), {}), asked, backbone.info)
    whole = from_heat(heat, 1.0, (8, 8), {})
    assert informed(whole, asked, backbone.info) == (whole, "")
    chosen = np.zeros((8, 8), np.bool_)
    chosen[3:5, 3:5] = True
    own = Located(chosen, np.ones((8, 8), np.float32))  # of a method that needs no heat to choose
    assert informed(own, asked, backbone.info) == (own, "")


@pytest.mark.parametrize(("blank", "ratio"), [("whole", 1.0), ("random", 0.5)])
def test_a_strategy_says_what_follows_a_map_without_information(blank, ratio):
    strategy = LoTTS(mask=ErrorContrastMask(levels=(400,)), blank=blank)
    with Counting(Constant(tiny_backbone()), Recorder()) as pool:
        result = search("a star", strategy=strategy, verifier="recorder", pool=pool, images=3, **SETTINGS)
    located = [trial for trial in result.trials if trial.kind == "localize"]
    assert [(t.status, t.mask_ratio) for t in located] == [("done", ratio)] * len(located) != []
    assert (
        f"the map of ErrorContrastMask is the same everywhere: it does not show what to resample; instead: {blank}"
        in {trial.error for trial in located}
    )
    assert [t.status for t in result.trials if t.kind == "refine"] == ["done"] * 2


def test_without_a_fallback_the_localization_fails_and_says_why():
    with Counting(Constant(tiny_backbone()), Recorder()) as pool:
        strategy = LoTTS(mask=ErrorContrastMask(levels=(400,)))
        result = search("a star", strategy=strategy, verifier="recorder", pool=pool, images=3, **SETTINGS)
    located = [trial for trial in result.trials if trial.kind == "localize"]
    assert {t.status for t in located} == {"failed"}
    assert all(str(t.error).startswith("the map of ErrorContrastMask is the same everywhere") for t in located)
    assert not any(t.kind == "refine" for t in result.trials)
    assert result.image is not None


def test_blank_is_a_setting_of_all_localized_strategies():
    from lotts_search.registry import make_strategy

    for name in ("lotts", "adaptive-lotts", "beam-in-mask", "particle"):
        made = make_strategy(name, {"blank": "whole"})
        assert isinstance(made, Localized) and made.blank == "whole"
        with pytest.raises(BadInput, match="blank"):
            make_strategy(name, {"blank": "top"})
