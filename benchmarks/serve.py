"""Measure the endpoint: requests at once, its overhead, and when the first image of a stream comes.

    python benchmarks/serve.py [--model shapes-sd] [--images 3] [--rounds 3] [--blocks 8] [--generators 2]

Server and clients share this process. The generators are actors on a private Ray, as those of the endpoint, or with
``--generators 0`` a single one in this process. What is compared alternates, so that other load on the machine
affects both alike; the ratios are medians over rounds and blocks.

- throughput: 16 requests at once against the same 16 one after the other (demand: 1.5 or more). Every image must be the same.
- overhead: 8 requests at once against 8 searches at once on the same pool without the endpoint (demand: 1.05 or less), in seconds and in CPU
  seconds of all processes, those of the clients included. A block has each twice, in the order ABBA; how far the two runs of one kind are
  apart says how much of a block's ratio is the machine.
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
from typing import Any, NamedTuple

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


async def throughput(client: httpx2.AsyncClient, images: int, first: bool) -> float:
    """Return the time of 16 requests one by one, as a multiple of that of 16 at once.

    Args:
        first: whether those at once come first.
    """
    times: dict[Any, float] = {}
    found: list[list[str]] = []
    for way in [at_once, one_by_one] if first else [one_by_one, at_once]:
        times[way], answers = await way(client, 16, images)
        found.append(answers)
    assert found[0] == found[1], "a request at once has another image than alone"
    return times[one_by_one] / times[at_once]


class Block(NamedTuple):
    """Seconds and CPU seconds of two runs with the endpoint and two without."""

    served: list[tuple[float, float]]
    direct: list[tuple[float, float]]

    def ratio(self, of: int) -> float:
        """Return the overhead, in seconds (0) or CPU seconds (1)."""
        return sum(run[of] for run in self.served) / sum(run[of] for run in self.direct)

    @property
    def apart(self) -> float:
        """Return the mean relative distance of two runs of one kind."""
        return statistics.mean(abs(one[0] / other[0] - 1) for one, other in (self.served, self.direct))


async def overhead(client: httpx2.AsyncClient, pool: Pool, images: int) -> Block:
    block = Block([], [])
    for served in (True, False, False, True):
        began = cpu_seconds()
        took = (await at_once(client, 8, images))[0] if served else await directly(pool, 8, images)
        (block.served if served else block.direct).append((took, cpu_seconds() - began))
    return block


async def measure(url: str, pool: Pool, options: argparse.Namespace) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=3600) as client:
        await at_once(client, 2, 1)
        gains, blocks, firsts = [], [], []
        for number in range(options.rounds):
            gains.append(await throughput(client, options.images, number % 2 == 1))
            firsts.append(await first_image(client))
            print(f"round {number + 1}: throughput {gains[-1]:.2f}, first image {firsts[-1]:.3f}", flush=True)
        for number in range(options.blocks):
            blocks.append(block := await overhead(client, pool, options.images))
            print(
                f"block {number + 1}: overhead {block.ratio(0):.3f}, by CPU {block.ratio(1):.3f}; runs of one kind {block.apart:.1%} apart",
                flush=True,
            )
    if gains:
        print(f"16 at once / in sequence = {statistics.median(gains):.2f} (demand 1.5)")
        print(f"first image              = {statistics.median(firsts):.3f} (demand 0.25)")
    if blocks:
        seconds, cpu = (statistics.median(block.ratio(of) for block in blocks) for of in (0, 1))
        print(f"8 requests / 8 searches  = {seconds:.3f} (demand 1.05), by CPU {cpu:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-sd", help="registered name, folder or Hub id")
    parser.add_argument("--images", type=int, default=3, help="budget of each request")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput and first images")
    parser.add_argument("--blocks", type=int, default=8, help="of overhead")
    parser.add_argument("--generators", type=int, default=2, help="actors on Ray; 0 = one in this process")
    options = parser.parse_args()
    model = {"name": options.model, "generators": options.generators or 1}
    config = Config.model_validate({"models": [model]})
    pools = ray_pools(config) if options.generators else local_pools(config)
    with serving(config, pools) as url:
        asyncio.run(measure(url, pools[options.model], options))


if __name__ == "__main__":
    main()
