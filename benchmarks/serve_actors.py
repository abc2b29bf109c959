"""Where the searches of the endpoint run: in the replica, in an actor of its own, or in an actor of the deployment.

    python benchmarks/serve_actors.py [--rounds 5] [--requests 48] [--side 1024]

Three deployments on a private Ray do the same: a search of nine images on a model with a closed form, which takes next to no
time, and an answer with an image of noise as PNG. The first runs the search in its one replica, as the endpoint does; the others have two replicas
that ask an actor: a named one, or one of Serve's ``deployment_actors``. 16 clients ask at once. Rounds alternate, and a figure is
the median of the ratios of a round to that of the first deployment in the same round: requests a second, and CPU seconds of all
processes of Ray a request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import statistics
import time
from typing import Any

import httpx2
import numpy as np
import ray
from PIL import Image
from ray import serve
from ray.serve.config import DeploymentActorConfig
from simulated import used_by_children

from lotts_search import asearch
from lotts_search.actors.connection import connect
from lotts_search.testing import AnalyticPool

CLIENTS = 16
WAYS = {"replica": "in the replica", "actor": "in a named actor", "deployment-actor": "in a deployment actor"}


class Searches:
    """Runs the searches of all requests on one pool."""

    def __init__(self, side: int):
        self._pool = AnalyticPool()
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
        self._image = base64.b64encode(file.getvalue()).decode()

    async def search(self, seed: int) -> str:
        """Search, and return an image."""
        await asearch("red star", pool=self._pool, strategy="best-of-n", images=9, seed=seed)
        return self._image


class Inside:
    """A replica with the pool."""

    def __init__(self, side: int):
        self._searches = Searches(side)

    async def __call__(self, request: Any) -> str:
        return await self._searches.search(int(request.query_params["seed"]))


class Asking:
    """A replica that asks an actor."""

    _searches: Any

    async def __call__(self, request: Any) -> str:
        found: str = await self._searches.search.remote(int(request.query_params["seed"]))
        return found


class Named(Asking):
    """A replica that asks a named actor."""

    def __init__(self) -> None:
        self._searches = ray.get_actor("searches", namespace="lotts-benchmark")


class Scoped(Asking):
    """A replica that asks an actor of its deployment."""

    def __init__(self) -> None:
        self._searches = serve.get_deployment_actor("searches")


def deploy(side: int) -> Any:
    """Start the three deployments; return what keeps the named actor alive."""
    remote: Any = ray.remote(Searches)
    named = remote.options(name="searches", namespace="lotts-benchmark", max_concurrency=100).remote(side)
    scoped = DeploymentActorConfig(
        name="searches", actor_class=remote, init_args=(side,), actor_options={"max_concurrency": 100}
    )
    common: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 100}
    apps = {
        "replica": serve.deployment(Inside, num_replicas=1, **common).bind(side),  # type: ignore[attr-defined]
        "actor": serve.deployment(Named, num_replicas=2, **common).bind(),  # type: ignore[attr-defined]
        "deployment-actor": serve.deployment(Scoped, num_replicas=2, deployment_actors=[scoped], **common).bind(),  # type: ignore[attr-defined]
    }
    for name, app in apps.items():
        serve.run(app, name=name, route_prefix=f"/{name}")
    return named


async def ask(url: str, way: str, requests: int) -> float:
    """Send the requests, :data:`CLIENTS` at once; return the seconds that they took."""
    turn = iter(range(requests))

    async def client(http: httpx2.AsyncClient) -> None:
        for seed in turn:
            (await http.get(f"{url}/{way}", params={"seed": seed})).raise_for_status()

    async with httpx2.AsyncClient(timeout=120) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=48, help="of each deployment in a round")
    parser.add_argument("--side", type=int, default=1024, help="of the image, in pixels")
    options = parser.parse_args()
    connection = connect(None, {"CPU": 2.0, "GPU": 0.0}, loopback=True)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8123})
        named = deploy(options.side)
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        used: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(-1, options.rounds):  # the first does not count
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                cpu = sum(used_by_children().values())
                seconds = asyncio.run(ask("http://127.0.0.1:8123", way, options.requests))
                if number >= 0:
                    taken[way].append(seconds)
                    used[way].append(sum(used_by_children().values()) - cpu)
        print(f"{'':24} requests/s   of the replica's   CPU ms a request   of the replica's")
        for way, name in WAYS.items():
            speed = statistics.median(own / other for own, other in zip(taken["replica"], taken[way], strict=True))
            costs = statistics.median(other / own for own, other in zip(used["replica"], used[way], strict=True))
            print(
                f"{name:24} {options.requests / statistics.median(taken[way]):10.1f} {speed:18.2f} "
                f"{1e3 * statistics.median(used[way]) / options.requests:18.1f} {costs:18.2f}"
            )
        del named
    finally:
        connection.close()


if __name__ == "__main__":
    main()
