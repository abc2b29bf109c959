"""Measure the endpoint: requests at once, its overhead, and when the first image of a stream comes.

    python benchmarks/serve.py [--model shapes-sd] [--images 3] [--rounds 3] [--generators 2]

Server and clients share this process. The generators are actors on a private Ray, as those of the endpoint, or with
``--generators 0`` a single one in this process. What is compared alternates, round by round, so that other load on the machine
affects both alike; the ratios are medians over the rounds.

- throughput: 16 requests at once against the same 16 one after the other (demand: 1.5 or more). Every image must be the same.
- overhead: 8 requests at once against 8 searches at once on the same pool without the endpoint (demand: 1.05 or less), in seconds and, which
  other load changes less, in CPU seconds of all processes, those of the clients included. A round has each twice, in the order ABBA.
- first image: when the first partial image of a search of 200 NFE comes, as a share of its time (demand: 0.25 or less).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from simulated import used_by_children

from lotts_search import asearch
from lotts_search.serve.config import Config
from lotts_search.serve.deployment import ray_pools
from lotts_search.serve.local import server
from lotts_search.serve.service import Service, local_pools
from lotts_search.work.pool import Pool

PROMPT = "top left red circle, top blue star, left pink cross, center yellow square, right green ring, bottom cyan diamond on gray"
GENERATE = "/v1/images/generations"


@contextmanager
def serving(config: Config, pools: dict[str, Pool]) -> Iterator[str]:
    """Serve in another thread; yield the address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = server(Service(config, pools), "127.0.0.1", 0)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join()


def asked(seed: int, images: int) -> dict[str, Any]:
    return {"prompt": PROMPT, "seed": seed, "images": images}


async def image(client: httpx2.AsyncClient, seed: int, images: int) -> str:
    answer = await client.post(GENERATE, json=asked(seed, images))
    answer.raise_for_status()
    return str(answer.json()["data"][0]["b64_json"])


async def at_once(client: httpx2.AsyncClient, count: int, images: int) -> tuple[float, list[str]]:
    began = time.perf_counter()
    found = await asyncio.gather(*(image(client, seed, images) for seed in range(count)))
    return time.perf_counter() - began, found


async def one_by_one(client: httpx2.AsyncClient, count: int, images: int) -> tuple[float, list[str]]:
    began = time.perf_counter()
    found = [await image(client, seed, images) for seed in range(count)]
    return time.perf_counter() - began, found


async def directly(pool: Pool, count: int, images: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(asearch(PROMPT, pool=pool, seed=seed, images=images) for seed in range(count)))
    return time.perf_counter() - began


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its actors."""
    return time.process_time() + sum(used_by_children().values())


async def first_image(client: httpx2.AsyncClient) -> float:
    """Return the share of a search's time that passes before its first partial image."""
    body = {"prompt": PROMPT, "nfe": 200, "seed": 0, "stream": True, "partial_images": 1}
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", GENERATE, json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:") and not first and json.loads(line[5:])["type"].endswith("partial_image"):
                first = time.perf_counter() - began
    return first / (time.perf_counter() - began)


async def measure(url: str, pool: Pool, options: argparse.Namespace) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=3600) as client:
        await at_once(client, 2, 1)
        gains, costs, cpu, firsts = [], [], [], []
        for number in range(options.rounds):
            pair = [one_by_one, at_once] if number % 2 == 0 else [at_once, one_by_one]
            times: dict[Any, float] = {}
            images: list[list[str]] = []
            for way in pair:
                times[way], found = await way(client, 16, options.images)
                images.append(found)
            assert images[0] == images[1], "a request at once has another image than alone"
            gains.append(times[one_by_one] / times[at_once])

            took, used = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
            for served in (True, False, False, True):
                began = cpu_seconds()
                took[served] += (
                    (await at_once(client, 8, options.images))[0] if served else await directly(pool, 8, options.images)
                )
                used[served] += cpu_seconds() - began
            costs.append(took[True] / took[False])
            cpu.append(used[True] / used[False])
            firsts.append(await first_image(client))
            print(
                f"round {number + 1}: throughput {gains[-1]:.2f}, overhead {costs[-1]:.3f}, by CPU {cpu[-1]:.3f}, first image {firsts[-1]:.3f}",
                flush=True,
            )
    print(
        f"16 at once / in sequence = {statistics.median(gains):.2f} (demand 1.5)\n"
        f"8 requests / 8 searches  = {statistics.median(costs):.3f} (demand 1.05), by CPU {statistics.median(cpu):.3f}\n"
        f"first image              = {statistics.median(firsts):.3f} (demand 0.25)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="registered name, folder or Hub id")
    parser.add_argument("--images", type=int, default=3, help="budget of each request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generators", type=int, default=2, help="actors on Ray; 0 = one in this process")
    options = parser.parse_args()
    model = {"name": options.model, "generators": options.generators or 1}
    config = Config.model_validate({"models": [model]})
    pools = ray_pools(config) if options.generators else local_pools(config)
    with serving(config, pools) as url:
        asyncio.run(measure(url, pools[options.model], options))


if __name__ == "__main__":
    main()
