"""The nodes for ComfyUI: loaded, validated and run as ComfyUI does it, against a real server over the analytic model."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search import search
from lotts_search.work.image_files import mask_png
from lotts_search.work.masks import GivenMask
from tests.cli.test_cli import Masking
from tests.serve.running import PROMPT, Running, running

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
NAME = str(FOLDER).replace(".", "_x_")
KEY = "a-key-of-16-characters"
WIDGETS = {"STRING": str, "INT": int, "FLOAT": float}


def load() -> types.ModuleType:
    """Load the folder as a module outside of any package."""
    spec = importlib.util.spec_from_file_location(NAME, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE = load()
NODES: dict[str, Any] = MODULE.NODE_CLASS_MAPPINGS
GENERATE, REFINE = NODES["LottsSearchGenerate"], NODES["LottsSearchRefine"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"me {KEY}\n")
    with running(Masking(shuffle=1), keys=keys) as found:
        yield found


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's environment names the server and its key."""
    if "server" in request.fixturenames:
        monkeypatch.setenv("LOTTS_URL", request.getfixturevalue("server").url)
        monkeypatch.setenv("LOTTS_API_KEY", KEY)


def alone(**arguments: Any) -> Any:
    with Masking() as pool:
        return search(PROMPT, pool=pool, **arguments)


def defaults(node: Any) -> dict[str, Any]:
    """What the widgets of a node hold at first."""
    inputs = {name: given for group in node.INPUT_TYPES().values() for name, given in group.items()}
    return {name: given[1]["default"] for name, given in inputs.items() if len(given) > 1 and "default" in given[1]}


def execute(node: Any, linked: dict[str, Any] | None = None, **widgets: Any) -> Any:
    """Validate the widgets and run the node as ComfyUI does: computed inputs are None while it validates."""
    given = defaults(node) | widgets
    types_of = node.INPUT_TYPES()
    known = types_of["required"] | types_of["optional"]
    asked = inspect.getfullargspec(node.VALIDATE_INPUTS).args[1:]
    assert set(types_of["required"]) <= {*given, *(linked or {})} <= set(known)
    for name, value in given.items():
        kind, options = known[name]
        if name in asked:
            continue
        assert value in kind if isinstance(kind, list) else type(value) is WIDGETS[kind], name
        assert options.get("min", value) <= value <= options.get("max", value), name
    valid = node.VALIDATE_INPUTS(**{name: given.get(name) for name in asked})
    if valid is not True:
        raise AssertionError(valid)
    outputs = getattr(node(), node.FUNCTION)(**given, **(linked or {}))
    assert isinstance(outputs, tuple) and len(outputs) == len(node.RETURN_TYPES)
    return outputs


def pixels(image: Any) -> Any:
    return np.round(np.asarray(image) * 255).astype(np.uint8)


