"""Train the embedded models end to end: the work of ``lotts-search train NAME``."""

from __future__ import annotations

import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from lotts_search.errors import BadInput, unknown
from lotts_search.shapes.denoisers.base import Denoiser, train_denoiser
from lotts_search.shapes.denoisers.store import encode_store, render_store
from lotts_search.shapes.denoisers.vae import train_vae
from lotts_search.work.requests import Bytes

Describe = Callable[[str], None]
EMBEDDED = Path(__file__).parent / "models"
REWARD_IMAGES = {"shapes-reward": 80_000, "shapes-reward-x0": 96_000}
"""Number of images that the training of a verifier sees."""


@dataclass(frozen=True)
class Recipe:
    """How an embedded denoiser is trained.

    Attributes:
        model: path of its :class:`~lotts_search.shapes.denoisers.base.Denoiser`.
        vae: the embedded model whose autoencoder it shares; None = train an autoencoder.
        start: the embedded model whose weights it starts from; None = train from scratch.
        lr: peak learning rate; halved if training starts from a trained model.
    """

    model: str
    vae: str | None = None
    start: str | None = None
    lr: float = 1.2e-3


RECIPES: dict[str, Recipe] = {
    "shapes-sd": Recipe("lotts_search.shapes.denoisers.sd:ShapesSD"),
    "shapes-sdxl": Recipe("lotts_search.shapes.denoisers.sdxl:ShapesSDXL", vae="shapes-sd", start="shapes-sd"),
    "shapes-flux": Recipe("lotts_search.shapes.denoisers.flux:ShapesFlux", vae="shapes-sd", lr=2e-3),
}


@dataclass(frozen=True)
class Effort:
    """The effort of a training.

    Attributes:
        images: number of images that the denoiser, or the reward, sees.
        minutes: train the denoiser for this long instead.
        different: number of different training images.
        batch: images per step of the denoiser.
        vae_images: number of images that the autoencoder sees.
        vae_batch: images per step of the autoencoder.
    """

    images: int = 144_000
    minutes: float | None = None
    different: int = 80_000
    batch: int = 32
    vae_images: int = 80_000
    vae_batch: int = 32

    @classmethod
    def on(cls, name: str, device: str) -> Effort:
        """Return a reasonable effort for a model and a device: an hour or two on a CPU, minutes on a GPU."""
        if name in REWARD_IMAGES:
            return cls(images=REWARD_IMAGES[name])
        if torch.device(device).type == "cpu":
            return cls()
        return cls(2_000_000, None, 360_000, 256, 256_000, 128)


def train(
    name: str,
    out: Path,
    *,
    effort: Effort | None = None,
    vae: Path | None = None,
    start: Path | None = None,
    renders: Path | None = None,
    device: str = "cpu",
    describe: Describe = print,
) -> Path:
    """Train an embedded model and write its folder, which is returned.

    Every stage writes checkpoints below ``out/training``; the same call resumes an interrupted run.

    Args:
        name: one of :data:`RECIPES` or of :data:`REWARD_IMAGES`.
        out: folder of the finished model.
        effort: the effort of the training; None = :meth:`Effort.on` this device.
        vae: folder of a trained autoencoder to use.
        start: folder of a trained model to start from; only the last stage of training follows.
        renders: folder of the training images, which several models may share; None = below ``out``.
        device: torch device.
        describe: called with lines of progress.

    Raises:
        BadInput: the name is unknown, or ``vae`` has no autoencoder.
    """
    effort = effort or Effort.on(name, device)
    if name == "shapes-reward":
        from lotts_search.shapes.reward.training import train_reward

        vae = vae or EMBEDDED / "shapes-sd" / "vae"
        train_reward(out, images=effort.images, vae=vae, device=device, describe=describe)
        return out
    if name == "shapes-reward-x0":
        from lotts_search.shapes.reward.predictions import train_on_predictions

        train_on_predictions(out, images=effort.images, device=device, describe=describe)
        return out
    if name not in RECIPES:
        raise unknown("embedded model", name, [*RECIPES, *REWARD_IMAGES])
    recipe, work = RECIPES[name], out / "training"
    describe(f"{effort.different} different training images")
    images, captions = render_store(renders or work / "renders", effort.different, describe)
    if vae is None and recipe.vae is not None:
        vae = EMBEDDED / recipe.vae / "vae"
    coder = _vae(effort, images, work, vae, device, describe)
    moments = encode_store(renders or work / "renders", coder.to(device), images, device, describe)
    model: Denoiser = pkgutil.resolve_name(recipe.model)()
    if start is None and recipe.start is not None:
        start = EMBEDDED / recipe.start
    if not (work / "denoiser" / "state.json").exists():
        if start is not None:
            describe(f"starting from {start.name}")
            model.start_from(start)
        else:
            describe("text encoders: learning to read captions")
            model.pretrain(work, device, describe)
    describe("denoiser and text encoders together")
    train_denoiser(
        model, moments, captions, work / "denoiser", scale=coder.config.scaling_factor, count=effort.images,
        batch=effort.batch, lr=recipe.lr / (1 if start is None else 2), started=start is not None,
        minutes=effort.minutes, device=device, describe=describe,
    )  # fmt: skip
    model.save(out, coder)
    shutil.copy(EMBEDDED / name / "lotts.json", out)  # settings, verifier and rewriter for models of these scenes
    return out


def _vae(
    effort: Effort, images: Bytes, work: Path, given: Path | None, device: str, describe: Describe
) -> AutoencoderKL:
    """Load the given autoencoder, or the one that an interrupted run has trained; else train one."""
    folder = given or work / "vae"
    if not (folder / "config.json").exists():
        if given is not None:
            raise BadInput(f"no autoencoder in {given}")
        describe("autoencoder")
        # The first images have few objects; the later ones show everything that the autoencoder must represent.
        late = images[len(images) // 2 :]
        train_vae(
            late, work / "vae-state", count=effort.vae_images, batch=effort.vae_batch, device=device,
            describe=describe,
        ).save_pretrained(folder)  # fmt: skip
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)
