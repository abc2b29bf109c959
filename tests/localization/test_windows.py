"""The mask source ``windows``: a verifier's scores of sliding windows."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput
from lotts_search.localization.locate import locate
from lotts_search.localization.select import unit
from lotts_search.work.masks import FusionMask, QualityMask, WindowMask, mask_from_dict, mask_to_dict
from lotts_search.work.requests import Bytes, Check, Floats, Locate, Result, Sampling, State
from tests.tiny import run, sample, tiny_backbone

SAMPLING = Sampling("a red circle", 4, 3.0)
IMAGE = (np.random.default_rng(0).integers(0, 256, (32, 32, 3)) * np.linspace(0.1, 1, 32)[:, None]).astype(np.uint8)
seen: list[tuple[str, int]] = []


class Range:
    """The negated range of an image's values, not the mean of anything; of images of 4 pixels or more."""

    name = "range"
    requirements: tuple[str, ...] = ()
    flops = 11.0

    @classmethod
    def load(cls, *, power: float = 1.0) -> Range:
        """Load it.

        Args:
            power: of the range.
        """
        self = cls()
        self.power = power  # type: ignore[attr-defined]
        return self

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        if images.shape[1] < 4:
            raise BadInput("too small to have a range")
        seen.extend((prompt, len(images)) for prompt in prompts[:1])
        spread = np.ptp(images.reshape(len(images), -1), axis=1) / 255
        found: Floats = -(spread**self.power).astype(np.float32)  # type: ignore[attr-defined]
        return found


RANGE = f"{__name__}:Range"


@pytest.fixture(scope="module")
def finished() -> State:
    (result,) = run(Engine(tiny_backbone(), 2), sample(0, SAMPLING))
    assert result.state is not None
    return result.state


def work(state: State, source: Any, image: Bytes | None = IMAGE) -> Locate:
    return Locate(5, ("seed 0",), state, SAMPLING, source, image)


def answer_of(work: Locate | Check) -> Result:
    """Return the answer of an engine; a localization runs in a thread of its own."""
    future = (engine := Engine(tiny_backbone(), 2)).submit(work)
    while engine.tick():
        pass
    return future.result(60)


@pytest.mark.parametrize(("patch", "stride"), [(8, 4), (8, 8), (12, 5), (31, 7), (4, 1)])
def test_heat_is_the_mean_over_the_windows_around_a_pixel(finished: State, patch: int, stride: int) -> None:
    total, count = np.zeros((32, 32)), np.zeros((32, 32))
    for top in range(33 - patch):
        for left in range(33 - patch):
            if all(edge % stride == 0 or edge + patch == 32 for edge in (top, left)):
                window = IMAGE[top : top + patch, left : left + patch]
                for y in range(top, top + patch):
                    for x in range(left, left + patch):
                        total[y, x] += (float(window.max() - window.min()) / 255) ** 3
                        count[y, x] += 1
    assert count.min() >= 1
    heat = (total / count).reshape(8, 4, 8, 4).mean((1, 3)).astype(np.float32)
    source = WindowMask(0.25, f"{RANGE}:power=3", patch, stride)
    direct = locate(tiny_backbone(), work(finished, source))
    assert np.allclose(direct.heat, unit(heat), atol=1e-4) and direct.mask.sum() == 16
    assert np.allclose(next(iter(direct.stages.values())), heat, atol=1e-5)
    answer = answer_of(work(finished, source))
    assert answer.located is not None and np.array_equal(answer.located.heat, direct.heat)
    assert (answer.usage.rows, answer.usage.nfe) == (0, 0)
    windows = math.ceil((32 - patch) / stride + 1) ** 2
    assert (answer.usage.scores, answer.usage.flops) == (windows, 11 * windows)


def test_windows_are_scored_in_batches_for_the_prompt(finished: State) -> None:
    locate(tiny_backbone(), work(finished, WindowMask(verifier=RANGE, patch=8, stride=4)))
    seen.clear()
    locate(tiny_backbone(), work(finished, WindowMask(verifier=RANGE, patch=8, stride=4)))
    assert seen == [("a red circle", 8)] * 7  # 49 windows


def test_it_can_be_fused_and_described(finished: State) -> None:
    source = FusionMask(0.25, (WindowMask(verifier=RANGE, patch=8, stride=8), QualityMask()))
    assert mask_from_dict(mask_to_dict(source)) == source
    answer = answer_of(work(finished, source))
    assert answer.located is not None and list(answer.located.stages) == ["1 windows", "2 quality", "fused"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"windows of 64 pixels are too large for images of 32x32: patch must be below 32, e.g. patch 16 and stride 8"),
        ({"patch": 32}, "patch must be below 32"),
        ({"patch": 3, "stride": 3}, "too small to have a range"),
        ({"patch": 8, "stride": 4, "verifier": "shapes-oracle"}, "held out"),
        ({"patch": 8, "stride": 4, "verifier": "brisk"}, "did you mean 'brisque'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_search(settings: dict[str, Any], message: str) -> None:
    """A search submits a check first."""
    source = WindowMask(**{"verifier": RANGE} | settings)
    with pytest.raises(BadInput, match=message):
        answer_of(Check(SAMPLING, "shapes-reward", source))


def test_windows_leave_no_gaps() -> None:
    for patch, stride in ((8, 9), (8, 0), (0, 0)):
        with pytest.raises(BadInput, match=f"stride must be 1 to patch, {patch} pixels, not {stride}"):
            mask_from_dict({"kind": "windows", "patch": patch, "stride": stride})


@pytest.mark.skipif(find_spec("brisque") is None, reason="needs pip install --no-deps brisque==0.2.0")
def test_brisque_finds_the_blurred_quarter(finished: State) -> None:
    noise = np.random.default_rng(0).standard_normal((256, 256, 3))
    cloud = sum(side * gaussian_filter(noise, (side, side, 0)) for side in (1, 2, 4, 8))
    image = 128 + 60 * cloud / cloud.std()
    image[:128, :128] = gaussian_filter(image[:128, :128], (2, 2, 0))
    found = locate(tiny_backbone(), work(finished, WindowMask(0.25), image.clip(0, 255).astype(np.uint8)))
    assert found.mask[:4, :4].sum() >= 14
