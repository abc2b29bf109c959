"""Refinements whose network calls are confined to the mask, on small real networks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lotts_search.backbones.confined import Frozen
from lotts_search.core.costs import Costs
from lotts_search.engine.engine import Engine
from lotts_search.engine.segments import background_noise
from lotts_search.errors import BadInput
from lotts_search.testing import analytic_info
from lotts_search.work.confined import Confined, active_count, active_tokens, in_tokens
from lotts_search.work.requests import Region, Sampling, Segment, State
from tests.tiny import backbone_of as sd_backbone_of
from tests.tiny import run, sample, tiny_backbone, tiny_pipeline
from tests.tiny_flux import shared_flux
from tests.tiny_sd3 import sd3_backbone_of, tiny_sd3_pipeline
from tests.tiny_xl import tiny_xl_backbone

STEPS, START, INTEGRATE = 8, 2, 2
PROMPT = "a red circle"


@cache
def backbone_of(name: str) -> Any:
    shared = {"flux": shared_flux, "sd": tiny_backbone, "sdxl": tiny_xl_backbone}
    if name in shared:
        return shared[name]()
    return sd3_backbone_of(tiny_sd3_pipeline(newer=name == "sd3.5"))


MODELS = pytest.mark.parametrize("name", ["flux", "sd3", "sd3.5", "sd", "sdxl"])


def corner(side: int = 4) -> Any:
    """A mask of a corner of the 8x8 latent."""
    mask = np.zeros((8, 8), np.bool_)
    mask[:side, :side] = True
    return mask


def parent_of(name: str, guidance: float = 1.0) -> State:
    (result,) = run(Engine(backbone_of(name), 4), sample(0, Sampling(PROMPT, STEPS, guidance)))
    assert result.state is not None
    return result.state


def refine(
    name: str, mask: Any = None, seed: int = 1, guidance: float = 1.0, stop: int = STEPS, **settings: int
) -> Segment:
    """A refinement with the settings of ``refresh``; whole without them."""
    backbone, parent = backbone_of(name), parent_of(name, guidance)
    sampling = Sampling(PROMPT, STEPS, guidance)
    costs, mask = Costs.of(backbone.info, sampling), corner() if mask is None else mask
    how = costs.confine(costs.touched(mask), **{"warmup": 1, "ring": 0} | settings) if settings else None
    lineage = ("seed 0", f"refine@{START} {seed}")
    region = Region(mask, parent.latent, lineage, INTEGRATE, confined=how)
    return Segment(1, sampling, lineage, stop, state=parent, renoise=START, region=region)


def latent(result: Any) -> Any:
    return result.state.latent


def halves(name: str) -> Frozen:
    """Half of the tokens of a row active, by chance."""
    tokens = torch.randperm((8 // backbone_of(name).info.confines) ** 2)
    return Frozen(tokens[: len(tokens) // 2].sort().values, tokens[len(tokens) // 2 :].sort().values)


@MODELS
def test_with_the_keys_of_the_same_latents_active_outputs_are_those_of_the_whole_network(name: str) -> None:
    backbone = backbone_of(name)
    torch.manual_seed(0)
    latents, times = torch.randn(3, *backbone.info.latent), torch.tensor([900.0, 500.0, 100.0])
    texts = backbone.stack(backbone.encode_prompts([PROMPT, "a blue star", ""]))
    whole = backbone.predict(latents, times, texts)
    frozen = {row: halves(name) for row in range(3)}
    assert torch.equal(backbone.record(latents, times, texts, frozen), whole)
    found = backbone.predict_confined(latents, times, texts, list(frozen.values()))
    side = backbone.info.confines
    for row, one in frozen.items():
        active = torch.zeros((8 // side) ** 2, dtype=torch.bool)
        active[one.active] = True
        cells = active.view(8 // side, 8 // side).repeat_interleave(side, 0).repeat_interleave(side, 1)
        assert torch.allclose(found[row][:, cells], whole[row][:, cells], atol=2e-6)
        assert whole[row][:, cells].abs().mean() > 0.1
    assert torch.equal(backbone.predict(latents, times, texts), whole), "the network is left as it was"
    norms = [module for module in backbone.network.modules() if isinstance(module, torch.nn.GroupNorm)]
    kept = [*frozen[0].keys, *frozen[0].values, *(one for layer, one in frozen[0].kept.items() if layer not in norms)]
    size, most = sum(tensor.nbytes for tensor in kept), len(frozen[0].places) * backbone.frozen_bytes()
    assert size == most or (norms and 0.5 * most < size < most), "convolutions keep only what they read"


@pytest.mark.parametrize("name", ["flux", "sd3.5"])
def test_nothing_of_a_frozen_token_is_computed_again(name: str) -> None:
    """Not even the norm of its key."""
    backbone, lengths = backbone_of(name), []
    latents, times, texts = (
        torch.randn(1, *backbone.info.latent),
        torch.tensor([500.0]),
        backbone.encode_prompts([PROMPT]),
    )
    frozen, conditioning = Frozen(torch.arange(6), torch.arange(6, 16)), backbone.stack(texts)
    backbone.record(latents, times, conditioning, {0: frozen})
    norms = [module.norm_k for module in backbone.transformer.modules() if hasattr(module, "norm_k")]
    hooks = [norm.register_forward_hook(lambda _, given, __: lengths.append(given[0].numel())) for norm in norms]
    for call in (backbone.predict, lambda *given: backbone.predict_confined(*given, [frozen])):
        call(latents, times, conditioning)
    for hook in hooks:
        hook.remove()
    whole, confined = np.split(np.array(lengths), 2)
    assert len(whole) == len(norms) > 0
    assert np.array_equal(whole - confined, [10 * key[0].numel() for key in frozen.keys])


@MODELS
def test_a_row_without_image_tokens_costs_what_the_prices_say(name: str) -> None:
    """Counted by torch in a real call of four rows with half of the tokens."""
    backbone = backbone_of(name)
    prices, texts = backbone.info.prices, backbone.stack(backbone.encode_prompts([PROMPT] * 4))
    latents, times = torch.randn(4, *backbone.info.latent), torch.full((4,), 500.0)
    frozen = [halves(name) for _ in range(4)]
    backbone.record(latents, times, texts, dict(enumerate(frozen)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the others are not counted on a CPU
        backbone.predict_confined(latents, times, texts, frozen)
    assert counter.get_total_flops() == 4 * (prices.row - prices.tokens / 2)
    assert 0 <= prices.confined(0.5) - counter.get_total_flops() / (4 * prices.row) < 1 / 1024


@MODELS
def test_a_whole_mask_and_calls_that_are_all_whole_change_no_bit(name: str) -> None:
    mask = np.ones((8, 8), np.bool_)
    plain, confined = refine(name, mask), refine(name, mask, refresh=8)
    assert confined.region is not None and confined.region.confined is None, "all tokens are active"
    works = plain, confined, refine(name), refine(name, refresh=1)
    first, second, third, fourth = (latent(one) for one in run(Engine(backbone_of(name), 4), *works))
    assert np.array_equal(first, second) and np.array_equal(third, fourth) and not np.array_equal(first, third)


@MODELS
@pytest.mark.parametrize("background", ["fixed", "fresh"])
def test_until_integration_what_is_frozen_is_the_noised_parent_to_the_bit(name: str, background: Any) -> None:
    work = refine(name, refresh=8, stop=STEPS - INTEGRATE)
    assert work.region is not None
    region = replace(work.region, background=background)
    (result,) = run(Engine(backbone_of(name), 4), replace(work, region=region))
    schedule, at = backbone_of(name).schedule(STEPS), STEPS - INTEGRATE
    noise = background_noise(1, region, at)
    want = np.float32(schedule.alpha[at]) * region.origin + np.float32(schedule.sigma[at]) * noise
    assert np.array_equal(latent(result)[:, ~region.mask], want[:, ~region.mask])


GUIDED = pytest.mark.parametrize(("name", "guidance"), [("flux", 1.0), ("flux", 3.0), ("sd", 3.0), ("sdxl", 3.0)])


@GUIDED
def test_a_confined_refinement_is_near_the_whole_one_and_nearer_with_more_refreshes(name: str, guidance: float) -> None:
    works = [refine(name, guidance=guidance, **how) for how in ({}, {"refresh": 2}, {"refresh": 8})]
    whole, often, once = (latent(one)[:, corner()] for one in run(Engine(backbone_of(name), 8), *works))
    assert 0 < np.abs(often - whole).mean() < np.abs(once - whole).mean() < 0.2 * np.abs(whole).mean()


@GUIDED
def test_a_refinement_is_the_same_to_the_bit_whatever_else_runs(name: str, guidance: float) -> None:
    """Others at other steps, with other masks and settings, plain trajectories among them, and less memory."""
    work = refine(name, seed=5, guidance=guidance, refresh=3)
    (alone,) = run(Engine(backbone_of(name), 4), work)
    crowd = [refine(name, seed=seed, guidance=guidance, refresh=2 + seed % 3) for seed in range(4)]
    crowd += [refine(name, corner(6), seed, guidance, refresh=4) for seed in (6, 7)]
    crowd += [sample(seed, work.sampling) for seed in (1, 2)]
    for memory in (1 << 30, 1):
        found = run(Engine(backbone_of(name), 4, frozen_bytes=memory), *crowd[:3], work, *crowd[3:])[3]
        assert np.array_equal(latent(found), latent(alone))


def test_the_memory_of_a_frozen_token_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count it, all layers are visited: once for each refinement that waits would take longer than a call of a small model."""
    backbone, works = backbone_of("sd"), [refine("sd", seed=seed, refresh=3) for seed in range(4)]
    monkeypatch.setattr(type(backbone), "frozen_bytes", asked := Mock(return_value=1000))
    run(Engine(backbone, 2), *works)
    asked.assert_called_once()


