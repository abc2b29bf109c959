"""The conformance tests of verifiers: a good one passes, and each kind of fault is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lotts_search.errors import BadInput
from lotts_search.testing.verifier_conformance import SIZES, VerifierConformance
from lotts_search.work.requests import Bytes, Floats


class Brightness:
    """Mean brightness above a threshold."""

    name = "brightness"
    requirements: tuple[str, ...] = ()

    def __init__(self, least: float = 0.0):
        self.least = least

    @classmethod
    def load(cls, *, least: float = 0.0) -> Brightness:
        """Load it.

        Args:
            least: the threshold, 0..1.
        """
        if not 0 <= least <= 1:
            raise BadInput(f"least must be 0..1, not {least}")
        return cls(least)

    def score(self, prompts: list[str], images: Bytes) -> Any:
        return (images.mean(axis=(1, 2, 3)) / 255 - self.least).astype(np.float32)


class TestGood(VerifierConformance):
    text = f"{__name__}:Brightness"
    wrong = ({"least": 2},)


class TestShapesReward(VerifierConformance):
    text = "shapes-reward"
    refused = SIZES
    wrong = ({"weights": "no/such/folder"},)


class TestShapesRewardX0(TestShapesReward):
    text = "shapes-reward-x0"


class WrongType(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        return super().score(prompts, images).astype(np.float64)


class WrongShape(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        return super().score(prompts, images)[:, None]


class NotFinite(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        return np.log(images.std(axis=(1, 2, 3))).astype(np.float32)


class Relative(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        found: Floats = super().score(prompts, images)
        return found - found.mean()


class Sorted(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        return np.sort(super().score(prompts, images))


class OncePerPrompt(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        first = [prompts.index(prompt) for prompt in prompts]
        return super().score(prompts, images[first])


class OneSize(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        if images.shape[1] != 64:
            raise ValueError("the size")
        return super().score(prompts, images)


class InPlace(Brightness):
    def score(self, prompts: list[str], images: Bytes) -> Any:
        images //= 2
        return super().score(prompts, images)


class Unnamed(Brightness):
    requirements: Any = "numpy"


class Careless(Brightness):
    @classmethod
    def load(cls, *, least: float = 0.0) -> Brightness:
        return cls(least)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (WrongType, "test_a_call_has_a_finite_float32_score_per_image"),
        (WrongShape, "test_a_call_has_a_finite_float32_score_per_image"),
        (NotFinite, "test_a_call_has_a_finite_float32_score_per_image"),
        (Relative, "test_scores_do_not_depend_on_the_other_images_of_a_call"),
        (Sorted, "test_scores_follow_their_images"),
        (OncePerPrompt, "test_rows_may_repeat"),
        (OneSize, "test_it_scores_or_refuses_any_size"),
        (InPlace, "test_it_leaves_its_arguments_as_they_are"),
        (Unnamed, "test_it_says_what_it_is"),
        (Careless, "test_it_says_what_it_is"),
        (Careless, "test_wrong_settings_are_refused"),
    ],
)
def test_a_fault_is_found(fault: type, test: str) -> None:
    class Case(VerifierConformance):
        text = f"{__name__}:{fault.__name__}"
        wrong = ({"least": 2},)

    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        getattr(Case(), test)()


def test_a_size_that_should_be_refused_must_be() -> None:
    class Case(VerifierConformance):
        text = f"{__name__}:Brightness"
        refused = ((1, 1),)

    with pytest.raises(pytest.fail.Exception):
        Case().test_it_scores_or_refuses_any_size()


def test_scores_may_depend_on_their_call_where_the_class_says_so() -> None:
    class Case(VerifierConformance):
        text = f"{__name__}:Relative"
        tolerance = None

    Case().test_scores_do_not_depend_on_the_other_images_of_a_call()
    Case().test_scores_follow_their_images()
