"""Names of verifiers with settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotts_search.cli import main
from lotts_search.errors import BadInput
from lotts_search.registry import (
    check_verifier,
    describe_verifier,
    load_verifier,
    verifier_contents,
    verifier_parts,
    verifier_target,
)
from lotts_search.verifiers.spec import VerifierSpec


class Judge:
    """Scores by its settings."""

    name = "judge"
    requirements: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    @classmethod
    def load(
        cls,
        *,
        weights: str = "",
        level: float = 0.5,
        device: Literal["cpu", "cuda"] = "cpu",
        of: dict[str, float] | None = None,
        parts: tuple[str, ...] = (),
    ) -> Judge:
        """Load it.

        Args:
            weights: a file
                of numbers.
            level: the threshold, 0..1.

        Raises:
            BadInput: never.
        """
        return cls({"weights": weights, "level": level, "device": device, "of": of, "parts": parts})

    def score(self, prompts: list[str], images: np.ndarray) -> np.ndarray:
        return np.full(len(prompts), self.settings["level"], np.float32)


class Demanding(Judge):
    @classmethod
    def load(cls, *, endpoint: str) -> Demanding:  # type: ignore[override]
        return cls({"endpoint": endpoint})


JUDGE = f"{__name__}:Judge"


@pytest.mark.parametrize(
    "text, name, settings",
    [
        ("pickscore", "pickscore", {}),
        ("pickscore:device=cuda,dtype=float16", "pickscore", {"device": "cuda", "dtype": "float16"}),
        ("my.module:Judge", "my.module:Judge", {}),
        ("my.module:Judge:level=0.25, weights = a:b=c/d.pt", "my.module:Judge", {"level": "0.25", "weights": "a:b=c/d.pt"}),
        ('x:of={"a:k=1": 2, "b": 0.5},n=[1, 2]', "x", {"of": {"a:k=1": 2, "b": 0.5}, "n": [1, 2]}),
        ('x:weights="a, b.pt"', "x", {"weights": "a, b.pt"}),
        ("x:of=", "x", {"of": ""}),
    ],
)  # fmt: skip
def test_a_text_holds_name_and_settings(text: str, name: str, settings: dict[str, Any]) -> None:
    spec = VerifierSpec.parse(text)
    assert (spec.name, spec.settings) == (name, settings)
    assert VerifierSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "a verifier is NAME or NAME:KEY=VALUE"),
        ("device=cuda", "a verifier is NAME or"),
        ("x:device=cuda,", None),
        ("x:device=cuda,float16", "KEY=VALUE is expected at 'float16'"),
        ("x:device=cuda,device=cpu", "device is given twice"),
        ('x:of={"a": 1', "of is not JSON"),
        ('x:of={"a": 1}b=2', "a comma is expected at 'b=2'"),
    ],
)
def test_a_text_of_another_form_is_refused(text: str, message: str | None) -> None:
    if message is None:
        assert VerifierSpec.parse(text).settings == {"device": "cuda"}
        return
    with pytest.raises(BadInput, match=message):
        VerifierSpec.parse(text)


VALUES = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), VALUES, max_size=4))
def test_what_is_written_is_read_again(settings: dict[str, Any]) -> None:
    text = str(VerifierSpec("my.module:Judge", settings))
    read = VerifierSpec.parse(text)
    assert str(read) == text  # numbers become texts, which `load`'s types turn back
    assert read.settings.keys() == settings.keys()
    assert {k: v for k, v in read.settings.items() if not isinstance(settings[k], int | float)} == {
        k: v for k, v in settings.items() if not isinstance(v, int | float)
    }


def test_settings_are_arguments_of_load_by_their_types() -> None:
    loaded: Any = load_verifier(f'{JUDGE}:level=0.25,device=cuda,of={{"a": 2}},parts=a,weights=w')
    assert loaded.settings == {
        "weights": "w",
        "level": 0.25,
        "device": "cuda",
        "of": {"a": 2},
        "parts": ("a",),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        (f"{JUDGE}:levl=1", "unknown setting of verifier .*'levl'; did you mean 'level'"),
        (f"{JUDGE}:level=high", "level of verifier .* must be a number, not 'high'"),
        (f"{JUDGE}:device=tpu", "device of verifier .* must be cpu or cuda, not 'tpu'"),
        (f'{JUDGE}:of={{"a": "b"}}', "of of verifier .* must be JSON of names with a number"),
        (f"{__name__}:Demanding", "verifier .* needs endpoint"),
        ("shapes-reward:level=1", "unknown setting of verifier 'shapes-reward': 'level'"),
        ("shapes-oracle", "shapes-oracle is held out: it may be a metric of a study, never the verifier"),
        ("tests.actors.fakes:Brightness:level=1", "has no settings: leave out level"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_loaded(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_verifier(text)


def test_a_verifier_is_described_with_its_settings() -> None:
    found = describe_verifier(JUDGE)
    assert found.summary == "Scores by its settings."
    assert [(s.name, s.default, s.doc) for s in found.settings[:2]] == [
        ("weights", "", "a file of numbers."),
        ("level", 0.5, "the threshold, 0..1."),
    ]
    assert found.settings[2].type == "cpu or cuda"


def test_the_contents_of_its_files_are_part_of_a_verifier(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"one")
    text = f"{JUDGE}:weights={weights}"
    combined = f'{JUDGE}:of={{"{JUDGE}:weights={weights}": 1}}'
    first, whole = verifier_contents(text), verifier_contents(combined)
    assert first == verifier_contents(f"{text},level=1") != verifier_contents(JUDGE)
    assert verifier_parts(combined) == [combined, text]
    weights.write_bytes(b"two")
    assert verifier_contents(text) != first
    assert verifier_contents(combined) != whole
    assert verifier_target(text) == JUDGE
    assert verifier_contents("an object of the caller's") == "unchecked"


def test_the_command_line_takes_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "generate",
        "center red star on gray",
        "--local",
        "--images",
        "2",
        "--strategy",
        "best-of-n",
        "--steps",
        "2",
    ]

    def code(*arguments: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return ended.value.code

    assert code(*words, "--out", str(tmp_path / "out"), "--verifier", f"{JUDGE}:level=0.25") == 0
    assert "score 0.2500" in capsys.readouterr().out
    assert code(*words, "--out", str(tmp_path / "no"), "--verifier", f"{JUDGE}:level=high") == 2
    assert "must be a number, not 'high'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert code("verifiers", JUDGE) == 0
    assert "the threshold, 0..1." in capsys.readouterr().out
