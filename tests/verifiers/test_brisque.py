"""BRISQUE equals the package brisque, whose support vectors it reads."""

from __future__ import annotations

import pickletools
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lotts_search.errors import BadInput, Failure
from lotts_search.registry import load_verifier
from lotts_search.testing.verifier_conformance import VerifierConformance
from lotts_search.verifiers import brisque
from lotts_search.work.image_files import read_image
from lotts_search.work.requests import Bytes

PACKAGE = find_spec("brisque")
needs_package = pytest.mark.skipif(PACKAGE is None, reason="needs pip install --no-deps brisque==0.2.0")


def cloud(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise at five scales, with the spectrum of a photograph, as floats around 128."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    layers = sum(side * gaussian_filter(noise, (side, side, 0)) for side in (1, 2, 4, 8, 16))
    values: np.ndarray = 128 + 60 * layers / layers.std()
    return values


def pixels(values: np.ndarray) -> Bytes:
    return np.clip(values.round(), 0, 255).astype(np.uint8)


CLOUD = cloud(96, 128)
# BRISQUE(url=False).score(image) of brisque 0.2.0 with numpy 2.2.6 (it fails on 2.4), scipy 1.17.1, opencv 5.0.0.93.
PUBLISHED = {
    "cloud": (pixels(CLOUD), 42.56114513641543),
    "blurred": (pixels(gaussian_filter(CLOUD, (2, 2, 0))), 65.32681615157182),
    "noisy": (pixels(CLOUD + np.random.default_rng(1).normal(0, 25, CLOUD.shape)), 53.7974901696941),
    "odd sides": (pixels(cloud(75, 131, 2)), 38.285397193327725),
    "halves that round down": (pixels(cloud(75, 131, 2))[:73, :129], 38.26353143524622),
    "small": (pixels(CLOUD)[:33, :35], 52.17744264081986),
    "large": (pixels(cloud(512, 384, 3)), 41.47032053410905),
}


@needs_package
class TestBrisque(VerifierConformance):
    text = "brisque"
    refused = ((1, 1),)


@needs_package
@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_are_those_of_the_package(name: str) -> None:
    image, expected = PUBLISHED[name]
    verifier = brisque.Brisque.load()
    assert verifier.brisque(image) == pytest.approx(expected, abs=1e-9)
    assert verifier.score(["a"], image[None])[0] == pytest.approx(-expected, abs=1e-5)  # float32


@needs_package
def test_ranges_are_those_of_the_package() -> None:
    """Read from the operations of its pickle, which is not unpickled."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    operations = pickletools.genops((Path(PACKAGE.origin).parent / "models" / "normalize.pickle").read_bytes())
    found = [value for operation, value, _ in operations if operation.name in ("BINFLOAT", "SHORT_BINUNICODE")]
    assert found == ["min_", *brisque.LEAST, "max_", *brisque.MOST]


@needs_package
def test_plain_and_extreme_images_have_scores() -> None:
    """Where the package has NaN: a distribution without values on one side, or without any variation."""
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    images = np.stack([np.zeros_like(half), np.full_like(half, 255), half])
    scores = load_verifier("brisque").score(["a"] * 3, images)
    assert np.isfinite(scores).all() and (scores < -60).all()


def test_plain_areas_do_not_depend_on_rounding_errors() -> None:
    image = PUBLISHED["cloud"][0].copy()
    image[:, 64:] = 34
    grey = image @ np.array((0.2125, 0.7154, 0.0721)) / 255
    assert np.abs(brisque.features(grey) - brisque.features(grey * (1 + 1e-13))).max() < 1e-9


@needs_package
def test_images_of_any_mode_are_scored(tmp_path: Path) -> None:
    """As they are seen: a palette and an opaque alpha channel change nothing, grey is its own luminance."""
    image = Image.fromarray(PUBLISHED["cloud"][0])
    few = image.quantize(32)
    grey = image.convert("L")
    alike = [(few.convert("RGB"), few), (grey.convert("RGB"), grey), (image, image.convert("RGBA"))]
    verifier = load_verifier("brisque")
    for number, pair in enumerate(alike):
        scores = []
        for kind, one in enumerate(pair):
            file = tmp_path / f"{number} {kind}.png"
            one.save(file)
            scores.append(verifier.score(["a"], read_image(file, (96, 128))[None])[0])
        assert scores[0] == scores[1]


@needs_package
def test_images_that_are_too_small_are_refused() -> None:
    verifier = load_verifier("brisque")
    assert np.isfinite(verifier.score(["a"], PUBLISHED["cloud"][0][None, :16, :16])).all()
    with pytest.raises(BadInput, match=r"sides of 16 pixels or more, not 15x40"):
        verifier.score(["a"], np.zeros((1, 15, 40, 3), np.uint8))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brisque, "find_spec", lambda name: None)
    with pytest.raises(Failure, match=r"pip install --no-deps brisque==0\.2\.0"):
        load_verifier("brisque")


@needs_package
def test_other_support_vectors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PACKAGE is not None and PACKAGE.origin is not None
    shutil.copytree(Path(PACKAGE.origin).parent, tmp_path / "brisque")
    with (tmp_path / "brisque" / "models" / "svm.txt").open("a") as file:
        file.write("1 1:0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Failure, match=r"are not those of 0\.2\.0"):
        load_verifier("brisque")
    (tmp_path / "brisque" / "models" / "svm.txt").unlink()  # as in another package of this name
    with pytest.raises(Failure, match=r"are not those of 0\.2\.0"):
        load_verifier("brisque")
