"""Train and measure ``shapes-reward``: ``python -m lotts_search.shapes.reward.training OUT --vae FOLDER``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.shapes.denoisers.data import HIGH, LOW
from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.reward.data import Truths, altered, truths
from lotts_search.shapes.reward.net import (
    TARGETS,
    RewardConfig,
    RewardNet,
    load_reward,
    save_reward,
    word_ids,
)
from lotts_search.shapes.reward.round_trip import RoundTrip
from lotts_search.shapes.verifier import ShapesReward
from lotts_search.shapes.world.render import render, to_uint8
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, SHAPES, Object, Scene, Split, scenes
from lotts_search.shapes.world.wrong_captions import one_wrong
from lotts_search.work.replacing import replacing

_COLOUR, _SHAPE = ({name: i + 1 for i, name in enumerate(names)} for names in (COLOURS, SHAPES))
_GROUND = {name: i for i, name in enumerate(BACKGROUNDS)}
_MIRROR = [2, 1, 0, 5, 4, 3, 8, 7, 6]
_ROUND_TRIPS = 0.75
"""Share of the training images that pass through the autoencoder, as every image of a search does."""


class _Trainee(nn.Module):
    """The network with auxiliary heads, used in training only: both towers must name colours, shapes and background."""

    def __init__(self, net: RewardNet):
        super().__init__()
        self.net = net
        width, classes = net.config.features, len(COLOURS) + len(SHAPES) + 2
        self.name_seen, self.name_asked = nn.Linear(width, classes), nn.Linear(width, classes)
        self.ground_seen, self.ground_asked = nn.Linear(width, len(BACKGROUNDS)), nn.Linear(width, len(BACKGROUNDS))


def train_reward(
    out: Path,
    *,
    images: int = 80_000,
    distinct: int = 10_000,
    batch: int = 32,
    lr: float = 1.5e-3,
    vae: Path | None = None,
    device: str = "cpu",
    seed: int = 21,
    state: Path | None = None,
    measure_on: int = 300,
    describe: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train the verifier and save it to ``out``. The same call resumes an interrupted run.

    Args:
        out: folder of the finished model.
        images: number of images seen in training, each time with another caption.
        distinct: number of different images to render.
        batch: images per optimizer step.
        lr: peak learning rate.
        vae: folder of an AutoencoderKL; most images pass through it, some with a perturbed latent.
        device: torch device.
        seed: seed of images, captions and weights.
        state: folder of the checkpoints, by default beside ``out``.
        measure_on: number of scenes to measure on at the end, 0 = none.
        describe: called with lines of progress.

    Returns:
        The figures of :func:`measure` on scenes of the tune split, {} if none are measured.
    """
    state = out.with_name(out.name + ".training") if state is None else state
    data = _images(distinct, seed, vae, state, device, describe)
    torch.manual_seed(seed)
    trainee = _Trainee(RewardNet(RewardConfig())).to(device)
    trainer = Trainer(trainee, state, images // batch, lr, ema=0.998, describe=describe)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        drawn = _batch(data, np.random.default_rng([seed, 1, step]), batch, device)
        features, queries = trainee.net.towers(drawn.pixels, drawn.words)
        logits = trainee.net.match(features, queries)
        matching = functional.binary_cross_entropy_with_logits(logits, drawn.target)
        naming = (
            _naming(trainee.name_seen(features), drawn.seen)
            + _naming(trainee.name_asked(queries[:, :9]), drawn.asked)
            + functional.cross_entropy(trainee.ground_seen(trainee.net.common(features.mean(dim=1))), drawn.ground_seen)
            + functional.cross_entropy(trainee.ground_asked(queries[:, 9]), drawn.ground_asked)
        )
        error = (logits.detach().sigmoid() - drawn.target).abs().mean()
        parts = {"matching": float(matching.detach()), "naming": float(naming.detach()), "error": float(error)}
        return matching + 0.1 * naming, parts

    trainer.run(loss)
    trained = trainer.averaged()
    assert isinstance(trained, _Trainee)
    save_reward(trained.net, out)
    return measure(load_reward(out), measure_on, vae=vae) if measure_on else {}


def _naming(logits: Tensor, names: Tensor) -> Tensor:
    """Return the cross-entropy of colours and shapes.

    Args:
        logits: [B, 9, classes].
        names: [B, 9, 2] colour and shape of each cell, 0 = none, -1 = unknown.
    """
    split = len(COLOURS) + 1
    flat, wanted = logits.flatten(0, 1), names.flatten(0, 1)
    return functional.cross_entropy(flat[:, :split], wanted[:, 0], ignore_index=-1) + functional.cross_entropy(
        flat[:, split:], wanted[:, 1], ignore_index=-1
    )


def _names(scene: Scene) -> npt.NDArray[np.int64]:
    out = np.zeros((9, 2), dtype=np.int64)
    for o in scene.objects:
        out[o.cell] = _COLOUR[o.colour], _SHAPE[o.shape]
    return out


@dataclass
class _Batch:
    """A training batch.

    Attributes:
        pixels: [B, 3, 64, 64] in -1..1.
        words: [B, MAX_WORDS] word ids.
        target: [B, TARGETS] correct share of each cell and of the background.
        seen, asked: [B, 9, 2] colour and shape in the image and in the caption, 0 = none, -1 = unknown.
        ground_seen, ground_asked: [B] background of the image and of the caption.
    """

    pixels: Tensor
    words: Tensor
    target: Tensor
    seen: Tensor
    asked: Tensor
    ground_seen: Tensor
    ground_asked: Tensor


def _batch(data: Truths, rng: np.random.Generator, batch: int, device: str) -> _Batch:
    """Draw images with captions that are right or wrong about them in known cells."""
    chosen = rng.integers(len(data.images), size=batch)
    pixels = data.images[chosen].astype(np.float32) / 255
    target = np.ones((batch, TARGETS), dtype=np.float32)
    words, seen, asked, grounds = [], [], [], []
    for row, index in enumerate(chosen):
        scene, cells = data.scenes[index], data.quality[index]
        if rng.random() < 0.5:
            pixels[row], cells, scene = pixels[row, :, ::-1].copy(), cells[_MIRROR], _mirrored(scene)
        caption, right, ground = altered(scene, rng)
        target[row, :9], target[row, 9] = cells * right, ground
        seen.append(np.where(cells[:, None] > 0.5, _names(scene), -1))
        asked.append(_names(caption))
        grounds.append([_GROUND[scene.background], _GROUND[caption.background]])
        words.append(word_ids(str(rng.choice(["{}", HIGH, LOW])).format(caption.caption)))
    # Small changes of brightness and grain do not change the quality of an image.
    pixels *= rng.normal(1, 0.02, (batch, 1, 1, 3)).astype(np.float32)
    grain = 0.03 * rng.random((batch, 1, 1, 1), dtype=np.float32)
    pixels += grain * rng.standard_normal(pixels.shape, dtype=np.float32)
    tensors = [
        torch.from_numpy(np.asarray(a)).to(device) for a in (pixels.clip(0, 1), words, target, seen, asked, grounds)
    ]
    x, ids, wanted, names_seen, names_asked, kinds = tensors
    return _Batch(x.permute(0, 3, 1, 2) * 2 - 1, ids, wanted, names_seen, names_asked, kinds[:, 0], kinds[:, 1])


def _mirrored(scene: Scene) -> Scene:
    """Return the scene mirrored left to right; every shape is its own mirror image."""
    return Scene(tuple(sorted(Object(_MIRROR[o.cell], o.colour, o.shape) for o in scene.objects)), scene.background)


def _images(
    count: int, seed: int, vae: Path | None, state: Path, device: str, describe: Callable[[str], None]
) -> Truths:
    """Return the training images: those in ``state`` if there are any, else new ones that are saved there."""
    kept = state / f"images-{count}-{seed}-{'plain' if vae is None else 'vae'}.npz"
    if kept.is_file():
        stored = np.load(kept, allow_pickle=False)
        return Truths(stored["images"], _scenes_of(stored["names"], stored["grounds"]), stored["quality"])
    data = truths(count, seed, describe)
    if vae is not None:
        through = np.flatnonzero(np.random.default_rng([seed, 2]).random(count) < _ROUND_TRIPS)
        trip = RoundTrip(vae, device)
        for start in range(0, len(through), 1000):
            some = through[start : start + 1000]
            data.images[some] = trip(data.images[some], wobble=0.125, seed=seed + start)
            describe(f"passed {start + len(some)} of {len(through)} images through the autoencoder")
    names, grounds = np.stack([_names(s) for s in data.scenes]), np.array([s.background for s in data.scenes])
    with replacing(kept) as temporary, temporary.open("wb") as file:
        np.savez(file, images=data.images, quality=data.quality, names=names, grounds=grounds)
    return data


def _scenes_of(names: npt.NDArray[np.int64], grounds: npt.NDArray[np.str_]) -> list[Scene]:
    colours, shapes = list(COLOURS), SHAPES
    return [
        Scene(
            tuple(Object(c, colours[k - 1], shapes[s - 1]) for c, (k, s) in enumerate(cells.tolist()) if k), str(ground)
        )
        for cells, ground in zip(names, grounds, strict=True)
    ]


def measure(
    net: RewardNet, count: int = 300, *, split: Split = "tune", seed: int = 0, vae: Path | None = None
) -> dict[str, float]:
    """Return ROC areas on ``count`` held-out scenes by name; with ``vae`` also after an autoencoder round trip.

    They compare undamaged renders with damaged ones (one object or more), and the right caption with one that is wrong
    about one object.
    """
    judge = ShapesReward(net)
    rng = np.random.default_rng([seed, 3])
    wanted = scenes(split, count, seed)
    prompts = [s.caption for s in wanted]
    wrong = [one_wrong(s, rng)[0].caption for s in wanted]
    clean = np.stack([to_uint8(render(s, rng).image) for s in wanted])
    drawn = [render(s, rng, damage=0.3) for s in wanted]
    broken = np.stack([to_uint8(d.image) for d in drawn])
    counts = [int(d.damaged.sum()) for d in drawn]
    figures: dict[str, float] = {}
    for name, trip in [("", False), (" after the autoencoder", True)]:
        if trip and vae is None:
            continue
        if trip:
            assert vae is not None
            clean, broken = (RoundTrip(vae)(p) for p in (clean, broken))
        good, bad, other = (judge.score(p, i) for p, i in ((prompts, clean), (prompts, broken), (wrong, clean)))
        hurt, once = np.array(counts) > 0, np.array(counts) == 1
        figures[f"AUC undamaged against damaged{name}"] = auc(good, bad[hurt])
        if once.any():
            figures[f"AUC undamaged against one damaged object{name}"] = auc(good, bad[once])
        figures[f"AUC right caption against one object wrong{name}"] = auc(good, other)
        figures[f"right caption preferred to its wrong one{name}"] = float(np.mean(good > other))
    return figures


def auc(positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating]) -> float:
    """Return the area under the ROC curve: how often a positive score exceeds a negative one; ties count half."""
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--vae", type=Path, help="folder of an AutoencoderKL that most images pass through")
    parser.add_argument("--images", type=int, default=80_000, help="number of images seen in training")
    parser.add_argument("--distinct", type=int, default=10_000, help="number of different images")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--measure", action="store_true", help="only measure the model in OUT on the test split")
    args = parser.parse_args()
    if args.measure:
        figures = measure(load_reward(args.out), split="test", vae=args.vae)
    else:
        figures = train_reward(
            args.out, images=args.images, distinct=args.distinct, vae=args.vae, device=args.device,
            describe=lambda line: print(line, flush=True),
        )  # fmt: skip
    for name, value in figures.items():
        print(f"{value:8.4f}  {name}")


if __name__ == "__main__":
    main()
