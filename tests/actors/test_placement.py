"""What actors take, and of which nodes."""

from __future__ import annotations

import pytest

from lotts_search.actors.crew import Limits
from lotts_search.actors.placement import Placement
from lotts_search.cli.pools import Compute
from lotts_search.errors import BadInput, Notice

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
        (["gpus"], "a placement is NAME=VALUE, not 'gpus'"),
        (["label.=gpu"], "unknown placement"),
        (["gpus=half"], "the placement gpus must be a number, not 'half'"),
        (["gpus=1.5"], "gpus must be a share of a GPU, 0..1, or a whole number of GPUs, not 1.5"),
        (["verifier-gpus=-1"], "verifier_gpus must be a share"),
        (["verifiers=0"], "verifiers must be 1 or more, not 0"),
        (["verifiers=1.5"], "the placement verifiers must be a number"),
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
    with pytest.raises(BadInput, match="leave out --local"):
        Compute(local=True, place=["gpus=1"])


def test_a_spread_model_has_as_many_gpus_as_it_needs() -> None:
    spread = CUDA | {"spread": 2}
    assert Placement().generator(spread) == Placement(gpus=2).generator({"spread": 2}) == {"num_gpus": 2}
    assert Placement().resources(spread, [VERIFIER], 0, generators=3, threads=1) == {"CPU": 4, "GPU": 3 * 2 + 1}
    with pytest.raises(
        BadInput, match="gpus=2: a generator uses one GPU, unless its model is spread over several: --spread 2"
    ):
        Placement(gpus=2).generator(CUDA)
    for gpus in (0.5, 1, 3):
        with pytest.raises(
            BadInput, match=f"gpus={gpus}: a model that is spread over 2 GPUs needs a generator with as many"
        ):
            Placement(gpus=gpus).generator(spread)
    with pytest.raises(BadInput, match="device cuda instead of cuda:1"):
        Placement().generator({"device": "cuda:1", "spread": 2})
    with pytest.raises(BadInput, match="device must be cuda or cuda:N, got 'cpu'"):
        Compute(load={"spread": 2})
    compute = Compute(device="cuda", place=["gpus=2"])
    assert compute.beside({}, [{"spread": 2}]).placement == Placement(gpus=2)
    with pytest.raises(BadInput, match="gpus=2: a generator uses one GPU"):
        compute.beside({}, [{"spread": 2}, {}])
    with pytest.raises(BadInput, match="device must be cuda or cuda:N, got 'cpu'"):
        Compute(local=True).beside({}, [{"spread": 2}])


def test_a_study_and_the_command_line_say_it_in_the_same_words() -> None:
    study = {"gpus=0.5": "a.yaml, line 7", "verifiers=4": "a.yaml, line 8", "label.pool=gpu": "a.yaml, line 9"}
    compute = Compute(device="cuda", place=["verifiers=2", "label.zone=a"]).beside(study)
    assert compute.placement == Placement(0.5, 2, labels={"pool": "gpu", "zone": "a"})
    with pytest.raises(BadInput, match=r"a\.yaml, line 8: the placement verifiers must be a number, not 'many'"):
        Compute().beside({"gpus=1": "a.yaml, line 7", "verifiers=many": "a.yaml, line 8"})
    local = Compute(local=True)
    with pytest.warns(Notice, match="place of the study is about actors on Ray: --local does not use it"):
        assert local.beside(study) == local


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": "5"}, "unknown setting of the limits: 'answer'; did you mean 'answer_s'"),
        ({"answer-s": "soon"}, "answer_s of the limits must be a number, not 'soon'"),
        ({"answer-s": "-1"}, "the limit answer_s must be 0 or more, not -1"),
        ({"start-s": "inf"}, "the limit start_s must be 0 or more, not inf"),
        ({"ping-s": "nan"}, "the limit ping_s must be 0 or more, not nan"),
        ({"attempts": "0"}, "the limit attempts must be 1 or more, not 0"),
        ({"attempts": "2.5"}, "attempts of the limits must be an integer"),
    ],
)
def test_wrong_limits_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Compute(limit=settings)


def test_limits_and_modules_are_those_of_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Limits.parse({"answer-s": "60", "attempts": "5"}) == Limits(answer_s=60, attempts=5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(BadInput, match="--ship copies modules to a cluster"):
        Compute(ship=["my_masks"])
    assert Compute(address="h:1", ship=["my_masks"]).words()[-2:] == ["--ship", "my_masks"]
    for more in ({"limit": {"answer-s": "60"}}, {"ship": ["my_masks"]}):
        with pytest.raises(BadInput, match="is about actors on Ray: leave out --local"):
            Compute(local=True, **more)
