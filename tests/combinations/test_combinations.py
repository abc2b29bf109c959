"""Verifiers made of others."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import percentileofscore

from lotts_search.combinations.noisy import Noisy
from lotts_search.combinations.rank_ensemble import RankEnsemble
from lotts_search.errors import BadInput
from lotts_search.registry import load_verifier
from lotts_search.testing.verifier_conformance import VerifierConformance
from lotts_search.verifiers.base import Verifier
from lotts_search.work.requests import Bytes, Floats

LIGHT, LENGTH = f"{__name__}:Light", f"{__name__}:Length"
IMAGES = np.stack([np.full((6, 4, 3), level, np.uint8) for level in (0, 51, 255)])
PROMPTS = ["a", "bb", "ccc"]


class Light:
    """Brightness to a power, 0..1."""

    name = "light"
    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(self, power: float, batch: int):
        self.power, self.batch = power, batch

    @classmethod
    def load(cls, *, power: float = 1.0, batch: int = 16) -> Light:
        """Load it.

        Args:
            power: the exponent.
            batch: most images in one call.
        """
        return cls(power, batch)

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        found: Floats = (images.mean(axis=(1, 2, 3)) / 255) ** self.power
        return found.astype(np.float32)


class Length:
    """The length of the prompt."""

    name = "length"
    requirements: tuple[str, ...] = ()

    @classmethod
    def load(cls) -> Length:
        return cls()

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        return np.array([len(prompt) for prompt in prompts], np.float32)


class TestWeighted(VerifierConformance):
    text = f'weighted:of={{"{LIGHT}:power=2": 1, "{LENGTH}": 0.5}}'
    wrong = ({"of": {}}, {"of": {LIGHT: 0}}, {"of": {"no-such": 1}}, {"of": {f"{LIGHT}:powr=1": 1}})


class TestNoisy(VerifierConformance):
    text = f"noisy:of={LIGHT},sd=0.3"
    wrong = ({"sd": -1}, {"of": [LIGHT, LENGTH]}, {"of": "no-such"})


class TestRankEnsemble(VerifierConformance):
    wrong = ({"of": [f"{LIGHT}:powr=1"]}, {"reference": "no/such/file.parquet"})

    @pytest.fixture(autouse=True)
    def table(self, tmp_path: Path) -> None:
        type(self).text = f'rank-ensemble:of=["{LIGHT}"],reference={reference(tmp_path)}'

    def verifier(self) -> Verifier:
        return load_verifier(self.text)


def reference(folder: Path, **columns: list[float | None]) -> Path:
    columns = columns or {"score": [3, 1, 2, 1, None], "metric_Light": [0.2, 0.9, 0.5, 0.2, None]}
    pq.write_table(pa.table(columns), folder / "trials.parquet")
    return folder / "trials.parquet"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('weighted:of={"shapes-reward": 1e31}', "weights must be within ±1e"),
        ('weighted:of={"shapes-reward": NaN}', "weights must be within ±1e"),
        ('weighted:of={"shapes-reward": 0}', "and not all 0"),
        ("noisy:of=shapes-reward,sd=1e39", "sd of noisy must be within 0..1e"),
        ("noisy:of=shapes-reward,sd=nan", "sd of noisy must be within 0..1e"),
        ("noisy:of=shapes-reward,sd=-1", "sd of noisy must be within 0..1e"),
    ],
)
def test_factors_that_would_make_scores_infinite_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        load_verifier(text)


def test_a_weighted_sum() -> None:
    made = load_verifier(f'weighted:of={{"{LIGHT}:power=2,batch=3": 2, "{LENGTH}": -0.5}}')
    assert made.score(PROMPTS, IMAGES) == pytest.approx([-0.5, 2 * 0.04 - 1, 2 - 1.5])
    assert (made.batch, made.pad) == (3, True)  # type: ignore[attr-defined]


def test_percentiles_in_the_reference(tmp_path: Path) -> None:
    made = load_verifier(f'rank-ensemble:of=["{LIGHT}", "{LENGTH}"],reference={reference(tmp_path)}')
    light, length = [0.2, 0.9, 0.5, 0.2], [3, 1, 2, 1]
    expected = [
        (percentileofscore(light, a, "mean") + percentileofscore(length, b, "mean")) / 200
        for a, b in zip([0, 0.2, 1], [1, 2, 3], strict=True)
    ]
    # The reference of a study holds float32 scores.
    path = reference(tmp_path, score=length, metric_Light=np.array(light, np.float32).astype(float).tolist())
    made = load_verifier(f'rank-ensemble:of=["{LIGHT}", "{LENGTH}"],reference={path}')
    assert isinstance(made, RankEnsemble)
    assert made.score(PROMPTS, IMAGES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [1.0]}, "lacks the columns metric_Light, metric_Length"),
        ({"metric_Light": [1.0]}, "lacks the columns metric_Length"),
        ({"metric_Light": [None], "metric_Length": [1.0]}, "column metric_Light .* has no scores"),
        ({"metric_Light": [1.0, float("nan")], "metric_Length": [1.0, 2.0]}, "not finite"),
    ],
)
def test_a_reference_without_the_scores_is_refused(tmp_path: Path, columns: dict, message: str) -> None:
    path = reference(tmp_path, **columns)
    with pytest.raises(BadInput, match=message):
        load_verifier(f'rank-ensemble:of=["{LIGHT}", "{LENGTH}"],reference={path}')


def test_noise_belongs_to_the_image_and_its_prompt() -> None:
    made, again, other = (
        load_verifier(f"noisy:of={LIGHT},sd={sd},seed={seed}") for sd, seed in ((0.1, 0), (0.2, 0), (0.1, 1))
    )
    clean = Light.load().score(PROMPTS, IMAGES)
    noise = made.score(PROMPTS, IMAGES) - clean
    assert again.score(PROMPTS, IMAGES) - clean == pytest.approx(2 * noise, abs=1e-6)
    assert not np.allclose(other.score(PROMPTS, IMAGES) - clean, noise)
    repeated = made.score(["x", "x", "y"], IMAGES[[0, 0, 0]])
    assert repeated[0] == repeated[1] != repeated[2]


def test_noise_is_standard_normal() -> None:
    noisy = Noisy(Light.load(), 0.5, 3)
    images = np.random.default_rng(0).integers(0, 256, (4000, 2, 2, 3), dtype=np.uint8)
    noise = noisy.score(["p"] * 4000, images) - Light.load().score(["p"] * 4000, images)
    assert abs(noise.mean()) < 4 * 0.5 / 4000**0.5
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    assert np.mean(np.abs(noise) < 0.5) == pytest.approx(0.6827, abs=0.03)
