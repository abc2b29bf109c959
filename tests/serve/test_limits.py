"""What the server refuses, always in OpenAI's form, and what it does about clients that go away."""

from __future__ import annotations

import io
import json
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from PIL import Image

from lotts_search.cli.run_serve import run as serve
from lotts_search.errors import BadInput
from lotts_search.serve.asked import CLOSED
from lotts_search.serve.keys import VARIABLE, Keys, Quota
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Segment
from tests.serve.running import PROMPT, Running, running

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(body_bytes=2_000_000, pixels=10_000, request_nfe=2_000) as found:
        yield found


def refused(answer: httpx2.Response, status: int = 400, param: str | None = None) -> str:
    """The message of an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == (param or error["param"])
    assert error["type"] != "server_error"
    return str(error["message"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, None),
        ({"prompt": "a\0b"}, None),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"n": 2.0}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"size": "1024x1024"}, "size"),
        ({"size": "big"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": 2}, "partial_images"),
        ({"events": True}, "events"),
        ({"stream": True, "n": 2}, "n"),
        ({"user": "x" * 257}, "user"),
        ({"moderation": "low"}, "moderation"),
        ({"nope": 1}, "nope"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**63 - 2, "n": 3}, "seed"),
        ({"num_inference_steps": 10**9}, "num_inference_steps"),
        ({"num_inference_steps": 201}, "num_inference_steps"),
        ({"guidance_scale": 1e9}, "guidance_scale"),
        ({"guidance_scale": 0.5}, None),
        ({"negative_prompt": "x", "guidance_scale": 1.0}, None),
        ({"nfe": 0}, "nfe"),
        ({"nfe": 1}, None),
        ({"nfe": 1e300}, "nfe"),
        ({"nfe": 2_001}, None),
        ({"images": 10**9}, "images"),
        ({"images": 300}, None),
        ({"n": 10, "nfe": 300}, None),
        ({"images": 2, "budget": 2}, "budget"),
        ({"images": 2, "quality": "low"}, "quality"),
        ({"seconds": -1.0}, "seconds"),
        ({"strategy": "os:system"}, None),
        ({"strategy": "../../etc/passwd"}, None),
        ({"strategy": "lots"}, None),
        ({"verifier": "os:system"}, None),
        ({"settings": {"nope": 1}}, None),
        ({"settings": {"refinements": "many"}}, None),
        ({"settings": {"refinements": 10**9}}, "settings"),
        ({"settings": {"initial": 10**400}}, None),
        ({"settings": [1]}, "settings"),
        ({"settings": {"mask": "os:system"}}, "settings"),
        ({"settings": {"mask": '{"kind": "random"}'}}, "settings"),
        ({"settings": {"mask": {"kind": "os:system"}}}, None),
        ({"settings": {"mask": {"kind": "quality", "map": "os:system"}}}, "settings"),
        ({"settings": {"mask": {"kind": "fusion", "sources": [{"kind": "windows"}]}}}, None),
        ({"settings": {"mask": "/etc/passwd"}}, "settings"),
        ({"settings": {str(number): 1 for number in range(65)}}, "settings"),
        ({"strategy": "best-of-n", "settings": {"mask": {"kind": "random"}}}, None),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_wrong_fields_are_refused_in_words(server: Running, fields: dict[str, Any], param: str | None) -> None:
    body = json.dumps({"prompt": PROMPT} | fields)
    answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    assert len(refused(answer, 400, param)) < 1500


@pytest.mark.parametrize("field", ["verifier", "strategy"])
@pytest.mark.parametrize("text", ["of_a_request:Any", "noisy:of=of_a_request:Any"])
def test_a_request_imports_no_module(
    server: Running, field: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_request.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    assert f"unknown {field} {text!r}" in refused(server.generate(**{field: text}))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("kind", CLOSED)
def test_closed_mask_kinds_are_refused(server: Running, kind: str) -> None:
    for mask in (kind, {"kind": kind}):
        assert kind in refused(server.generate(settings={"mask": mask}))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"1", b"[" * 100_000, b'{"a":' * 100_000, b'{"prompt": "x", "target": NaN}',
        b'{"prompt": "x", "nfe": Infinity}', b'{"prompt": "x", "seconds": -Infinity}', b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "\\ud800": 1}', b"\xff\xfe\x00", b'{"prompt": "x", "n": 1' + b"0" * 5000 + b"}",
    ],
    ids=lambda body: str(body[:30]),
)  # fmt: skip
def test_broken_bodies_are_refused(server: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused(server.http.post("/v1/images/generations", content=body, headers=headers))


def test_an_unknown_model_is_not_found(server: Running) -> None:
    for name in ("gpt-image-2", "../../etc/passwd", "x" * 200):
        assert "analytic" in refused(server.generate(model=name), 404, "model")
        refused(server.http.get(f"/v1/models/{name}"), 404)


def test_unknown_paths_and_methods_have_the_form_of_errors(server: Running) -> None:
    refused(server.http.get("/v1/nothing"), 404)
    refused(server.http.get("/v1/images/generations"), 405)


@pytest.mark.parametrize("header", ["0", "-1", "1e3", "1.5", "nan", "x", "9" * 50])
def test_a_wrong_header_is_refused(server: Running, header: str) -> None:
    answer = server.http.post("/v1/images/generations", json={"prompt": PROMPT}, headers={"X-ITS-Budget": header})
    refused(answer, 400, "X-ITS-Budget")


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def edit(server: Running, files: Any, **fields: str) -> httpx2.Response:
    return server.http.post("/v1/images/edits", data={"prompt": PROMPT} | fields, files=files)


IMAGE = ("image", ("a.png", png(6, 6)))


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ([("image", ("a.png", b"nothing"))], {}),
        ([("image", ("a.png", b""))], {}),
        ([("image", ("../../a.png", png(6, 6)[:40]))], {}),
        ([("image", ("a.png", bomb(100_000, 100_000)))], {}),
        ([("image", ("a.png", png(101, 100)))], {}),
        ([("image", ("a.gif", b"GIF89a" + b"\0" * 50))], {}),
        ([IMAGE, IMAGE], {}),
        ([("mask", ("a.png", png(6, 6)))], {}),
        ([IMAGE, ("mask", ("a.png", png(6, 6)))], {}),
        ([IMAGE, ("mask_image", ("a.png", png(6, 6)))], {}),
        ([IMAGE, ("mask_image", ("a.png", png(6, 3)))], {}),
        ([IMAGE, ("mask", ("a.png", png(6, 6, "RGBA"))), ("mask_image", ("b.png", png(6, 6)))], {}),
        ([IMAGE, ("nope", ("a.png", b""))], {}),
        ([IMAGE], {"nope": "1"}),
        ([IMAGE], {"n": "1e9"}),
        ([IMAGE], {"nfe": "nan"}),
        ([IMAGE], {"settings": "{"}),
        ([IMAGE], {"settings": "[" * 100_000}),
        ([IMAGE], {"settings": "1"}),
        ([IMAGE], {"strategy": "best-of-n"}),
        ([IMAGE], {"mask": "x"}),
        ([("prompt", ("a.png", b"x")), IMAGE], {}),
        ([("image", ("a.png", png(6, 6))) for _ in range(9)], {}),
    ],
)
def test_wrong_edits_are_refused_in_words(server: Running, files: Any, fields: dict[str, str]) -> None:
    refused(edit(server, files, **fields))


def test_an_edit_must_be_a_form(server: Running) -> None:
    refused(server.http.post("/v1/images/edits", json={"prompt": PROMPT}))
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(server.http.post("/v1/images/edits", content=b"--x\r\nnothing", headers=broken))
    refused(server.http.post("/v1/images/edits", content=b"", headers={"Content-Type": "multipart/form-data"}))


def test_large_bodies_are_refused(server: Running) -> None:
    for path in ("/v1/images/generations", "/v1/images/edits"):
        refused(server.http.post(path, content=b"x" * 2_000_001), 413)

        def parts() -> Iterator[bytes]:  # sent in chunks, without a length
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
            for _ in range(40):
                yield b"x" * 100_000

        try:
            headers = {"Content-Type": "multipart/form-data; boundary=x"} if path.endswith("edits") else {}
            refused(server.http.post(path, content=parts(), headers=headers), 413)
        except (httpx2.WriteError, httpx2.ReadError):  # the server closed while the client still wrote
            pass


def test_no_search_ran_and_nothing_is_left(server: Running) -> None:
    assert server.service.running == 0 and not server.service.quota._held.get("everyone")


# Keys.


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# ours\nanna {KEY}\n\nbert {KEY[::-1]}\n")
    with running(keys=path, key_nfe=60, key_window_s=1000) as found:
        yield found


def test_with_keys_every_path_but_health_needs_one(locked: Running) -> None:
    paths = [
        *locked.http.get("/openapi.json", headers=bearer(KEY)).json()["paths"],
        "/docs",
        "/openapi.json",
        "/",
        "/x",
    ]
    assert {"/healthz", "/readyz", "/metrics", "/v1/images/edits"} <= set(paths)
    for path in paths:
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            for headers in ({}, bearer("wrong"), bearer("x"), {"Authorization": "Basic !!"}, {"Authorization": KEY}):
                answer = locked.http.request(method, path.replace("{name}", "analytic"), headers=headers)
                if path in ("/healthz", "/readyz"):
                    assert answer.status_code in (200, 405)
                else:
                    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens(locked: Running) -> None:
    assert locked.openai(KEY).models.list().data[0].id == "analytic"
    assert locked.http.get("/v1/models", auth=("anna", KEY)).status_code == 200  # as browsers send it


def test_a_key_has_only_so_many_nfe(locked: Running) -> None:
    one, other = bearer(KEY), bearer(KEY[::-1])
    ask = {"prompt": PROMPT, "nfe": 40, "strategy": "best-of-n"}
    assert locked.http.post("/v1/images/generations", json=ask, headers=one).status_code == 200
    answer = locked.http.post("/v1/images/generations", json=ask, headers=one)
    assert "20 of 60 in 1000 s are left" in refused(answer, 429) and 990 < int(answer.headers["retry-after"]) <= 1000
    assert locked.http.post("/v1/images/generations", json=ask, headers=other).status_code == 200
    text = locked.http.get("/metrics", headers=one).text
    assert 'lotts_nfe_total{key="anna",model="analytic",strategy="best-of-n"} 40.0' in text


def test_a_quota_gives_back_what_was_not_used() -> None:
    now = [0.0]
    quota = Quota(100, 60, lambda: now[0])
    quota.take("a", 80)
    assert quota.left("a") == 20 and quota.left("b") == 100
    quota.settle("a", 80, 30)
    assert quota.left("a") == 70
    now[0] = 59.0
    assert quota.left("a") == 70
    now[0] = 60.0
    assert quota.left("a") == 100


@pytest.mark.parametrize("text", ["anna", "anna short", f"anna {KEY} more", f"a {KEY}\na {KEY}x", "# nothing"])
def test_wrong_files_of_keys_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(BadInput, match="API key"):
        Keys.load(path)


def test_keys_are_read_before_a_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setitem(sys.modules, "lotts_search.serve.deployment", SimpleNamespace(run=lambda *_: started.append(_)))
    with pytest.raises(BadInput, match=r"cannot read the API keys in .*gone"):
        serve(None, [], {}, tmp_path / "gone", "127.0.0.1", 1, local=False, address=None)
    assert not started


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"anna {KEY}; bert {KEY}2;")
    keys = Keys.load(None)
    assert keys.owner(f"Bearer {KEY}") == "anna" and keys.owner(f"bearer {KEY}2") == "bert"
    assert keys.owner("Bearer " + KEY[:-1]) is None and keys.owner(None) is None


# Other pages and names.


def test_pages_of_other_servers_cannot_spend_compute() -> None:
    with running(hosts=["127.0.0.1"]) as server:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            answer = server.http.post("/v1/images/generations", json={"prompt": PROMPT}, headers={"Origin": origin})
            refused(answer, 403)
        own = {"Origin": server.url}
        assert server.http.post("/v1/images/generations", json={"prompt": PROMPT}, headers=own).status_code == 200
        refused(server.http.get("/v1/models", headers={"Host": "evil.example"}), 403)


# Too much at once, too long, and clients that go away.


class Slow(AnalyticPool):
    """Holds back all segments until the test lets them go; what is cancelled is counted."""

    def __init__(self) -> None:
        super().__init__(shuffle=1)
        self.held: list[tuple[Any, Any]] = []
        self.holding = True

    def submit(self, work: Any) -> Any:
        if not (self.holding and isinstance(work, Segment)):
            return super().submit(work)
        future: Any = Future()
        self.held.append((work, future))
        return future

    def release(self) -> None:
        self.holding = False
        for work, future in self.held:
            if not future.cancelled():
                super().submit(work).add_done_callback(lambda done, future=future: future.set_result(done.result()))


def until(true: Any) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("it does not happen")


def test_more_searches_than_places_are_told_to_wait() -> None:
    pool = Slow()
    with running(pool, searches=2) as server:
        with server.http.stream("POST", "/v1/images/generations", json={"prompt": PROMPT, "stream": True}):
            refused(server.generate(n=2), 429)
            answer = server.generate(n=2)
            assert answer.headers["retry-after"] == "5" and "1 of 2 searches are running" in answer.text
        until(lambda: server.service.running == 0)
        pool.release()
        assert server.generate(n=2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_search(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    pool = Slow()
    with running(pool, key_nfe=100) as server:
        body = json.dumps({"prompt": PROMPT, "nfe": 80, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
            head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            until(lambda: pool.held)
            assert server.service.running == 1 and server.service.quota.left("everyone") == 20
        until(lambda: server.service.running == 0)
        (fair,) = [served.fair for served in server.service.served.values()]
        assert all(future.cancelled() for _, future in pool.held) and (fair.running, fair.waiting) == (0, 0)
        assert server.service.quota.left("everyone") == 100
        pool.release()
        assert server.generate(nfe=80).status_code == 200
    assert "unexpectedly" not in caplog.text


def test_the_deadline_ends_a_search_without_an_image() -> None:
    with running(Slow(), deadline_s=0.2) as server:
        assert "no image was finished within 0.2 s" in refused(server.generate(), 504)
        until(lambda: server.service.running == 0)


def test_the_deadline_returns_the_best_so_far() -> None:
    pool = Slow()
    pool.holding = False

    class Later(AnalyticPool):
        """Answers the first images and no later ones."""

        def submit(self, work: Any) -> Any:
            if len([one for one in self.asked if isinstance(one, Segment)]) >= 3:
                return pool_of_nothing.submit(work) if isinstance(work, Segment) else super().submit(work)
            return super().submit(work)

    pool_of_nothing = Slow()
    with running(Later(shuffle=1), deadline_s=1.0) as server:
        answer = server.generate(images=9, strategy="best-of-n").json()
        assert answer["data"][0]["status"] == "deadline" and answer["usage"]["images"] == 3
    pool_of_nothing.close()
    pool.close()


def test_an_idle_stream_shows_signs_of_life() -> None:
    pool = Slow()
    with (
        running(pool, ping_s=0.05) as server,
        server.http.stream("POST", "/v1/images/generations", json={"prompt": PROMPT, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)].count(": ") == 2
        pool.release()
        assert any(line.startswith("event: image_generation.completed") for line in lines)
