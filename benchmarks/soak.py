"""Soak the endpoint on Ray Serve: mixed load with random disconnects, slow readers and killed generators.

    python benchmarks/soak.py [--minutes 10] [--clients 8]

Starts ``lotts-search serve`` with two generators on a port of this machine, and ends it again. Demands: no request is lost or gets another
request's image, none hangs, the memory of the server's processes grows by 5 % at most between the second and the last fifth of the time, and
nothing is left running or waiting at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil

PROMPTS = [
    f"top left {one} circle, top blue star, left pink cross, center {other} square, right green ring, bottom cyan diamond on gray"
    for one in ("red", "yellow")
    for other in ("white", "orange")
]
GENERATE = "/v1/images/generations"
HANGS_S = 300.0
"""Seconds without an answer after which a request counts as hanging."""


@dataclass
class Findings:
    """What the clients saw.

    Attributes:
        known: the image of each request that was answered, by what decides it.
        memory: seconds and bytes of the processes that hold requests.
    """

    counts: Counter[str] = field(default_factory=Counter)
    known: dict[str, str] = field(default_factory=dict)
    memory: list[tuple[float, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def answered(self, asked: dict[str, Any], recipe: str, image: str) -> None:
        """Check that an answer is that of its own request, and the same as the last time."""
        words = shlex.split(recipe)
        if words[2] != asked["prompt"] or words[words.index("--seed") + 1] != str(asked["seed"]):
            self.wrong.append(f"{asked} was answered by {recipe}")
        key = json.dumps({name: asked[name] for name in ("prompt", "seed", "images", "strategy")})
        if self.known.setdefault(key, image) != image:
            self.wrong.append(f"{key} has another image than before")


def asked(dice: random.Random) -> dict[str, Any]:
    return {
        "prompt": dice.choice(PROMPTS),
        "seed": dice.randrange(4),
        "images": dice.choice([1, 2, 4]),
        "strategy": dice.choice(["lotts", "best-of-n"]),
        "num_inference_steps": 4,
    }


async def client(http: httpx2.AsyncClient, found: Findings, dice: random.Random, end: float) -> None:
    """Send requests of all kinds, one after the other."""
    while time.monotonic() < end:
        body = asked(dice)
        kind = dice.choice(["plain", "plain", "stream", "stream", "leave", "leave-stream", "slow", "wrong"])
        try:
            async with asyncio.timeout(HANGS_S):
                await one(http, found, dice, body, kind)
            found.counts[kind] += 1
        except TimeoutError:
            found.wrong.append(f"{kind} {body} hangs")
        except (httpx2.HTTPError, AssertionError) as error:
            found.wrong.append(f"{kind} {body}: {type(error).__name__}: {error}")


async def one(http: httpx2.AsyncClient, found: Findings, dice: random.Random, body: dict[str, Any], kind: str) -> None:
    if kind == "wrong":
        answer = await http.post(GENERATE, json=body | dice.choice([{"n": 10**9}, {"nope": 1}, {"images": 10**6}]))
        assert answer.status_code == 400, answer.text
        return
    if kind == "leave":
        with contextlib.suppress(httpx2.TimeoutException):
            await http.post(GENERATE, json=body | {"images": 50}, timeout=dice.uniform(0.05, 3))
        return
    if kind == "plain":
        answer = await http.post(GENERATE, json=body)
        if answer.status_code == 429:
            await asyncio.sleep(1)
            return
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"][0]
        found.answered(body, data["recipe"], data["b64_json"])
        return
    stream = body | {"stream": True, "partial_images": 2, "events": dice.random() < 0.5}
    last: dict[str, Any] = {}
    async with http.stream("POST", GENERATE, json=stream) as answer:
        if answer.status_code == 429:
            await asyncio.sleep(1)
            return
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if kind == "leave-stream" and dice.random() < 0.2:
                return
            if kind == "slow":
                await asyncio.sleep(0.05)
            if line.startswith("data: "):
                last = json.loads(line[6:])
    if kind != "leave-stream" or last.get("type") == "image_generation.completed":
        assert last.get("type") == "image_generation.completed", str(last)[:300]
        found.answered(body, last["recipe"], last["b64_json"])


def of(server: psutil.Process, name: str) -> list[psutil.Process]:
    """Return the server's processes with this in their names."""
    found = []
    for process in server.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


async def disturb(server: psutil.Process, found: Findings, dice: random.Random, began: float, end: float) -> None:
    """Note the memory, and kill a generator from time to time."""
    killed = time.monotonic()
    while time.monotonic() < end:
        with contextlib.suppress(psutil.Error):
            held = sum(
                process.memory_info().rss for name in ("ServeReplica", "ProxyActor") for process in of(server, name)
            )
            found.memory.append((time.monotonic() - began, held))
        if time.monotonic() - killed > 45 and end - time.monotonic() > 30:
            for process in of(server, "GeneratorActor")[:1]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    found.counts["killed"] += 1
            killed = time.monotonic()
        await asyncio.sleep(1)


async def left(http: httpx2.AsyncClient) -> dict[str, float]:
    """Return what runs or waits, by the server's metrics; wait up to a minute until that is nothing."""
    names = ("lotts_searches_running", "lotts_work_waiting", "lotts_rows_running")
    for _ in range(60):
        text = (await http.get("/metrics")).text
        values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith(names)}
        if not any(values.values()):
            break
        await asyncio.sleep(1)
    return values


async def until_ready(http: httpx2.AsyncClient, server: psutil.Process) -> None:
    """Wait for the server; a busy machine takes minutes."""
    for _ in range(600):
        with contextlib.suppress(httpx2.HTTPError):
            if (await http.get("/readyz")).status_code == 200:
                return
        if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
            break
        await asyncio.sleep(1)
    sys.exit("the server does not start")


async def soak(options: argparse.Namespace, port: int, server: psutil.Process) -> int:
    found, dice = Findings(), random.Random(options.seed)
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=HANGS_S, limits=limits) as http:
        await until_ready(http, server)
        began = time.monotonic()
        end = began + 60 * options.minutes
        clients = [client(http, found, random.Random(dice.random()), end) for _ in range(options.clients)]
        await asyncio.gather(disturb(server, found, dice, began, end), *clients)
        over = await left(http)
    span = 60 * options.minutes / 5
    fifths = [[held for at, held in found.memory if number * span <= at < (number + 1) * span] for number in range(5)]
    growth = statistics.median(fifths[4]) / statistics.median(fifths[1]) - 1
    print(f"requests {dict(found.counts)}, {len(found.known)} different ones")
    print(f"memory {statistics.median(fifths[1]) / 2**20:.0f} MB, then {growth:+.1%} (demand 5 %)")
    print(f"left {over} (demand 0)")
    for text in found.wrong[:20]:
        print(f"wrong: {text}")
    print(f"lost, crossed or hanging: {len(found.wrong)} (demand 0)")
    return int(bool(found.wrong) or any(over.values()) or growth > 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lotts_search", "serve", "--port", str(port), "--generators", "2"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            code = asyncio.run(soak(options, port, psutil.Process(process.pid)))
        except BaseException:
            log.seek(0)
            print("".join(log.readlines()[-20:]))
            raise
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
    sys.exit(code)


if __name__ == "__main__":
    main()
