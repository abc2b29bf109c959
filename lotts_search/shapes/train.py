"""Training of the embedded models, end to end: what ``lotts-search train NAME`` runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from lotts_search.errors import unknown
from lotts_search.shapes.data import example, to_uint8
from lotts_search.shapes.diffusion import SCHEDULE, new_unet, train_unet
from lotts_search.shapes.text import new_tokenizer, pretrain_text
from lotts_search.shapes.vae import train_vae

Describe = Callable[[str], None]
VAE_RENDERS = 16_000
"""Different pictures that the autoencoder is trained on."""
SD_PICTURES, REWARD_PICTURES = 144_000, 80_000
"""Training pictures of the embedded denoiser and of the embedded reward."""
EMBEDDED = Path(__file__).parent / "models"


def train(
    name: str,
    out: Path,
    *,
    pictures: int | None = None,
    vae_pictures: int = 80_000,
    device: str = "cpu",
    describe: Describe = print,
) -> Path:
    """Train an embedded model and write its folder.

    Every stage writes checkpoints below ``out/training``; the same command continues an interrupted run.

    Args:
        name: ``shapes-sd`` or ``shapes-reward``.
        out: folder of the finished model.
        pictures: training pictures of the denoiser, or of the reward; None = the model's own number.
        vae_pictures: training pictures of the autoencoder.
        device: torch device.
        describe: called with lines of progress.

    Raises:
        BadInput: unknown name.
    """
    if name == "shapes-sd":
        count = pictures or SD_PICTURES
        return train_sd(out, pictures=count, vae_pictures=vae_pictures, device=device, describe=describe)
    if name == "shapes-reward":
        from lotts_search.shapes.reward_training import train_reward

        count = pictures or REWARD_PICTURES
        train_reward(out, pictures=count, vae=EMBEDDED / "shapes-sd" / "vae", device=device, describe=describe)
        return out
    raise unknown("embedded model", name, ["shapes-sd", "shapes-reward"])


def train_sd(out: Path, *, pictures: int, vae_pictures: int, device: str, describe: Describe) -> Path:
    """Autoencoder, then text encoder, then denoiser, then a folder for ``StableDiffusionPipeline``."""
    work = out / "training"
    vae_folder = work / "vae"
    if not (vae_folder / "config.json").exists():
        describe(f"autoencoder: rendering {VAE_RENDERS} pictures")
        rng = np.random.default_rng(11)
        renders = np.stack([to_uint8(example(rng, objects=(5, 9)).render.image) for _ in range(VAE_RENDERS)])
        train_vae(renders, work / "vae-state", count=vae_pictures, device=device, describe=describe).save_pretrained(
            vae_folder
        )
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    tokenizer = _tokenizer(work)
    text_folder = work / "text"
    if not (text_folder / "config.json").exists():
        describe("text encoder: learning to read captions")
        pretrain_text(tokenizer, work / "text-state", describe=describe).save_pretrained(text_folder)
    text = CLIPTextModel.from_pretrained(text_folder)
    describe("denoiser")
    unet, text = train_unet(vae, tokenizer, text, work / "unet-state", count=pictures, device=device, describe=describe)
    assemble(out, vae, tokenizer, text, unet)
    return out


def _tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer of a training run, made and kept at its beginning."""
    folder = work / "tokenizer"
    if not folder.exists():
        new_tokenizer().save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def assemble(
    out: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel, unet: torch.nn.Module
) -> None:
    """Write a diffusers folder of safetensors with the SDE-DPM-Solver++(2M) scheduler.

    U-Net and autoencoder are stored in half precision; the text encoder in full, because transformers loads a model
    in the precision that it was stored in and diffusers does not.
    """
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="sde-dpmsolver++", timestep_spacing="linspace")
    pipeline = StableDiffusionPipeline(
        vae=vae.to("cpu", torch.float16),
        text_encoder=text.to("cpu", torch.float32),
        tokenizer=tokenizer,
        unet=unet.to("cpu", torch.float16),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    for config in out.glob("*/config.json"):
        values = json.loads(config.read_text())
        # Where the parts lay on the machine that trained them is nobody's business.
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")


def snapshot(training: Path, out: Path) -> int:
    """Write the averaged weights of a denoiser still in training as a model folder; returns its step.

    For looking at a run before it ends, and for shipping good weights early.
    """
    from safetensors.torch import load_file

    state = json.loads((training / "unet-state" / "state.json").read_text())
    tensors = load_file(training / "unet-state" / "state.safetensors")
    unet, text = new_unet(), CLIPTextModel.from_pretrained(training / "text")
    for prefix, module in (("ema.unet.", unet), ("ema.text.", text)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    assemble(out, AutoencoderKL.from_pretrained(training / "vae"), _tokenizer(training), text, unet)
    return int(state["step"])
