"""The tests that every verifier must pass. Subclass :class:`VerifierConformance` in your own test file::

    class TestBrightness(VerifierConformance):
        text = "my_verifier:Brightness"

pytest then runs them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from lotts_search.errors import BadInput
from lotts_search.registry import check_verifier, describe_verifier, load_verifier
from lotts_search.verifiers.base import Verifier
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.work.requests import Bytes, Floats

SIZES = ((1, 1), (37, 500), (512, 512))
"""Sizes (height, width) that every verifier must score, or refuse."""
_LOADED: dict[type, Verifier] = {}


class VerifierConformance:
    """Subclasses define :attr:`text`, and the other attributes where the defaults do not fit.

    Attributes:
        text: the verifier, as :func:`~lotts_search.registry.load_verifier` takes it.
        prompts: three different prompts that it can score.
        size: (height, width) of the images of most tests.
        refused: the sizes of :data:`SIZES` that it refuses by :class:`~lotts_search.errors.BadInput`.
        tolerance: the largest difference between scores of one image in different calls; None where a score may
            depend on its call by more.
        wrong: settings that it refuses although their types are right, each as ``{name: value}``.
    """

    text: ClassVar[str]
    prompts: ClassVar[tuple[str, str, str]] = ("a red star on gray", "two cats asleep on a sofa", "a")
    size: ClassVar[tuple[int, int]] = (64, 64)
    refused: ClassVar[Sequence[tuple[int, int]]] = ()
    tolerance: ClassVar[float | None] = 1e-5
    wrong: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def verifier(self) -> Verifier:
        """Return the verifier, which the tests of a class share."""
        if type(self) not in _LOADED:
            _LOADED[type(self)] = load_verifier(self.text)
        return _LOADED[type(self)]

    def images(self, size: tuple[int, int] | None = None) -> Bytes:
        """Return three images [3, h, w, 3]: noise, a gradient and a plain one."""
        height, width = size or self.size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        ramp = np.linspace(0, 255, width).astype(np.uint8)
        gradient = np.broadcast_to(ramp[None, :, None], noise.shape)
        return np.stack([noise, gradient, np.full_like(noise, 200)])

    def score(self, prompts: Sequence[str], images: Bytes) -> Floats:
        """Return the scores of a call, checked for their shape, type and range."""
        scores = self.verifier().score(list(prompts), images)
        assert isinstance(scores, np.ndarray) and scores.dtype == np.float32, "scores must be a float32 array"
        assert scores.shape == (len(images),), f"{len(images)} images have scores of shape {scores.shape}"
        assert np.isfinite(scores).all(), f"scores must be finite, not {scores}"
        return scores

    def same(self, scores: Floats, expected: Floats, what: str) -> None:
        """Assert that scores are equal within the tolerance."""
        if self.tolerance is not None:
            assert np.abs(scores - expected).max() <= self.tolerance, f"{what}: {scores}, not {expected}"

    def test_it_says_what_it_is(self) -> None:
        verifier = self.verifier()
        assert isinstance(verifier.name, str) and verifier.name
        assert isinstance(verifier.requirements, tuple)
        batch = getattr(verifier, "batch", None)
        assert batch is None or (type(batch) is int and batch >= 1)
        about = describe_verifier(VerifierSpec.parse(self.text).name)
        assert about.summary, "the class needs a docstring"
        assert not (bare := [one.name for one in about.settings if not one.doc]), f"settings without a text: {bare}"

    def test_a_call_has_a_finite_float32_score_per_image(self) -> None:
        for count in (1, 2, 3):
            self.score(self.prompts[:count], self.images()[:count])

    def test_scores_do_not_depend_on_the_other_images_of_a_call(self) -> None:
        images = self.images()
        single = [self.score([prompt], images[i : i + 1])[0] for i, prompt in enumerate(self.prompts)]
        self.same(self.score(self.prompts, images), np.array(single), "scored together and one by one")

    def test_scores_follow_their_images(self) -> None:
        images, order = self.images(), [2, 0, 1]
        expected = self.score(self.prompts, images)[order]
        self.same(self.score([self.prompts[i] for i in order], images[order]), expected, "in another order")

    def test_rows_may_repeat(self) -> None:
        """Repeated prompts, images, and both, as in a call that is filled up."""
        images, (first, second, _) = self.images(), self.prompts
        scores = self.score([first, first, second, first], images[[0, 1, 0, 0]])
        self.same(scores[3:], scores[:1], "one row twice")
        for row, (prompt, image) in enumerate([(first, 0), (first, 1), (second, 0)]):
            self.same(scores[row : row + 1], self.score([prompt], images[image : image + 1]), f"row {row} alone")

    def test_it_scores_or_refuses_any_size(self) -> None:
        for size in SIZES:
            if size in self.refused:
                with pytest.raises(BadInput):
                    self.verifier().score([self.prompts[0]], self.images(size)[:1])
            else:
                self.score(self.prompts[:1], self.images(size)[:1])

    def test_it_leaves_its_arguments_as_they_are(self) -> None:
        prompts, images = list(self.prompts), self.images()
        kept = copy.deepcopy((prompts, images))
        self.verifier().score(prompts, images)
        assert prompts == kept[0] and np.array_equal(images, kept[1])

    def test_wrong_settings_are_refused(self) -> None:
        """An unknown one, values of the wrong type, and those of :attr:`wrong`."""
        spec = VerifierSpec.parse(self.text)
        typed = [one.name for one in describe_verifier(spec.name).settings if not one.type.startswith("text")]
        for name in ("no_such_setting", *typed):
            with pytest.raises(BadInput, match=name):
                check_verifier(str(VerifierSpec(spec.name, {**spec.settings, name: "no such value"})))
        for settings in self.wrong:
            with pytest.raises(BadInput):
                load_verifier(str(VerifierSpec(spec.name, {**spec.settings, **settings})))
