"""Training of the embedded denoisers: the store of images, warm starts, and resumed runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTextModel

from lotts_search import registry
from lotts_search.errors import BadInput
from lotts_search.shapes import train
from lotts_search.shapes.denoisers import sdxl, store
from lotts_search.shapes.denoisers.base import Denoiser
from lotts_search.shapes.denoisers.flux import ShapesFlux
from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.denoisers.sd import ShapesSD
from lotts_search.shapes.denoisers.sdxl import WIDTH_2, ShapesSDXL
from lotts_search.shapes.denoisers.store import STAGES, LatentStore, encode_store, render_store
from lotts_search.shapes.denoisers.vae import to_tensor
from lotts_search.shapes.world.scene import parse_caption, scenes

SD = Path(registry.__file__).parent / "shapes" / "models" / "shapes-sd"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("renders")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(SD / "vae", torch_dtype=torch.float32).eval()


def test_the_store_renders_each_image_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, captions = render_store(folder, 200)
    assert images.shape == (200, 64, 64, 3) and len(captions) == 200
    made = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    again, _ = render_store(folder, 200)
    assert (again == images).all() and {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == made
    # Another number of images in the same folder has its own files.
    assert len(render_store(folder, 100)[1]) == 100 and (render_store(folder, 200)[0] == images).all()
    # The images of each stage have its numbers of objects.
    counts = [len(parse_caption(c.replace(" good ", " ").replace(" bad ", " ")).objects) for c in captions]
    first = 0
    for stage in STAGES:
        end = first + round(200 * stage.share)
        assert all(stage.objects[0] <= n <= stage.objects[1] for n in counts[first:end])
        first = end


def test_latents_belong_to_the_images_and_to_the_stage_of_training(folder: Path, vae: AutoencoderKL) -> None:
    images, _ = render_store(folder, 200)
    moments = encode_store(folder, vae, images, "cpu")
    with torch.no_grad():
        expected = vae.encode(to_tensor(images[:4])).latent_dist
    assert np.allclose(moments[:4, :8], expected.mean.numpy(), atol=0.1)
    numbers = torch.arange(200)
    kept = LatentStore(moments, numbers, 2.0, "cpu")
    for progress, low, high in ((0.0, 0, 12), (0.1, 12, 30), (0.3, 30, 80), (0.99, 80, 200), (1.0, 80, 200)):
        latents, ids = kept.take(progress, 64)
        assert low <= ids.min() and ids.max() < high
        mean, std = torch.from_numpy(moments).float()[ids].chunk(2, dim=1)
        assert ((latents / 2 - mean) / std).std() == pytest.approx(1, abs=0.05)
    assert LatentStore(moments, numbers, 1.0, "cpu", last=True).take(0.0, 64)[1].min() >= 80


def test_stages_cover_all_images_and_the_whole_training() -> None:
    assert sum(stage.share for stage in STAGES) == pytest.approx(1) and STAGES[-1].until == 1
    assert store._bounds(1000)[-1] == (400, 1000)


def test_sdxl_starts_from_stable_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two agree once the states of the first encoder have an even spread, which is applied by hand here."""
    sd, xl = ShapesSD(), ShapesSDXL()
    sd.start_from(SD)
    ids = sd.token_ids([scene.caption for scene in scenes("train", 16)])

    def spread_of(encoder: CLIPTextModel, token_ids: object) -> float:
        with torch.no_grad():
            return float(encoder(ids, output_hidden_states=True).hidden_states[-2].std(-1).mean())

    monkeypatch.setattr(sdxl, "_even_out", spread_of)
    xl.start_from(SD)
    latents, times = torch.randn(16, 8, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((16,), 400)
    with torch.no_grad():
        expected = sd.unet(latents, times, encoder_hidden_states=sd.text(ids)[0]).sample
        states = xl.text(ids, output_hidden_states=True).hidden_states[-2]
        spread = states.std(-1, keepdim=True)
        states = (states - states.mean(-1, keepdim=True)) / spread * spread.mean()
        added = {"text_embeds": torch.randn(16, WIDTH_2), "time_ids": torch.full((16, 6), 64.0)}
        text = torch.cat([states, torch.randn(16, states.shape[1], WIDTH_2)], dim=-1)
        found = xl.unet(latents, times, encoder_hidden_states=text, added_cond_kwargs=added).sample
    assert (found - expected).norm() / expected.norm() < 0.02


def test_the_first_encoder_learns_an_even_spread() -> None:
    torch.manual_seed(3)
    xl, before = ShapesSDXL(), []
    ids = xl.token_ids([scene.caption for scene in scenes("train", 8)])
    for steps in (0, 40):
        size = sdxl._even_out(xl.text, xl.token_ids, steps)
        with torch.no_grad():
            states = xl.text(ids, output_hidden_states=True).hidden_states[-2]
        before.append(float((states.std(-1) / (size or states.std(-1).mean()) - 1).abs().mean()))
    assert before[1] < 0.7 * before[0]


def test_flux_cannot_start_from_another_model() -> None:
    with pytest.raises(BadInput, match="ShapesFlux is trained from scratch"):
        ShapesFlux().start_from(SD)


@pytest.mark.parametrize("make", [ShapesSD, ShapesSDXL, ShapesFlux])
def test_a_dropped_caption_does_not_reach_the_denoiser(make: type[Denoiser]) -> None:
    model = make()
    latents = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    losses = []
    for captions, dropped in ((["top red star on gray"] * 4, True), (["left blue ring on black"] * 4, True),
                              (["left blue ring on black"] * 4, False)):  # fmt: skip
        torch.manual_seed(2)
        with torch.no_grad():
            losses.append(float(model.loss(latents, model.token_ids(captions), torch.full((4,), dropped))))
    assert losses[0] == losses[1] != losses[2]


def test_sdxl_folder_loads_in_plain_diffusers_and_wants_zeros_for_an_empty_prompt(
    vae: AutoencoderKL, tmp_path: Path
) -> None:
    model = ShapesSDXL()
    model.save(tmp_path, vae)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert pipeline.config.force_zeros_for_empty_prompt
    assert {p.dtype for part in (pipeline.unet, pipeline.text_encoder) for p in part.parameters()} == {torch.float32}
    ids = model.token_ids(["top red star on gray"])
    with torch.no_grad():
        found = pipeline.encode_prompt("top red star on gray", device="cpu", do_classifier_free_guidance=False)
        expected = model.text_2(ids, output_hidden_states=True)
    assert torch.allclose(found[0][..., -WIDTH_2:], expected.hidden_states[-2], atol=2e-2)
    assert torch.allclose(found[2], expected.text_embeds, atol=2e-2)


def test_a_trained_model_names_settings_verifier_and_rewriter(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the embedded one does; the training itself is left out."""
    monkeypatch.setattr(train, "render_store", lambda *arguments: (None, []))
    monkeypatch.setattr(train, "encode_store", lambda *arguments: None)
    monkeypatch.setattr(train, "train_denoiser", lambda *arguments, **options: None)
    monkeypatch.setattr(train, "_vae", lambda *arguments: vae)
    out = train.train("shapes-sd", tmp_path, start=train.EMBEDDED / "shapes-sd", describe=lambda line: None)
    assert registry.default_verifier(str(out)) == "shapes-reward"
    assert registry.default_rewriter(str(out)) == "shapes-rewriter"
    assert registry.load_backbone(str(out)).info.defaults == registry.load_backbone("shapes-sd").info.defaults


def test_training_for_minutes_follows_the_clock(tmp_path: Path) -> None:
    trainer = Trainer(nn.Linear(2, 2), tmp_path, 1000, 1.0, warmup=1, minutes=10)
    trainer.step, trainer.seconds = 500, 150.0
    assert trainer.progress == 0.5
    trainer.seconds = 450.0
    assert trainer.progress == 0.75
    assert trainer._rate() == pytest.approx(0.02 + 0.98 * 0.5 * (1 + np.cos(0.75 * np.pi)))


@pytest.mark.parametrize("matrices", [(), ("weight",)], ids=["adamw", "muon"])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, matrices: tuple[str, ...]) -> None:
    def run(folder: Path, *, until: int) -> nn.Module:
        torch.manual_seed(3)
        module = nn.Linear(4, 1)
        trainer = Trainer(module, folder, until, 0.01, matrices=matrices, warmup=4, describe=lambda _: None)
        trainer.steps = 20

        def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == until:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

        try:
            trainer.run(loss)
        except KeyboardInterrupt:
            trainer._save()
        return module

    whole = run(tmp_path / "whole", until=20)
    run(tmp_path / "halves", until=9)
    assert torch.equal(run(tmp_path / "halves", until=20).weight, whole.weight)