@MODELS
def test_a_segment_is_charged_what_its_calls_cost(name: str) -> None:
    """Of the steps 2..7 the last two are unmasked, and of the four others two are confined."""
    work, info = refine(name, refresh=3), backbone_of(name).info
    (result,) = run(Engine(backbone_of(name), 4), work)
    share = info.prices.confined(4 / 16)
    costs = Costs.of(info, work.sampling)
    assert work.region is not None and work.region.confined is not None and share < 1
    reserved = costs.steps_of(work.calls, work.confined, work.region.confined)
    assert (work.calls, work.confined, work.nfe) == (6, 2, 4 + 2 * share)
    assert (result.usage.nfe, result.usage.rows) == (reserved.nfe, 6) == (work.nfe, 6)
    assert reserved.flops == 4 * info.prices.row + 2 * int(share * info.prices.row)
    assert result.usage.flops - info.prices.decode == reserved.flops


def test_the_first_call_after_a_score_is_whole() -> None:
    """A partial state that a score has paid for: step 3 is known, step 4 whole, step 5 confined, steps 6 and 7 unmasked."""
    work = refine("flux", refresh=8, stop=3)
    (result,) = run(Engine(backbone_of("flux"), 4), work)
    assert result.state is not None
    state = replace(result.state, predicted=result.state.latent)
    assert (work.calls, work.confined) == (1, 0)
    rest = Segment(1, work.sampling, work.lineage, STEPS, state=state)
    assert (rest.calls, rest.confined) == (4, 1)
    (last,) = run(Engine(backbone_of("flux"), 4), rest)
    assert last.usage.nfe == rest.nfe < 4


