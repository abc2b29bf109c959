from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from PIL import Image
from torch import Tensor

from lotts_search.backbones.attention import base as attention
from lotts_search.backbones.attention.base import Concept, attention_map
from lotts_search.backbones.attention.flux import JointRecorder, capture_joint, default_blocks
from lotts_search.backbones.flux import Flux, image_ids, pack
from lotts_search.engine.engine import Engine
from lotts_search.errors import BadInput
from lotts_search.localization.locate import locate
from lotts_search.localization.select import unit
from lotts_search.work.masks import AttentionMask, ConceptMask, ErrorContrastMask, GivenMask, MaskSource, RandomMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Locate, Sampling, State
from tests.tiny import run, sample, tiny_backbone
from tests.tiny_flux import flux_of, shared_flux, tiny_flux

SAMPLING = Sampling("a red circle", 4, 1.0)
PROMPTS = ["a red circle", "A high-quality image of a red circle", "A low-quality image of a red circle"]
LINEAGE = ("seed 0",)


@pytest.fixture(scope="module")
def finished() -> State:
    (result,) = run(Engine(shared_flux(), 2), sample(0, SAMPLING))
    assert result.state is not None
    return result.state


def work(state: State, source: MaskSource, sampling: Sampling = SAMPLING) -> Locate:
    return Locate(5, LINEAGE, state, sampling, source)


