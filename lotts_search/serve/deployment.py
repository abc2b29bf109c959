"""The endpoint on Ray Serve. The deployment is thin: it opens the pools and hands requests to the application."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import BackpressureConfig

from lotts_search.actors.connection import connect
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from lotts_search.serve.config import Config, Model, parse
from lotts_search.serve.http import create_app
from lotts_search.serve.service import Service, names_of
from lotts_search.work.pool import Pool

NAME = "lotts-search"


def _keep_to_this_machine() -> None:
    """Let the port at which a replica waits for other deployments listen to this machine only, where all of Ray does; Serve
    opens it to the network. A replica imports this module before it opens that port."""
    replica: Any = importlib.import_module("ray.serve._private.replica")
    opened = replica.add_port_to_grpc_server

    def add(server: Any, place: str) -> int:
        if ray.util.get_node_ip_address() == "127.0.0.1":  # type: ignore[no-untyped-call]
            place = place.replace("[::]", "127.0.0.1")
        port: int = opened(server, place)
        return port

    replica.add_port_to_grpc_server = add


_keep_to_this_machine()
REPLICA_CPUS = 1
"""CPUs of the one process that runs the searches of all requests; generators and verifiers have their own."""


@serve.ingress()
class Endpoint:
    """The one replica: all requests share its pools.

    Args:
        config: a :class:`~lotts_search.serve.config.Config` as plain values.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = parse(config)
        self.service = Service(settings, ray_pools(settings))

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self.service)

    def check_health(self) -> None:
        """Let Serve replace the replica once a pool is closed or broken."""
        if not self.service.alive():
            raise RuntimeError("a pool is closed")


def ray_pools(config: Config) -> dict[str, Pool]:
    """Open the pools on Ray, to which this process is connected."""
    return {model.name: _pool(model, config.threads) for model in config.models}


def _pool(model: Model, threads: int) -> Pool:
    verifiers, rewriters = names_of(model)
    return RayPool(
        model.name,
        verifiers,
        generators=model.generators,
        batch=model.batch,
        threads=threads,
        backbone_options=model.load,
        placement=_placement(model),
        rewriters={name: {} for name in rewriters},
    )


def _placement(model: Model) -> Placement:
    return Placement(gpus=model.gpus, verifier_gpus=model.verifier_gpus)


def application(values: Mapping[str, Any]) -> serve.Application:
    """Return the application that ``serve run`` deploys.

    Args:
        values: the fields of :class:`~lotts_search.serve.config.Config`.

    Raises:
        BadInput: a field is unknown or wrong.
    """
    config = parse(values)
    deployment: Any = serve.deployment(
        Endpoint,
        name=NAME,
        num_replicas=1,
        max_ongoing_requests=2 * config.searches,
        max_queued_requests=config.searches,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=config.retry_after_s),
        ray_actor_options={"num_cpus": REPLICA_CPUS},
        graceful_shutdown_timeout_s=10,
    )
    bound: serve.Application = deployment.bind(config.model_dump(mode="json"))
    return bound


def needed(config: Config) -> dict[str, float]:
    """Return the CPUs and GPUs of the endpoint."""
    total: dict[str, float] = {"CPU": REPLICA_CPUS, "GPU": 0.0}
    for model in config.models:
        verifiers, rewriters = names_of(model)
        found = _placement(model).resources(
            model.load, verifiers, len(rewriters), generators=model.generators, threads=config.threads
        )
        total = {kind: number + found[kind] for kind, number in total.items()}
    return total


def run(config: Config, host: str, port: int, address: str | None) -> None:
    """Serve until Ctrl-C, on a private Ray or in the cluster at ``address``."""
    connection = connect(address, needed(config), loopback=True)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application(config.model_dump(mode="json")), name=NAME, route_prefix="/")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        if ray.is_initialized():
            serve.delete(NAME)
        connection.close()
