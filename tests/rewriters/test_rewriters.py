"""Rewriters: the chat client against a local server, the runner, and the rewriter of the shapes world."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lotts_search import BadInput, registry
from lotts_search.errors import PoolClosed
from lotts_search.rewriters.chat import ChatRewriter
from lotts_search.rewriters.instructions import read_reply
from lotts_search.rewriters.runner import RewriteRunner
from lotts_search.shapes.world.render import cell_box, render
from lotts_search.shapes.world.scene import parse_caption, scenes
from lotts_search.work.requests import Result, Rewrite

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
WAIT = 60


def work(prompt: str = "a red fox", count: int = 2, rewriter: str = "chat") -> Rewrite:
    return Rewrite(rewriter, prompt, IMAGE, count, seed=7)


@dataclass
class Endpoint:
    """A chat endpoint on this machine with scripted replies."""

    replies: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def reply(self, *replies: Any) -> None:
        """Set one reply per request, the last one repeated: the content of a message, a status, or a function."""
        self.replies = list(replies)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": "first-model"}, {"id": "other"}]})

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            state.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            state.keys.append(self.headers.get("Authorization"))
            reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            if callable(reply):
                reply = reply(state.requests[-1])
            if isinstance(reply, int):
                self.send(reply, {"error": "no"})
            elif isinstance(reply, bytes):
                self.send(200, reply)
            else:
                self.send(200, {"choices": [{"message": {"role": "assistant", "content": reply}}]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def answer(rewriter: Any, *works: Rewrite) -> list[Result]:
    runner = RewriteRunner(rewriter)
    try:
        return [future.result(WAIT) for future in [runner.submit(one) for one in works]]
    finally:
        runner.close()


def test_the_request_contains_image_prompt_and_count(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTS_REWRITER_KEY", "secret")
    endpoint.reply('{"prompts": ["a red fox, its tail", "a vivid red fox"]}')
    (result,) = answer(ChatRewriter(endpoint.url, temperature=0.1), work())
    assert result.prompts == ("a red fox, its tail", "a vivid red fox") and result.note == ""
    assert (result.usage.rewrites, result.usage.fallbacks) == (1, 0)
    (asked,) = endpoint.requests
    assert endpoint.keys == ["Bearer secret"]
    assert (asked["model"], asked["seed"], asked["temperature"]) == ("first-model", 7, 0.1)
    assert asked["response_format"] == {"type": "json_object"}
    text, image = asked["messages"][1]["content"]
    assert "a red fox" in text["text"] and "2 revised prompts" in text["text"]
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), IMAGE)
    assert "secret" not in repr(ChatRewriter(endpoint.url))


def test_large_images_are_scaled_down(endpoint: Endpoint) -> None:
    endpoint.reply('["a", "b"]')
    answer(ChatRewriter(endpoint.url, model="m", side=6), work())
    url = endpoint.requests[0]["messages"][1]["content"][1]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (6, 4)


@pytest.mark.parametrize(
    ("reply", "prompts", "note"),
    [
        ("I cannot do that.", [], "no JSON with prompts"),
        ('{"prompts": "a fox"}', [], "no JSON with prompts"),
        ('{"prompts": ["one fox"]}', ["one fox"], "too few"),
        ('{"prompts": [" ", 3, null, "x"]}', ["x"], "too few"),
        ("", [], "no JSON with prompts"),
        (b"not even JSON", [], "JSONDecodeError"),
        (b'{"choices": []}', [], "not a chat completion"),
        (b"[1]", [], "not a chat completion"),
        (404, [], "status 404"),
        (503, [], "status 503"),
        (lambda asked: '{"prompts": ["' + "x" * 5000 + '", "short"]}', ["short"], "too few"),
    ],
)
def test_the_original_prompt_replaces_bad_replies(
    endpoint: Endpoint, reply: Any, prompts: list[str], note: str
) -> None:
    endpoint.reply(reply)
    (result,) = answer(ChatRewriter(endpoint.url, model="m", retries=0), work())
    assert list(result.prompts) == prompts + ["a red fox"] * (2 - len(prompts))
    assert (result.usage.rewrites, result.usage.fallbacks) == (1, 2 - len(prompts))
    assert note in result.note


@pytest.mark.parametrize(
    "text",
    [
        '{"prompts": ["a", "b"]}',
        '["a", "b"]',
        'Here you are:\n```json\n{"prompts": ["a", "b"]}\n```\nAnything else?',
        'I see {a fox} [sic]. {"note": 1} {"prompts": ["a", "b"], "why": "the tail"}',
    ],
)
def test_json_is_found_within_other_text(text: str) -> None:
    assert read_reply(text) == ["a", "b"]


def test_surplus_prompts_are_dropped(endpoint: Endpoint) -> None:
    endpoint.reply('["a", "b", "c"]')
    (result,) = answer(ChatRewriter(endpoint.url, model="m"), work(count=2))
    assert (result.prompts, result.usage.fallbacks) == (("a", "b"), 0)


def test_temporary_errors_are_retried(endpoint: Endpoint) -> None:
    endpoint.reply(503, 429, '["a", "b"]')
    (result,) = answer(ChatRewriter(endpoint.url, model="m", retries=2), work())
    assert result.prompts == ("a", "b") and len(endpoint.requests) == 3
    endpoint.reply(401, '["a", "b"]')
    (result,) = answer(ChatRewriter(endpoint.url, model="m", retries=2), work())
    assert result.usage.fallbacks == 2 and len(endpoint.requests) == 4


def test_json_mode_is_dropped_for_an_endpoint_that_refuses_it(endpoint: Endpoint) -> None:
    endpoint.reply(lambda asked: 400 if "response_format" in asked else '["a", "b"]')
    results = answer(ChatRewriter(endpoint.url, model="m", parallel=1), work(), work())
    assert [result.prompts for result in results] == [("a", "b")] * 2
    assert ["response_format" in request for request in endpoint.requests] == [True, False, False]


def test_a_slow_endpoint_is_abandoned(endpoint: Endpoint) -> None:
    release = threading.Event()
    endpoint.reply(lambda asked: '["a", "b"]' if release.wait(WAIT) else 500)
    began = time.monotonic()
    (result,) = answer(ChatRewriter(endpoint.url, model="m", timeout=0.2, retries=5), work())
    release.set()
    assert result.usage.fallbacks == 2 and time.monotonic() - began < WAIT / 2
    assert "0.2 s" in result.note or "Timeout" in result.note


def test_a_refused_connection_and_bad_settings(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = answer(ChatRewriter("http://127.0.0.1:9/v1", retries=1), work())
    assert result.prompts == ("a red fox",) * 2 and "ConnectError" in result.note
    monkeypatch.setenv("LOTTS_REWRITER_URL", "http://127.0.0.1:1234/v1")
    monkeypatch.setenv("LOTTS_REWRITER_MODEL", "intern")
    made = registry.load_rewriter("chat", {"timeout": "5", "json_mode": "no"})
    assert isinstance(made, ChatRewriter)
    assert (made.base_url, made.model, made.timeout, made.json_mode) == ("http://127.0.0.1:1234/v1", "intern", 5, False)
    with pytest.raises(BadInput, match="base_url must begin with"):
        registry.load_rewriter("chat", {"base_url": "127.0.0.1"})
    with pytest.raises(BadInput, match="did you mean 'retries'"):
        registry.load_rewriter("chat", {"retry": "5"})
    with pytest.raises(BadInput, match="unknown rewriter 'chatt'; did you mean 'chat'"):
        registry.load_rewriter("chatt")


def test_requests_run_in_parallel(endpoint: Endpoint) -> None:
    meeting = threading.Barrier(4)
    endpoint.reply(lambda asked: '["a", "b"]' if meeting.wait(WAIT) >= 0 else 500)
    results = answer(ChatRewriter(endpoint.url, model="m", parallel=4), *[work() for _ in range(4)])
    assert all(result.usage.fallbacks == 0 for result in results)


@dataclass
class Batching:
    """A rewriter that takes several requests per call; the given function writes the prompts."""

    write: Callable[[Rewrite], Sequence[str]]
    batch: int = 8
    parallel: int = 1
    timeout: float = WAIT
    requirements: tuple[str, ...] = ()
    sizes: list[int] = field(default_factory=list)

    def rewrite(self, requests: Sequence[Rewrite]) -> list[Sequence[str]]:
        self.sizes.append(len(requests))
        return [self.write(request) for request in requests]


def test_waiting_requests_are_answered_in_one_call_and_fail_alone() -> None:
    begun, go = threading.Event(), threading.Event()

    def write(request: Rewrite) -> list[str]:
        if request.prompt == "first":
            begun.set()
            assert go.wait(WAIT)
        if request.prompt == "bad":
            raise OSError("broken pipe")
        return [f"{request.prompt} {number}" for number in range(request.count)]

    rewriter = Batching(write)
    runner = RewriteRunner(rewriter)
    first = runner.submit(work("first"))
    assert begun.wait(WAIT)
    rest = [runner.submit(work(prompt)) for prompt in ("a", "bad", "c")]
    go.set()
    assert [future.result(WAIT).prompts for future in rest] == [("a 0", "a 1"), ("bad", "bad"), ("c 0", "c 1")]
    assert rest[1].result().note == "OSError: broken pipe" and first.result().queue_s >= 0
    assert rewriter.sizes == [1, 3, 1, 1, 1]
    runner.close()


def test_a_hanging_call_does_not_block_others() -> None:
    go = threading.Event()
    rewriter = Batching(lambda request: ["x"] if request.prompt != "hang" or go.wait(WAIT) else [], 1, timeout=0.1)
    runner = RewriteRunner(rewriter)
    hung, other = runner.submit(work("hang", 1)), runner.submit(work("other", 1))
    assert hung.result(WAIT).prompts == ("hang",) and hung.result().note == "no answer within 0.1 s"
    assert other.result(WAIT).prompts == ("x",)
    go.set()
    runner.close()


def test_a_closed_runner_fails_open_and_new_requests() -> None:
    go = threading.Event()
    runner = RewriteRunner(Batching(lambda request: ["x"] if go.wait(WAIT) else [], 1))
    futures = [runner.submit(work()) for _ in range(3)]
    runner.close()
    go.set()
    for future in futures:
        with pytest.raises(PoolClosed):
            future.result(WAIT)
    with pytest.raises(PoolClosed):
        runner.submit(work())
    with pytest.raises(BadInput, match="timeout of a rewriter must be above 0"):
        RewriteRunner(Batching(lambda request: [], timeout=0))


def damaged(cell: int) -> tuple[str, np.ndarray[Any, Any]]:
    """Return a caption with nine objects and its undamaged render, with the object in ``cell`` scrambled."""
    scene = next(scene for scene in scenes("tune", 60) if len(scene.objects) == 9)
    image = (render(scene, np.random.default_rng(0), damage=0.0).image * 255).round().astype(np.uint8)
    rows, columns = cell_box(cell)
    box = image[rows, columns].reshape(-1, 3)
    image[rows, columns] = np.random.default_rng(1).permutation(box).reshape(image[rows, columns].shape)
    return scene.caption, image


@pytest.mark.parametrize("cell", [0, 3, 7])
def test_the_shapes_rewriter_stresses_the_object_with_the_lowest_score(cell: int) -> None:
    """The names of some cells end with those of others: ``top left`` and ``left``."""
    caption, image = damaged(cell)
    request = Rewrite("shapes-rewriter", caption, image, 12, 0)
    (result,) = answer(registry.load_rewriter("shapes-rewriter"), request)
    first, half, whole, everything, *single = result.prompts
    phrase = parse_caption(caption).objects[cell].phrase
    place, colour, shape = phrase.rsplit(" ", 2)
    phrases = caption.split(", ")
    phrases[cell] = phrases[cell].replace(phrase, f"{place} good {colour} {shape}")
    assert first == ", ".join(phrases)
    assert whole == f"A high-quality image of {caption}"
    assert (half.count(" good "), everything.count(" good ")) == (5, 9)
    assert all(f"{place} good {colour}" in prompt for prompt in (half, everything))
    assert [prompt.count(" good ") for prompt in single] == [1] * 8
    assert len(set(result.prompts)) == 12 and all(prompt.replace(" good ", " ") == caption for prompt in single)
    assert result.usage.fallbacks == 0


def test_the_shapes_rewriter_refuses_other_captions() -> None:
    rewriter = registry.load_rewriter("shapes-rewriter")
    caption, image = damaged(4)
    requests = [Rewrite("shapes-rewriter", prompt, image, 1, 0) for prompt in ("a red fox", caption)]
    fox, shapes = answer(rewriter, *requests)
    assert fox.prompts == ("a red fox",) and "not a shapes caption" in fox.note
    assert shapes.usage.fallbacks == 0