class Hooks:
    """What goes into and comes out of the projections of every double-stream block in one plain call."""

    def __init__(self, backbone: Flux, latent: Floats, time: float, prompt: str):
        self.made: dict[tuple[int, str], Tensor] = {}
        self.given: dict[tuple[int, str], Tensor] = {}
        blocks = backbone.transformer.transformer_blocks
        handles = [
            module.register_forward_hook(self._note(index, name))
            for index, block in enumerate(blocks)
            for name, module in block.attn.named_modules()
        ]
        (text,) = backbone.encode_prompts([prompt])
        with torch.no_grad():
            backbone.predict(torch.from_numpy(latent)[None], torch.tensor([time]), backbone.stack([text]))
            ids = torch.cat([torch.zeros(backbone.words, 3), image_ids((4, 4))])
            self.rotary = backbone.transformer.pos_embed(ids)
        for handle in handles:
            handle.remove()

    def _note(self, index: int, name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if inputs:
                self.made[index, name], self.given[index, name] = output, inputs[0]

        return hook

    def heads(self, index: int, name: str, rotated: slice | None = None) -> Tensor:
        """[heads, N, d] of a query, key or value after its norm, rotated as that part of the sequence."""
        values = self.made[index, name].view(1, -1, 2, 16)
        if rotated is not None:
            values = apply_rotary_emb(values, tuple(part[rotated] for part in self.rotary), sequence_dim=1)
        return values[0].transpose(0, 1)


def softmax(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


@torch.no_grad()
def concepts_by_hand(backbone: Flux, latent: Floats, time: float, blocks: int) -> tuple[Tensor, Tensor]:
    """Maps [3, 4, 4] of the prompts' words, each prompt by itself with explicit softmaxes; S [16, 16]."""
    hooks, network = Hooks(backbone, latent, time, PROMPTS[0]), backbone.transformer
    length, total = backbone.words, []
    for prompt, text in zip(PROMPTS, backbone.encode_prompts(PROMPTS), strict=True):
        count = len(backbone.tokenizer_2(prompt).input_ids) - 1
        words = network.context_embedder(text.states[None, :count])
        modulation = network.time_text_embed(torch.tensor([time]), text.pooled[None])
        found = torch.zeros(16)
        for index, block in enumerate(network.transformer_blocks):
            attn = block.attn
            normal, gate, shift, scale, gate_2 = block.norm1_context(words, emb=modulation)
            split = [
                norm(project(normal).view(count, 2, 16)).transpose(0, 1)
                for norm, project in [
                    (attn.norm_added_q, attn.add_q_proj),
                    (attn.norm_added_k, attn.add_k_proj),
                    (torch.nn.Identity(), attn.add_v_proj),
                ]
            ]
            image_key = hooks.heads(index, "norm_k", slice(length, None))
            key = torch.cat([split[1], image_key], dim=1)
            value = torch.cat([split[2], hooks.heads(index, "to_v")], dim=1)
            own = (softmax(split[0], key) @ value).transpose(0, 1).reshape(1, count, 32)
            if index >= len(network.transformer_blocks) - blocks:
                image = hooks.given[index, "to_out.0"][0]
                found += torch.stack([image @ word for word in own[0]]).mean(0) / blocks
            words = words + gate[:, None] * attn.to_add_out(own)
            normal = block.norm2_context(words) * (1 + scale[:, None]) + shift[:, None]
            words = words + gate_2[:, None] * block.ff_context(normal)
        total.append(found.view(4, 4))
    last = range(len(network.transformer_blocks) - blocks, len(network.transformer_blocks))
    spread = [softmax(query, query).mean(0) for query in (hooks.heads(index, "norm_q") for index in last)]
    return torch.stack(total), torch.stack(spread).mean(0)


@pytest.mark.parametrize("blocks", [None, 1, 4])
def test_maps_of_concepts_are_explicit_softmaxes(finished: State, blocks: int | None) -> None:
    source = ConceptMask(blocks=blocks, alpha=0.7, ratio=0.4)
    located = locate(shared_flux(), work(finished, source))
    (ori, pos, neg), spread = concepts_by_hand(shared_flux(), finished.latent, 0.0, blocks or 2)
    want = {"ori": ori, "pos": pos, "neg": neg, "contrast": neg - pos}
    want["propagated contrast"] = (spread @ (neg - pos).flatten()).view(4, 4)
    want["propagated ori"] = (spread @ ori.flatten()).view(4, 4)
    for name, value in want.items():
        assert np.abs(located.stages[name] - value.numpy()).max() < 1e-5 * float(ori.abs().max()), name
    assert float(ori.std()) > 1e-2 and float((neg - pos).std()) > 1e-3  # the test's own maps are not flat
    heat = unit(located.stages["propagated contrast"]) + np.float32(0.7) * unit(located.stages["propagated ori"])
    assert np.allclose(located.stages["reweighted"], heat, atol=1e-6)
    assert located.mask.sum() == 4 * 7  # ⌈0.4·16⌉ tokens of four cells each


def test_words_that_are_the_whole_text_are_the_text(finished: State) -> None:
    """The text itself attends to the text and the image, so as a concept it must follow its own path."""
    backbone = shared_flux()
    hooks = Hooks(backbone, finished.latent, 300.0, PROMPTS[0])
    (text,) = backbone.encode_prompts(PROMPTS[:1])
    everything = list(range(backbone.words))
    latents, time = torch.from_numpy(finished.latent)[None], torch.tensor([300.0])
    concept = Concept(text, everything, everything)
    (row,) = backbone.attend_concepts(latents, time, backbone.stack([text]), [[concept]], [False], 4)
    want = torch.zeros(16)
    for index in range(4):
        words, image = hooks.given[index, "to_add_out"][0], hooks.given[index, "to_out.0"][0]
        want += (image @ words.T).mean(1) / 4
    assert row.words.shape == (1, 4, 4) and row.queries == ()
    assert torch.allclose(row.words[0].flatten(), want, rtol=1e-4, atol=1e-4)


def test_probabilities_are_an_explicit_softmax_over_text_and_image(finished: State) -> None:
    backbone = shared_flux()
    located = locate(backbone, work(finished, AttentionMask(level=500, noised=True)))
    alpha, sigma = backbone.train_level(500)
    noise = draw(5, LINEAGE, "locate", 0, (4, 8, 8))
    latent = np.float32(alpha) * finished.latent + np.float32(sigma) * noise
    for name, prompt in zip(("ori", "pos", "neg"), PROMPTS, strict=True):
        hooks = Hooks(backbone, latent, 500.0, prompt)
        count = len(backbone.tokenizer_2(prompt).input_ids) - 1
        total = np.zeros((4, 4))
        for index in (2, 3):
            query = hooks.heads(index, "norm_q", slice(24, None))
            words = hooks.heads(index, "norm_added_k", slice(0, 24))
            key = torch.cat([words, hooks.heads(index, "norm_k", slice(24, None))], dim=1)
            total += softmax(query, key)[:, :, :count].mean((0, 2)).view(4, 4).numpy() / 2
        assert np.abs(located.stages[name] - total).max() < 1e-6, name
        assert total.std() > 1e-5


def test_prompts_in_one_pass_do_not_see_each_other(finished: State) -> None:
    backbone = shared_flux()
    texts = backbone.encode_prompts(PROMPTS)
    words = [list(range(len(backbone.tokens(prompt)))) for prompt in PROMPTS]
    concepts = [Concept(text, places, places) for text, places in zip(texts, words, strict=True)]
    latents, time = torch.from_numpy(finished.latent)[None], torch.tensor([0.0])
    stacked = backbone.stack(texts[:1])
    (together,) = backbone.attend_concepts(latents, time, stacked, [concepts], [True], 2)
    for index, concept in enumerate(concepts):
        (alone,) = backbone.attend_concepts(latents, time, stacked, [[concept]], [False], 2)
        assert torch.allclose(together.words[index], alone.words[0], rtol=1e-4, atol=1e-5)
    # Two rows of one call, one with its queries.
    two = backbone.attend_concepts(
        latents.repeat(2, 1, 1, 1), time.repeat(2), backbone.stack(texts[:1] * 2), [concepts] * 2, [False, True], 2
    )
    assert torch.allclose(two[1].words, together.words, rtol=1e-4, atol=1e-5)
    assert two[0].queries == () and [q.shape for q in two[1].queries] == [(2, 16, 16)] * 2


def test_capture_is_read_by_the_processors_that_run_and_leaves_no_trace(finished: State) -> None:
    pipeline = tiny_flux()
    backbone, network = flux_of(pipeline), pipeline.transformer

    def through() -> Any:
        latents = pack(torch.from_numpy(draw(0, (), "start", 0, (4, 8, 8)))[None])
        return pipeline(
            PROMPTS[0], height=16, width=16, num_inference_steps=2, latents=latents, max_sequence_length=24
        ).images

    before, processors = through(), dict(network.attn_processors)
    first = locate(backbone, work(finished, ConceptMask()))
    locate(backbone, work(finished, AttentionMask()))
    assert all(processors[name] is now for name, now in network.attn_processors.items())
    hooked = [module for module in network.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert not hooked
    assert np.array_equal(np.asarray(before), np.asarray(through()))

    # An error inside the call is not taken for its end, and everything is put back all the same.
    with pytest.raises(RuntimeError, match="lost"), capture_joint(network, JointRecorder([], [], (4, 4), range(4))):
        raise RuntimeError("lost")
    assert all(processors[name] is now for name, now in network.attn_processors.items())
    # What is read is what runs: other weights, other maps.
    with torch.no_grad():
        network.transformer_blocks[3].attn.to_q.weight.mul_(-2)
    second = locate(backbone, work(finished, ConceptMask()))
    assert not np.allclose(first.stages["ori"], second.stages["ori"])


def test_a_capture_sees_the_very_values_of_the_call(finished: State) -> None:
    """The blocks compute inside a capture what they compute without it, to the bit."""
    backbone = shared_flux()
    plain = Hooks(backbone, finished.latent, 0.0, PROMPTS[0])
    seen: dict[int, Tensor] = {}

    class Record:
        def see(self, index: int, block: Any, image: Tensor, text: Tensor, rotary: Any, outputs: Tensor) -> None:
            seen[index] = outputs.clone()

    (text,) = backbone.encode_prompts(PROMPTS[:1])
    inputs = backbone.network_inputs(
        torch.from_numpy(finished.latent)[None], torch.tensor([0.0]), backbone.stack([text])
    )
    with torch.no_grad(), capture_joint(backbone.transformer, Record()):
        backbone.transformer(**inputs)
        raise AssertionError("the call must end with the last double-stream block")
    assert sorted(seen) == [0, 1, 2, 3]
    for index, outputs in seen.items():
        assert torch.equal(outputs, plain.given[index, "to_out.0"])


def test_the_engine_answers_as_the_plain_function_does(finished: State) -> None:
    sources: list[MaskSource] = [
        ConceptMask(draws=2, noised=True, level=600),
        ConceptMask(word_only=True),
        AttentionMask(),
        ErrorContrastMask(),
        RandomMask(0.3),
    ]
    for pad in (True, False):
        results = run(Engine(shared_flux(), 4, pad), *(work(finished, source) for source in sources))
        for source, result in zip(sources, results, strict=True):
            want = locate(shared_flux(), work(finished, source))
            assert result.located is not None
            assert np.array_equal(result.located.mask, want.mask)
            assert np.allclose(result.located.heat, want.heat, atol=1e-4)
            assert result.usage.rows == source.rows() == result.usage.nfe


def test_masks_are_made_of_whole_tokens(finished: State) -> None:
    png = np.zeros((16, 16), dtype=np.uint8)
    png[5, 5] = 255
    data = io.BytesIO()
    Image.fromarray(np.kron(png, np.ones((2, 2), dtype=np.uint8))).save(data, "PNG")
    sources: list[MaskSource] = [ConceptMask(ratio=0.3), AttentionMask(ratio=0.3), ErrorContrastMask(ratio=0.3)]
    for source in [*sources, RandomMask(0.3), RandomMask(0.3, block=2), GivenMask(data.getvalue())]:
        mask = locate(shared_flux(), work(finished, source)).mask
        tokens = mask.reshape(4, 2, 4, 2)
        assert np.array_equal(tokens.any((1, 3)), tokens.all((1, 3)))
        assert mask.sum() == (4 if isinstance(source, GivenMask) else 4 * 5)


def test_a_weight_that_is_told_changes_the_maps(finished: State) -> None:
    backbone = flux_of(tiny_flux(guidance=True))
    maps = [
        locate(backbone, work(finished, ConceptMask(), replace(SAMPLING, guidance=weight, embedded=True))).stages["ori"]
        for weight in (2.0, 6.0)
    ]
    assert not np.allclose(*maps)


def test_bad_settings_are_refused(finished: State) -> None:
    for blocks in (0, 5):
        with pytest.raises(BadInput, match=r"blocks must be within 1\.\.4"):
            locate(shared_flux(), work(finished, ConceptMask(blocks=blocks)))
    with pytest.raises(BadInput, match="no maps of concepts"):
        locate(tiny_backbone(), work(finished, ConceptMask()))
    assert [default_blocks(count) for count in (19, 30, 4, 5, 1)] == [10, 10, 2, 3, 1]


def test_heads_take_turns_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 5, 7, 4), torch.randn(2, 5, 9, 4)
    weights, mask = torch.rand(2, 9, 3), torch.randn(2, 1, 1, 9)
    want = attention_map(query, key, weights, mask)
    monkeypatch.setattr(attention, "MOST_PROBABILITIES", 2 * 2 * 7 * 9)
    assert torch.allclose(attention_map(query, key, weights, mask), want, atol=1e-6)
    each = torch.randn(2, 5, 7, 9)
    turns = attention_map(query, key, weights, each)
    monkeypatch.undo()
    assert torch.allclose(attention_map(query, key, weights, each), turns, atol=1e-6)
