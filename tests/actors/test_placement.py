"""What actors take, and of which nodes."""

from __future__ import annotations

import pytest

from lotts_search.actors.placement import Placement
from lotts_search.cli.pools import Compute
from lotts_search.errors import BadInput

CUDA = {"device": "cuda"}
VERIFIER = "image-reward:device=cuda"


def test_the_command_line_says_all_of_it() -> None:
    words = ["gpus=0.5", "verifiers=3", "verifier-gpus=0.25", "rewriter-gpus=1", "object-store-mb=512"]
    words += ["label.ray.io/accelerator-type=in(H100,H200)", "label.pool=gpu", "verifier-label.pool=cpu"]
    placement = Placement.parse(words)
    assert placement == Placement(
        0.5, 3, 0.25, 1, {"ray.io/accelerator-type": "in(H100,H200)", "pool": "gpu"}, {"pool": "cpu"}, 512
    )
    assert placement.generator(CUDA) == {"num_gpus": 0.5, "label_selector": placement.labels}
    assert placement.verifier(VERIFIER) == {"num_gpus": 0.25, "label_selector": {"pool": "cpu"}}
    assert placement.rewriter() == {"num_gpus": 1, "label_selector": {"pool": "cpu"}}
    needed = placement.resources(CUDA, [VERIFIER, "brisque"], 1, generators=8, threads=2)
    assert needed == {"CPU": 2 * (8 + 6 + 1), "GPU": 8 * 0.5 + 6 * 0.25 + 1}
    compute = Compute(generators=8, device="cuda", place=words)
    assert compute.placement == placement
    assert [word for word in compute.words() if "=" in word] == words


def test_by_default_what_has_a_cuda_device_has_a_gpu() -> None:
    needed = Placement().resources(CUDA, [VERIFIER, "brisque"], 1, generators=3, threads=1)
    assert needed == {"CPU": 6, "GPU": 4}
    assert Placement().generator({}) == Placement().verifier("brisque") == {"num_gpus": 0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpu=1"], "unknown placement 'gpu'; did you mean 'gpus'"),
        (["gpus"], "--place takes NAME=VALUE, not 'gpus'"),
        (["label.=gpu"], "unknown placement"),
        (["gpus=half"], "--place gpus must be a number, not 'half'"),
        (["gpus=1.5"], "gpus must be a share of a GPU, 0..1, or a whole number of GPUs, not 1.5"),
        (["verifier-gpus=-1"], "verifier_gpus must be a share"),
        (["verifiers=0"], "verifiers must be 1 or more, not 0"),
        (["verifiers=1.5"], "--place verifiers must be a number"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Compute(place=words).placement.generator({})


def test_a_device_that_an_actor_does_not_have_is_refused_before_anything_starts() -> None:
    with pytest.raises(BadInput, match="device cuda instead of cuda:1"):
        Compute(device="cuda:1")
    with pytest.raises(BadInput, match="device cuda instead of cuda:2"):
        Placement(verifier_gpus=2).verifier("image-reward:device=cuda:2")
    assert Compute(device="cuda:0").placement.generator({"device": "cuda:0"}) == {"num_gpus": 1}
    assert Compute(device="cuda:1", local=True).device == "cuda:1"
    assert Placement(gpus=2).generator({"device": "cuda:1"}) == {"num_gpus": 2}
    with pytest.raises(BadInput, match="leave out --local"):
        Compute(local=True, place=["gpus=1"])
