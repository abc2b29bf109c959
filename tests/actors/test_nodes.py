"""A crew on nodes that come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

from lotts_search.actors.crew import Limits
from lotts_search.actors.placement import Placement
from lotts_search.actors.ray_pool import RayPool
from tests.actors.chaos import cluster
from tests.actors.fakes import segment

FAKES = {"engine": "tests.actors.fakes:make_engine", "scorer": "tests.actors.fakes:make_scorer"}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_crew_grows_as_nodes_arrive_and_survives_that_they_leave() -> None:
    """Generators take nodes of one label, the verifier those of another."""
    placement = Placement(labels={"pool": "fast"}, verifier_labels={"pool": "in(slow,slower)"})
    with cluster(1, num_cpus=2, labels={"pool": "slow"}) as nodes:
        first = nodes.add(num_cpus=1, labels={"pool": "fast"})
        with RayPool(
            "fake", ["brightness"], 2, address=nodes.cluster.address, placement=placement,
            limits=Limits(together_s=1), **FAKES,
        ) as pool:  # fmt: skip

            def at() -> dict[str, object]:
                return {
                    ready.name.rpartition("-")[0] + str(number): nodes.hosts(ready.pid)
                    for number, ready in enumerate(pool.workers())
                }

            assert at() == {"generator0": first, "brightness1": None}
            second = nodes.add(num_cpus=1, labels={"pool": "fast"})
            wait_until(lambda: at() == {"generator0": first, "generator1": second, "brightness2": None})
            nodes.cluster.remove_node(first, allow_graceful=False)
            wait_until(lambda: len(pool.workers()) == 2)
            assert pool.submit(segment(0)).result(60).actor == "generator-1"
            third = nodes.add(num_cpus=1, labels={"pool": "fast"})
            wait_until(lambda: at() == {"generator0": second, "generator1": third, "brightness2": None})


def test_generators_share_a_gpu_or_have_several_of_one_node() -> None:
    """Ray counts GPUs that nobody uses here."""
    with cluster(1, num_cpus=2, num_gpus=1) as nodes:

        def pool(generators: int, placement: Placement | None = None, **options: object) -> RayPool:
            return RayPool(
                "fake", (), generators, address=nodes.cluster.address, placement=placement,
                backbone_options={"device": "cuda"} | options, engine="tests.actors.fakes:make_seeing",
            )  # fmt: skip

        with pool(2, Placement(gpus=0.5)) as shared:
            wait_until(lambda: len(shared.workers()) == 2)
            assert shared.info.family == "0"
        larger = nodes.add(num_cpus=1, num_gpus=2)
        with pool(1, spread=2) as spread:
            assert sorted(spread.info.family.split(",")) == ["0", "1"]
            assert [nodes.hosts(ready.pid) for ready in spread.workers()] == [larger]