def test_loading_needs_neither_torch_nor_any_package() -> None:
    """In a Python without site-packages, so that only the standard library is there."""
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("custom", {str(FOLDER / "__init__.py")!r})
module = sys.modules["custom"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for node in module.NODE_CLASS_MAPPINGS.values():
    node.INPUT_TYPES()
    assert node.VALIDATE_INPUTS(budget=1.0, unit="nfe", settings="", server="") is True
    node.IS_CHANGED(server="")
print(sorted({{"torch", "numpy", "PIL"}} & set(sys.modules)), list(module.NODE_CLASS_MAPPINGS))
"""
    run = [sys.executable, "-I", "-S", "-c", program]
    shown = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60).stdout
    assert shown == "[] ['LottsSearchGenerate', 'LottsSearchRefine']\n"


@pytest.mark.parametrize("name", NODES)
def test_the_contract_of_a_node(name: str) -> None:
    node = NODES[name]
    assert MODULE.NODE_DISPLAY_NAME_MAPPINGS.keys() == NODES.keys() and "NODE_CLASS_MAPPINGS" in MODULE.__all__
    inputs = node.INPUT_TYPES()
    assert set(inputs) == {"required", "optional"}
    for group in inputs.values():
        for one in group.values():
            kind = one[0]
            assert isinstance(kind, list) or kind in {*WIDGETS, "IMAGE", "MASK"}
            options = one[1] if len(one) > 1 else {}
            default = options.get("default")
            if isinstance(kind, list):
                assert default in kind
            elif default is not None:
                assert type(default) is WIDGETS[kind]
                assert options.get("min", default) <= default <= options.get("max", default)
    assert all(isinstance(one, str) for one in (*node.RETURN_TYPES, node.CATEGORY, node.DESCRIPTION))
    assert len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
    assert callable(getattr(node, node.FUNCTION)) and not getattr(node, "OUTPUT_NODE", False)
    seed = inputs["required"]["seed"][1]
    assert seed["control_after_generate"] and float(seed["max"]) == seed["max"], "exact in JavaScript"


def test_generate_returns_the_image_of_the_search(server: Running) -> None:
    image, report = execute(
        GENERATE, prompt=PROMPT, strategy="best-of-n", budget=60.0, unit="nfe", seed=3, steps=4, guidance=2.0,
        negative_prompt="blue", settings='{"n": 5}',
    )  # fmt: skip
    result = alone(strategy="best-of-n", nfe=60, seed=3, steps=4, guidance=2.0, negative="blue", settings={"n": 5})
    assert isinstance(image, torch.Tensor) and image.dtype == torch.float32 and image.shape == (1, 6, 6, 3)
    assert np.array_equal(pixels(image[0]), result.image)
    assert report.startswith(
        f"seed 3, score {result.score:.4f}, done: lotts-search generate '{PROMPT}' --model analytic"
    )
    assert all(words in report for words in ("--negative blue", "--steps 4", "--guidance 2.0", "--nfe 60.0"))


def test_defaults_are_those_of_the_server(server: Running) -> None:
    image, _ = execute(GENERATE, prompt=PROMPT)
    assert np.array_equal(pixels(image[0]), alone(seed=0, images=9).image)


def test_without_torch_images_are_arrays(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    image, _ = execute(GENERATE, prompt=PROMPT, budget=1.0)
    assert type(image) is np.ndarray and image.dtype == np.float32
    again, _ = execute(REFINE, {"image": image}, prompt=PROMPT, budget=40.0, unit="nfe")
    assert type(again) is np.ndarray and again.shape == (1, 6, 6, 3)


def test_refine_resamples_the_mask_of_each_image(server: Running) -> None:
    images = np.full((2, 6, 6, 4), 60, np.uint8)
    images[1] = 190
    masks = np.zeros((2, 6, 6), np.float32)
    masks[0, :, 3:], masks[1, :2] = 0.5, 1.0
    tensors = {"image": torch.from_numpy(images.astype(np.float32) / 255), "mask": torch.from_numpy(masks)}
    refined, report = execute(REFINE, tensors, prompt=PROMPT, budget=40.0, unit="nfe", seed=5)
    assert refined.shape == (2, 6, 6, 3) and len(report.splitlines()) == 2
    for number, (image, mask) in enumerate(zip(images, masks >= 0.5, strict=True)):
        settings = {"mask": GivenMask(mask_png(mask))}
        result = alone(nfe=40, seed=5 + number, image=image[..., :3], settings=settings)
        assert np.array_equal(pixels(refined[number]), result.image)
        assert f"seed {5 + number}, score {result.score:.4f}" in report.splitlines()[number]


def test_one_mask_is_for_all_images_and_none_is_found(server: Running) -> None:
    image = torch.full((2, 6, 6, 3), 0.25)
    mask = torch.zeros(6, 6)
    mask[:, 3:] = 1
    refined, _ = execute(REFINE, {"image": image, "mask": mask}, prompt=PROMPT, budget=20.0, unit="nfe")
    settings = {"mask": GivenMask(mask_png(np.asarray(mask) > 0))}
    for number in range(2):
        expected = alone(nfe=20, seed=number, image=pixels(image[number]), settings=settings).image
        assert np.array_equal(pixels(refined[number]), expected)
    found, _ = execute(REFINE, {"image": image[:1]}, prompt=PROMPT, budget=20.0, unit="nfe")
    assert np.array_equal(pixels(found[0]), alone(nfe=20, seed=0, image=pixels(image[0])).image)
    with pytest.raises(ValueError, match="3 masks for 2 images"):
        execute(REFINE, {"image": image, "mask": torch.ones(3, 6, 6)}, prompt=PROMPT)


def test_notes_of_the_server_are_in_the_report(server: Running) -> None:
    _, report = execute(REFINE, {"image": torch.full((1, 12, 12, 3), 0.5)}, prompt=PROMPT, budget=20.0, unit="nfe")
    assert report.splitlines()[1:] == ["  the image: 12x12 resampled to 6x6"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"budget": 2.5}, "whole number, not 2.5"),
        ({"budget": 0.0}, "above 0"),
        ({"unit": "minutes"}, "unit must be images, nfe, seconds, not 'minutes'"),
        ({"settings": "[1]"}, "must be a JSON object"),
        ({"settings": "{"}, "must be a JSON object"),
        ({"server": "file:///etc/passwd"}, "server must be an address such as"),
        ({"server": "localhost:8000"}, "server must be an address such as"),
    ],
    ids=str,
)
def test_wrong_widgets_are_refused_when_they_are_queued(inputs: dict[str, Any], message: str) -> None:
    for node in NODES.values():
        given = {"budget": 1.0, "unit": "images", "settings": "", "server": ""} | inputs
        assert message in str(node.VALIDATE_INPUTS(**given))
        assert node.VALIDATE_INPUTS(**dict.fromkeys(given)) is True, "inputs that other nodes compute are not known yet"


def test_errors_are_those_of_the_server(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"answers 400: unknown strategy 'lots'; did you mean 'lotts'"):
        execute(GENERATE, prompt=PROMPT, strategy="lots")
    with pytest.raises(RuntimeError, match=r"no answer from http://127\.0\.0\.1:9: .*lotts-search serve"):
        execute(GENERATE, prompt=PROMPT, server="http://127.0.0.1:9")
    monkeypatch.delenv("LOTTS_API_KEY")
    with pytest.raises(RuntimeError, match="answers 401: an API key is needed"):
        execute(GENERATE, prompt=PROMPT)


def test_the_key_goes_to_the_server_of_the_environment_only(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(GENERATE, prompt=PROMPT, budget=1.0, server=server.url + "/")
    monkeypatch.setenv("LOTTS_URL", "https://images.example.org")
    with pytest.raises(RuntimeError, match="answers 401"):
        execute(GENERATE, prompt=PROMPT, budget=1.0, server=server.url)


def test_equal_inputs_are_cached_unless_the_server_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTS_URL", "http://one:1")
    inputs = defaults(GENERATE) | {"prompt": PROMPT}
    first = GENERATE.IS_CHANGED(**inputs)
    assert first == GENERATE.IS_CHANGED(**inputs)
    monkeypatch.setenv("LOTTS_URL", "http://two:2")
    assert first != GENERATE.IS_CHANGED(**inputs)
    assert GENERATE.IS_CHANGED(**inputs | {"server": None}) == "http://two:2"


class Bar:
    """Stands for ComfyUI's progress bar and its button to cancel."""

    shown: list[tuple[int, int, Any]]
    cancel_at: float

    def __init__(self, total: int):
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        Bar.shown.append((value, total or self.total, preview))


class Cancelled(Exception):
    """What ComfyUI raises in a node when its user cancels."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> type[Bar]:
    """ComfyUI's modules, as far as the nodes use them."""

    def check() -> None:
        if Bar.shown and Bar.shown[-1][0] >= Bar.cancel_at:
            raise Cancelled

    modules = {name: types.ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management")}
    modules["comfy.utils"].ProgressBar = Bar  # type: ignore[attr-defined]
    modules["comfy.model_management"].throw_exception_if_processing_interrupted = check  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    Bar.shown, Bar.cancel_at = [], float("inf")
    return Bar


def test_progress_is_shown_with_the_best_so_far(server: Running, comfy: type[Bar]) -> None:
    images = torch.full((2, 6, 6, 3), 0.25)
    execute(REFINE, {"image": images}, prompt=PROMPT, budget=60.0, unit="nfe")
    values = [value for value, _, _ in comfy.shown]
    assert values == sorted(values) and values[-1] == 1000 and 500 in values and len(set(values)) > 6
    assert {total for _, total, _ in comfy.shown} == {1000}
    previews = [preview for _, _, preview in comfy.shown if preview is not None]
    assert 2 <= len(previews) <= 6 and all(kind == "JPEG" and picture.size == (6, 6) for kind, picture, _ in previews)


def test_cancelling_ends_the_search_on_the_server(server: Running, comfy: type[Bar]) -> None:
    comfy.cancel_at = 10
    with pytest.raises(Cancelled):
        execute(GENERATE, prompt=PROMPT, budget=5000.0, unit="nfe")
    assert comfy.shown[-1][0] < 900
    deadline = time.monotonic() + 60
    while "lotts_searches_running 0.0" not in metrics(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def metrics(server: Running) -> str:
    return server.http.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text


def test_redirections_are_not_followed(server: Running) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Elsewhere(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{server.url}/v1/models")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        thread = Thread(target=other.handle_request)
        thread.start()
        with pytest.raises(RuntimeError, match="answers 302"):
            execute(GENERATE, prompt=PROMPT, server=f"http://127.0.0.1:{other.server_port}")
        thread.join()


def test_a_stream_that_breaks_off_is_an_error() -> None:
    nodes = sys.modules[f"{NAME}.nodes"]
    with pytest.raises(RuntimeError, match="ended the stream without an image"):
        nodes._watch((event for event in [{"type": "search.started"}]), nodes._Progress(1), 0)


def test_pyproject_is_what_the_registry_reads() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == [] and set(project["project"]["license"]) == {"text"}
    name, version = project["project"]["name"], project["project"]["version"]
    assert name[0].isalpha() and len(name) < 100 and "comfyui" not in name.lower() and "--" not in name
    assert len([int(part) for part in version.split(".")]) == 3
    assert {"PublisherId", "DisplayName"} <= set(project["tool"]["comfy"]) and "Repository" in project["project"][
        "urls"
    ]
