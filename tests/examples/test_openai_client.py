"""The example of the official client, against a real server over the analytic model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openai
import pytest
from PIL import Image

from examples import openai_client
from lotts_search import search
from lotts_search.work.image_files import mask_png
from lotts_search.work.masks import GivenMask
from tests.cli.test_cli import Masking
from tests.serve.running import PROMPT, Running, running

Run: TypeAlias = Callable[..., None]
KEY = "a-key-of-16-characters"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"me {KEY}\n")
    with running(Masking(shuffle=1), keys=keys) as found:
        yield found


@pytest.fixture
def run(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a function that runs the program with the words of a command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOTTS_API_KEY", KEY)

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["openai_client.py", *words, "--url", server.url])
        openai_client.main()

    yield call


def pixels(path: str) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


def alone(**arguments: Any) -> Any:
    with Masking() as pool:
        return search(PROMPT, pool=pool, **arguments)


def test_it_generates_and_prints_seed_score_and_recipe(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "--prompt", PROMPT, "--nfe", "60", "--seed", "3", "--strategy", "best-of-n")
    result = alone(nfe=60, seed=3, strategy="best-of-n")
    assert np.array_equal(pixels("out/client/best.png"), result.image)
    shown = capsys.readouterr().out
    assert f"out/client/best.png: seed 3, score {result.score:.4f}" in shown
    assert f"lotts-search generate '{PROMPT}' --model analytic --strategy best-of-n" in shown and "--nfe 60.0" in shown


def test_it_streams_partial_images(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("stream", "--prompt", PROMPT, "--nfe", "200", "--seed", "2", "--strategy", "lotts", "--out", "out")
    result = alone(nfe=200, seed=2, strategy="lotts")
    assert np.array_equal(pixels("out/best.png"), result.image)
    partial = sorted(Path("out").glob("partial-*.png"))
    shown = capsys.readouterr().out.splitlines()
    assert 2 <= len(partial) <= 3 and shown[:-2] == [str(path) for path in partial]


def test_it_edits_the_white_places_of_a_mask(run: Run) -> None:
    image = np.full((6, 6, 3), 60, np.uint8)
    mask = np.zeros((6, 6), np.bool_)
    mask[:, 3:] = True
    Image.fromarray(image).save("in.png")
    Path("mask.png").write_bytes(mask_png(mask))
    run(
        "edit",
        "--prompt",
        PROMPT,
        "--image",
        "in.png",
        "--mask",
        "mask.png",
        "--nfe",
        "40",
        "--seed",
        "1",
        "--out",
        ".",
    )
    result = alone(nfe=40, seed=1, image=image, settings={"mask": GivenMask(mask_png(mask))})
    assert np.array_equal(pixels("edited.png"), result.image) and not np.array_equal(result.image, image)
    run("edit", "--prompt", PROMPT, "--image", "in.png", "--nfe", "40", "--seed", "1", "--out", ".")
    assert np.array_equal(pixels("edited.png"), alone(nfe=40, seed=1, image=image).image)


def test_it_lists_models(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("models")
    assert capsys.readouterr().out == "analytic: 6x6, 8 steps, verifiers shapes-reward\n"


def test_refusals_are_the_servers(run: Run) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean 'lotts'"):
        run("generate", "--prompt", PROMPT, "--strategy", "lots")
    with pytest.raises(openai.AuthenticationError, match="an API key is needed"):
        run("models", "--key", "wrong")


@pytest.mark.parametrize("words", [["edit"], ["generate", "--mask", "mask.png"], ["generate", "--image", "in.png"]])
def test_options_of_an_edit_belong_to_it(run: Run, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*words)
    assert "edit" in capsys.readouterr().err


def test_the_help_teaches(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "lotts-search serve --local",
        "extra_body",
        "LOTTS_API_KEY",
        "LOTTS_URL",
        "127.0.0.1:8000",
        "white places",
    ):
        assert words in shown