def test_other_networks_are_refused_by_name() -> None:
    info = analytic_info()
    with pytest.raises(BadInput, match=r"refresh=4 .* flux, stable-diffusion-3, stable-diffusion, stable-diffusion-xl"):
        Costs.of(info, Sampling(PROMPT, STEPS, 1.0)).confine(0.5, 4, 1, 1)
    pipeline = tiny_pipeline()
    pipeline.unet.down_blocks[0].compile(backend="eager")
    with pytest.raises(
        BadInput, match=r"tiny cannot be confined .* compile; flux, stable-diffusion-3, .* without compile"
    ):
        run(Engine(sd_backbone_of(pipeline), 2), refine("sd", refresh=4))


@pytest.mark.parametrize(("name", "value"), [("refresh", 0), ("warmup", 0), ("ring", -1)])
def test_settings_out_of_their_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(BadInput, match=f"{name} must be .* not {value}"):
        refine("flux", **{"refresh": 2} | {name: value})


def test_dense_calls() -> None:
    confined = Confined(refresh=3, warmup=2, active=4, tokens=16, share=0.5)
    assert [confined.dense(call) for call in range(9)] == [True, True, False, False, True, False, False, True, False]
    assert [confined.count(calls) for calls in (-1, 0, 2, 4, 9)] == [0, 0, 0, 2, 5]


def test_the_number_of_active_tokens_is_a_square_with_its_ring_in_whole_buckets() -> None:
    assert [active_count(masked, 64, 0) for masked in (1, 4, 5, 32, 64)] == [4, 4, 8, 32, 64]
    assert active_count(16, 64, 1) == 36 and active_count(32, 64, 1) == 60 and active_count(17, 64, 1) == 44
    assert active_count(2048, 4096, 1) == 9 * 256


def test_active_tokens_are_the_mask_and_what_is_nearest() -> None:
    mask = np.zeros((8, 8), np.bool_)
    mask[2:4, 2:5] = True
    ring = np.zeros((8, 8), np.bool_)
    ring[1:5, 1:6] = True
    assert np.array_equal(active_tokens(mask, 20), ring) and np.array_equal(active_tokens(mask, 6), mask)
    assert active_tokens(mask, 13).sum() == 13 and not (active_tokens(mask, 13) & ~ring).any()
    assert active_tokens(mask, 64).all()
    assert np.array_equal(in_tokens(np.kron(mask, [[0, 1], [0, 0]]) > 0, 2), mask)
