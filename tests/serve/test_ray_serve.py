"""The endpoint on Ray Serve, as users start it."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
import yaml
from openai import OpenAI
from PIL import Image
from ray.serve.schema import ServeDeploySchema

from lotts_search import registry, search
from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import BadInput
from lotts_search.serve import app
from lotts_search.serve.config import parse
from lotts_search.serve.deployment import needed
from tests.serve.test_embedded import PROMPT

KEY = "0123456789abcdef"
WAIT_S = 240
ROOT = Path(__file__).parents[2]


def test_serve_run_builds_the_application() -> None:
    deployment = app({"models": ["shapes-sd"], "searches": 7, "retry_after_s": 2})._bound_deployment
    backpressure = deployment._deployment_config.backpressure_config
    assert (backpressure.status_code, backpressure.retry_after_s) == (429, 2)
    assert deployment.num_replicas == 1 and deployment.max_queued_requests == 7


def test_the_endpoint_asks_for_the_gpus_of_its_models() -> None:
    model = {"name": "shapes-sd", "load": {"device": "cuda", "spread": 2}, "generators": 3}
    assert needed(parse({"models": [model, "shapes-flux"]}))["GPU"] == 6
    with pytest.raises(BadInput, match="gpus=1: a model that is spread over 2 GPUs needs a generator with as many"):
        needed(parse({"models": [model | {"gpus": 1}]}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "shapes-sd"}, "did you mean 'models'"),
        ({"models": []}, "models: List should have at least 1 item"),
        ({"models": [{"name": "x", "generator": 1}]}, "did you mean"),
        ({"searches": 0}, "searches"),
        ({"deadline_s": float("inf")}, "deadline_s"),
    ],
)
def test_a_wrong_configuration_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        app(fields)


def test_the_files_of_the_guide_are_right() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), re.DOTALL)
    found = [yaml.safe_load(block) for block in blocks]
    served = [yaml.safe_load(one["spec"]["serveConfigV2"]) if "spec" in one else one for one in found]
    deployed = [ServeDeploySchema.model_validate(one) for one in served if "applications" in one]
    configs = [parse(one.applications[0].args) for one in deployed] + [parse(one) for one in served if "models" in one]
    assert len(deployed) == 3 and len(configs) == 4
    assert all(one.applications[0].import_path == "lotts_search.serve:app" for one in deployed)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"anna {KEY}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    command = [sys.executable, "-m", "lotts_search", "serve", "--port", str(number), "--keys", str(keys)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + WAIT_S
            while time.monotonic() < end:
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(f"http://127.0.0.1:{number}/readyz").status_code == 200:
                        break
                assert process.poll() is None
                time.sleep(0.5)
            yield number
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            _, alive = psutil.wait_procs(children, timeout=120)  # agents look for their raylet now and then
            assert not alive, f"left behind: {alive}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def client(port: int) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=WAIT_S)


@pytest.mark.slow
def test_an_image_is_that_of_a_search_in_one_process(client: OpenAI) -> None:
    (image,) = client.images.generate(prompt=PROMPT, model="shapes-sd", extra_body={"images": 3, "seed": 2}).data
    verifier = registry.default_verifier("shapes-sd")
    with LocalPool(
        registry.load_backbone("shapes-sd"), {verifier: registry.load_verifier(verifier)}, threads=1
    ) as pool:
        result = search(PROMPT, pool=pool, images=3, seed=2)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json)))), result.image)
    assert shlex.split(image.recipe)[:2] == ["lotts-search", "generate"]


@pytest.mark.slow
def test_a_stream_comes_in_parts(client: OpenAI) -> None:
    events = client.images.generate(
        prompt=PROMPT, model="shapes-sd", stream=True, partial_images=2, extra_body={"nfe": 60}
    )
    times = [(time.monotonic(), event.type) for event in events]
    assert times[0][1].endswith("partial_image") and times[-1][1].endswith("completed")
    assert times[-1][0] - times[0][0] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_search(port: int, stream: bool) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"prompt": PROMPT, "images": 500, "stream": stream, "partial_images": 1 if stream else None}
        with contextlib.suppress(httpx2.TimeoutException):
            http.post("/v1/images/generations", json=body, timeout=3)
        end = time.monotonic() + 60
        left = [1.0]
        while any(left) and time.monotonic() < end:
            text = http.get("/metrics", timeout=60).text
            left = [
                float(one)
                for one in re.findall(
                    r"^lotts_(?:searches_running|work_waiting|rows_running)\S* (.*)$", text, re.MULTILINE
                )
            ]
        assert len(left) == 3 and not any(left)


@pytest.mark.slow
def test_nothing_listens_to_the_network(client: OpenAI) -> None:
    client.models.list()
    mine = psutil.Process(os.getpid()).children(recursive=True)
    assert any("ServeReplica" in " ".join(one.cmdline()) for one in mine)
    for process in mine:
        for found in process.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN:
                assert found.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1"), (process.cmdline(), found)


@pytest.mark.slow
def test_keys_are_asked_for(port: int) -> None:
    for path, status in (("/v1/models", 401), ("/metrics", 401), ("/", 401), ("/healthz", 200)):
        assert httpx2.get(f"http://127.0.0.1:{port}{path}").status_code == status
