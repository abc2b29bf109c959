"""The verifier ``ocr``: what it looks for, how it compares, and, where rapidocr is installed, what it reads."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lotts_search.errors import BadInput, Failure
from lotts_search.registry import load_verifier
from lotts_search.testing.verifier_conformance import VerifierConformance
from lotts_search.verifiers import ocr
from lotts_search.verifiers.ocr import Ocr, legibility, quoted
from lotts_search.work.requests import Bytes

needs_reader = pytest.mark.skipif(
    find_spec("rapidocr") is None or find_spec("onnxruntime") is None,
    reason="needs pip install 'lotts-search[ocr]', 120 MB",
)
PLAIN = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says 'OPEN' in a baker's window", ["OPEN"]),
        ("a sign that says 'DON'T WALK'", ["DON'T WALK"]),
        ("the dogs' bowl and the cats' toys", []),
        ("“Fresh Coffee” over „heute neu“ and «déjà vu»", ["Fresh Coffee", "heute neu", "déjà vu"]),
        ("‘it’s on’ beside 「開店」", ["it’s on", "開店"]),
        ('"a" and "b\nc"', ["a", "b\nc"]),
        ('an empty "" and a blank " " label', []),
        ('a 12" pizza', []),
        ("a red fox", []),
    ],
)
def test_quoted_texts(prompt: str, texts: list[str]) -> None:
    assert quoted(prompt) == texts


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("OPEN", ["open"], 1),
        ("OPEN", ["we are OPEN today"], 1),
        ("OPEN", ["OPENN"], 4 / 5),
        ("OPEN", ["OPFN"], 3 / 4),
        ("OPEN", [], 0),
        ("OPEN", ["zzzz"], 0),
        ("Fresh Coffee", ["Fresh", "Coffee"], 1),
        ("Fresh Coffee", ["FreshCoffee 24h"], 1),
        ("Fresh Coffee", ["Fresh", "Tea", "Coffee"], 1 - 3 / 14),
        ("Fresh Coffee", ["24h Fresh", "Coffee now"], 1),
        ("ﬁsh", ["FISH"], 1),  # a ligature
    ],
)
def test_legibility(text: str, lines: list[str], expected: float) -> None:
    assert legibility(text, lines) == pytest.approx(expected)


def distance(one: str, other: str) -> int:
    """The edit distance by its recursive definition."""

    @functools.cache
    def rest(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return len(one) - i + len(other) - j
        if one[i] == other[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


def test_legibility_is_that_of_the_best_run_of_words() -> None:
    """Against all runs, without leaving any out."""
    rng = random.Random(0)
    for _ in range(200):
        words = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 7))]
        text = "".join(rng.choices("abc ", k=rng.randint(1, 9))) + "a"
        wanted = text.replace(" ", "")
        runs = ["".join(words[i:j]) for i, j in itertools.combinations(range(len(words) + 1), 2)]
        best = max(1 - distance(run, wanted) / max(len(run), len(wanted)) for run in runs)
        assert legibility(text, [" ".join(words[:3]), " ".join(words[3:])]) == pytest.approx(best)


def reading(*lines: str) -> Any:
    def read(image: Bytes) -> Sequence[str]:
        return lines

    return read


def test_a_score_is_the_mean_over_the_texts() -> None:
    verifier = Ocr(reading("OPEN", "24 h"))
    scores = verifier.score(['"open" and "25h"', '"open"', "'closed'"], np.repeat(PLAIN, 3, 0))
    assert scores.dtype == np.float32 and scores == pytest.approx([(1 + 2 / 3) / 2, 1, 1 / 3])


def test_prompts_without_a_text_are_refused_or_have_the_score_that_was_set() -> None:
    read: list[Bytes] = []
    with pytest.raises(BadInput, match=r"the prompt 'a fox' has none: quote it, e\.g\..*ocr:unquoted=0"):
        Ocr(lambda image: read.append(image) or []).score(['"a"', "a fox"], np.repeat(PLAIN, 2, 0))  # type: ignore[func-returns-value]
    assert read == []
    assert Ocr(reading("a"), 0.5).score(["a fox", '"a"'], np.repeat(PLAIN, 2, 0)) == pytest.approx([0.5, 1])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    with pytest.raises(Failure, match=r"needs rapidocr and onnxruntime: pip install 'lotts-search\[ocr\]'"):
        load_verifier("ocr")


@needs_reader
def test_models_are_never_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "_MODELS", {"Det": "another.onnx"})
    with pytest.raises(Failure, match=r"has no model another\.onnx"):
        load_verifier("ocr")


def drawn(text: str, side: int = 256) -> Bytes:
    """Black text on a light ground."""
    image = Image.new("RGB", (side, side), (240, 230, 200))
    font = ImageFont.load_default(side // 7)
    ImageDraw.Draw(image).multiline_text((side // 12, side // 3), text, "black", font)
    return np.asarray(image)


@pytest.mark.slow
@needs_reader
def test_texts_in_images_are_read() -> None:
    images = np.stack([drawn(text) for text in ("OPEN", "OPFN", "FRESH\nCOFFEE", "")])
    verifier = load_verifier("ocr")
    assert verifier.score(['a shop, "Open"'] * 4, images)[[0, 1, 3]] == pytest.approx([1, 0.75, 0])
    assert verifier.score(['"fresh coffee"'] * 4, images)[2] == pytest.approx(1)


@pytest.mark.slow
@needs_reader
class TestOcr(VerifierConformance):
    text = "ocr"
    prompts = ('"open"', "a sign, 'closed'", 'a "b" c')
    size = (96, 96)

    def images(self, size: tuple[int, int] | None = None) -> Bytes:
        images = super().images(size)
        if size is None:
            images[0] = drawn("OPEN", 96)
        return images
