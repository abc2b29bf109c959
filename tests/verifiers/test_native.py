"""The native verifiers equal independent computations on small random checkpoints in the published formats."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from lotts_search.errors import BadInput, Failure, Notice
from lotts_search.verifiers.aesthetic import Aesthetic
from lotts_search.verifiers.clip_score import ClipScore
from lotts_search.verifiers.hpsv2 import HPSv2, cleaned
from lotts_search.verifiers.image_reward import ImageReward
from lotts_search.verifiers.pickscore import PickScore
from lotts_search.work.requests import Bytes
from tests.verifiers.published import SIDE, aesthetic_head, clip_folder, hpsv2_folder, image_reward_folder

NAMES = ("image-reward", "hpsv2", "pickscore", "clip-score", "aesthetic")
READING = NAMES[:4]
"""Those that read the prompt."""
PROMPTS = ["a red circle", "a blue star on the left", "green and good", "a red circle"]
SIZES = [(1, 1), (37, 500), (32, 32), (50, 41), (1500, 2000)]
MEAN, STD = torch.tensor((0.48145466, 0.4578275, 0.40821073)), torch.tensor((0.26862954, 0.26130258, 0.27577711))

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with checkpoints, by verifier."""
    root = tmp_path_factory.mktemp("weights")
    clip = clip_folder(root / "clip")
    return {
        "image-reward": image_reward_folder(root / "image-reward"),
        "hpsv2": hpsv2_folder(root / "hpsv2"),
        "pickscore": clip,
        "clip-score": clip,
        "aesthetic": aesthetic_head(root / "aesthetic"),
    }


def load(name: str, folders: dict[str, Path], **settings: Any) -> Any:
    """Load a verifier from its small checkpoint."""
    classes: dict[str, Any] = {cls.name: cls for cls in (ImageReward, HPSv2, PickScore, ClipScore, Aesthetic)}
    given = {"weights": str(folders[name])} | ({"clip": str(folders["clip-score"])} if name == "aesthetic" else {})
    return classes[name].load(**given | settings)


def images_of(height: int, width: int, count: int = 4, seed: int = 0) -> Bytes:
    """Images with different coarse colours and some noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    coarse = [
        np.asarray(Image.fromarray(colour).resize((width, height), Image.Resampling.NEAREST)) for colour in colours
    ]
    noise = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
    return (np.stack(coarse) // 2 + noise).astype(np.uint8)


# Independent computations, one image at a time.


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None) -> Any:
    """Multi-head attention of [N, d] to [M, d]."""
    q, k, v = (x.reshape(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)


def linear(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x: torch.Tensor, w: Weights, name: str, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def head(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    for number in (0, 2, 4, 6, 7):
        x = linear(x, w, f"{name}.{number}")
    return x


def patches(pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return the embedded patches [N, d] of pixels [3, h, w]."""
    edge = kernel.shape[-1]
    rows = functional.unfold(pixels[None], edge, stride=edge)[0].T
    return rows @ kernel.flatten(1).T


def square(image: Bytes) -> torch.Tensor:
    """Return the input of ImageReward and of OpenAI's CLIP: PIL's resize of the short side, torchvision's crop."""
    picture = Image.fromarray(image)
    short = min(picture.size)
    wide, tall = (int(SIDE * edge / short) for edge in picture.size)
    left, top = round((wide - SIDE) / 2), round((tall - SIDE) / 2)
    crop = picture.resize((wide, tall), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    return (torch.tensor(np.asarray(crop)).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]


def open_clip_tower(x: torch.Tensor, w: Weights, name: str, mask: torch.Tensor | None = None) -> torch.Tensor:
    for layer in range(2):
        block = f"{name}.resblocks.{layer}"
        q, k, v = linear_in(norm(x, w, f"{block}.ln_1", 1e-5), w, f"{block}.attn.in_proj").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, 4, mask), w, f"{block}.attn.out_proj")
        hidden = functional.gelu(linear(norm(x, w, f"{block}.ln_2", 1e-5), w, f"{block}.mlp.c_fc"))
        x = x + linear(hidden, w, f"{block}.mlp.c_proj")
    return x


def linear_in(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    return x @ w[f"{name}_weight"].T + w[f"{name}_bias"]


def hpsv2(folder: Path, prompt: str, image: Bytes) -> float:
    """HPSv2 in open_clip's form."""
    stored = torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    w = {name: value.float() for name, value in stored.items()}
    height, width = (round(edge * SIDE / max(image.shape[:2])) or 1 for edge in image.shape[:2])
    small = torch.tensor(image).permute(2, 0, 1)[None] / 255
    if max(image.shape[:2]) != SIDE:
        small = functional.interpolate(small, (height, width), mode="bicubic", antialias=True)
    pixels = torch.zeros(3, SIDE, SIDE)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    pixels[:, top : top + height, left : left + width] = small[0]
    pixels = (pixels - MEAN[:, None, None]) / STD[:, None, None]
    x = torch.cat([w["visual.class_embedding"][None], patches(pixels, w["visual.conv1.weight"])])
    x = norm(x + w["visual.positional_embedding"], w, "visual.ln_pre", 1e-5)
    x = norm(open_clip_tower(x, w, "visual.transformer")[0], w, "visual.ln_post", 1e-5) @ w["visual.proj"]
    ids = CLIPTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    t = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    t = open_clip_tower(t, w, "transformer", torch.ones(len(ids), len(ids)).tril().bool())
    t = norm(t[-1], w, "ln_final", 1e-5) @ w["text_projection"]
    return float(x @ t / x.norm() / t.norm())


def image_reward(folder: Path, prompt: str, image: Bytes) -> float:
    """ImageReward in BLIP's form: text attends to itself and to the patches in each layer, norms come last."""
    from transformers import BertTokenizer

    w = {name: value for name, value in torch.load(folder / "ImageReward.pt", weights_only=True).items()}
    eye, reader = "blip.visual_encoder", "blip.text_encoder"
    x = patches(square(image), w[f"{eye}.patch_embed.proj.weight"]) + w[f"{eye}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{eye}.cls_token"][0], x]) + w[f"{eye}.pos_embed"][0]
    for layer in range(2):
        block = f"{eye}.blocks.{layer}"
        q, k, v = linear(norm(x, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, 4), w, f"{block}.attn.proj")
        hidden = functional.gelu(linear(norm(x, w, f"{block}.norm2", 1e-6), w, f"{block}.mlp.fc1"))
        x = x + linear(hidden, w, f"{block}.mlp.fc2")
    x = norm(x, w, f"{eye}.norm", 1e-6)
    ids = BertTokenizer.from_pretrained(folder)(prompt)["input_ids"]  # padding is masked, so it is left out here
    t = w[f"{reader}.embeddings.word_embeddings.weight"][ids]
    t = t + w[f"{reader}.embeddings.position_embeddings.weight"][: len(ids)]
    t = norm(t, w, f"{reader}.embeddings.LayerNorm", 1e-12)
    for layer in range(2):
        block = f"{reader}.encoder.layer.{layer}"
        for part in ("attention", "crossattention"):
            seen = t if part == "attention" else x
            q = linear(t, w, f"{block}.{part}.self.query")
            k, v = (linear(seen, w, f"{block}.{part}.self.{name}") for name in ("key", "value"))
            t = norm(linear(attend(q, k, v, 4), w, f"{block}.{part}.output.dense") + t, w, f"{block}.{part}.output.LayerNorm", 1e-12)  # fmt: skip
        hidden = functional.gelu(linear(t, w, f"{block}.intermediate.dense"))
        t = norm(linear(hidden, w, f"{block}.output.dense") + t, w, f"{block}.output.LayerNorm", 1e-12)
    return (float(head(t[0], w, "mlp.layers")) - 0.16717362830052426) / 1.0333394966054072


def clip_logit(folder: Path, prompt: str, image: Bytes) -> tuple[float, float]:
    """Cosine, and scaled cosine, by CLIPModel's own forward and transformers' processors."""
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(image, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        logit = float(model(**tokenizer([prompt], return_tensors="pt"), **pixels).logits_per_image)
        return logit / float(model.logit_scale.exp()), logit


def aesthetic(folders: dict[str, Path], image: Bytes) -> float:
    model = CLIPModel.from_pretrained(folders["clip-score"])
    w = torch.load(folders["aesthetic"] / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    with torch.no_grad():
        embedded = model.get_image_features(pixel_values=square(image)[None]).pooler_output
        return float(head(embedded[0] / embedded[0].norm(), w, "layers"))


def expected(name: str, folders: dict[str, Path], prompt: str, image: Bytes) -> float:
    if name == "hpsv2":
        return hpsv2(folders[name], prompt, image)
    if name == "image-reward":
        return image_reward(folders[name], prompt, image)
    if name == "aesthetic":
        return aesthetic(folders, image)
    cosine, logit = clip_logit(folders[name], prompt, image)
    return logit if name == "pickscore" else max(100 * cosine, 0.0)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_an_independent_computation(name: str, size: tuple[int, int], folders: dict[str, Path]) -> None:
    images = images_of(*size)
    scores = load(name, folders).score(PROMPTS, images)
    assert scores.dtype == np.float32 and scores.shape == (4,)
    wanted = [expected(name, folders, prompt, image) for prompt, image in zip(PROMPTS, images, strict=True)]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_one_by_one(name: str, folders: dict[str, Path]) -> None:
    images, prompts = images_of(40, 56, count=7), [*PROMPTS, *PROMPTS[:3]]
    verifier = load(name, folders, batch=3)
    together = verifier.score(prompts, images)
    alone = [verifier.score([p], i[None])[0] for p, i in zip(prompts, images, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert np.ptp(together) > 0.01, "the images have no different scores, so the test shows nothing"


@pytest.mark.parametrize("name", READING)
def test_prompts_count(name: str, folders: dict[str, Path]) -> None:
    image = images_of(32, 32, count=1).repeat(2, axis=0)
    first, second = load(name, folders).score(["a red circle", "the good quality star"], image)
    assert abs(first - second) > 1e-3


def test_equal_prompts_are_encoded_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = load("pickscore", folders)
    rows: list[int] = []
    encode = verifier.clip.model.get_text_features

    def counted(input_ids: torch.Tensor) -> Any:
        rows.append(len(input_ids))
        return encode(input_ids=input_ids)

    monkeypatch.setattr(verifier.clip.model, "get_text_features", counted)
    verifier.score(PROMPTS, images_of(32, 32))
    assert sum(rows) == len(set(PROMPTS)) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_precisions(name: str, dtype: str, folders: dict[str, Path]) -> None:
    images = images_of(40, 40)
    exact, rough = (load(name, folders, dtype=kind).score(PROMPTS, images) for kind in ("float32", dtype))
    assert rough.dtype == np.float32
    scale = {"pickscore": 14, "clip-score": 100}.get(name, 1)
    np.testing.assert_allclose(rough, exact, atol=0.1 * scale if dtype == "bfloat16" else 0.02 * scale)
    assert (rough != exact).any(), "the precision has no effect"


@pytest.mark.parametrize("name", ["image-reward", "hpsv2", "aesthetic"])
def test_safetensors_of_the_same_names(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    source = next(path for path in folders[name].iterdir() if path.suffix in (".pt", ".pth"))
    weights = torch.load(source, weights_only=True)
    save_file({k: v.contiguous() for k, v in weights.get("state_dict", weights).items()}, tmp_path / "w.safetensors")
    for file in folders[name].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for given in (tmp_path, tmp_path / "w.safetensors"):
        scores = load(name, folders, weights=str(given)).score(PROMPTS, images_of(32, 32))
        np.testing.assert_array_equal(scores, load(name, folders).score(PROMPTS, images_of(32, 32)))


@pytest.mark.parametrize(
    ("name", "file", "lost"),
    [
        ("image-reward", "ImageReward.pt", "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"),
        ("image-reward", "ImageReward.pt", "mlp.layers.7.bias"),
        ("hpsv2", "HPS_v2.1_compressed.pt", "visual.transformer.resblocks.0.attn.in_proj_weight"),
        ("hpsv2", "HPS_v2.1_compressed.pt", "text_projection"),
        ("aesthetic", "sac+logos+ava1-l14-linearMSE.pth", "layers.0.weight"),
    ],
)
def test_missing_and_wrong_weights_are_named(
    name: str, file: str, lost: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    for path in folders[name].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = torch.load(tmp_path / file, weights_only=True)
    weights = whole.get("state_dict", whole)
    value = weights.pop(lost)
    torch.save(whole, tmp_path / file)
    with pytest.raises(BadInput, match=rf"1 are missing, {lost}"):
        load(name, folders, weights=str(tmp_path))
    weights[lost] = torch.cat([value, value])
    torch.save(whole, tmp_path / file)
    with pytest.raises(BadInput, match=rf"other shapes: {lost} \[\d+"):
        load(name, folders, weights=str(tmp_path))
    (tmp_path / file).write_bytes(b"no weights")
    with pytest.raises(Failure, match="cannot be read as a file of weights"):
        load(name, folders, weights=str(tmp_path))


def test_code_in_a_checkpoint_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "run",))  # type: ignore[return-value]

    torch.save({"mlp.layers.0.weight": Harmful()}, tmp_path / "ImageReward.pt")
    for file in folders["image-reward"].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(Failure, match="cannot be read"):
        load("image-reward", folders, weights=str(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_one_message(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lotts_search.verifiers.weights.reachable", "lotts_search.backbones.model_folder.reachable"):
        monkeypatch.setattr(module, lambda model: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for wrong in ("./nowhere", str(tmp_path / "absent.pt"), "no-such-model"):
        with pytest.raises(BadInput, match=rf"verifier {name}: there is no file or folder {wrong}"):
            load(name, folders, weights=wrong)
    with pytest.raises(BadInput, match=rf"verifier {name}: .*has no "):
        load(name, folders, weights=str(tmp_path))
    with pytest.raises(Failure, match=rf"{name}: .* of some/model was never downloaded.*{name}:weights=PATH"):
        load(name, folders, weights="some/model")


def test_published_names_are_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network each verifier names the file and the repository that it needs."""
    monkeypatch.setattr("lotts_search.verifiers.weights.reachable", lambda model: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    needed = {
        ImageReward: "ImageReward.pt of THUDM/ImageReward",
        HPSv2: "HPS_v2.1_compressed.pt of xswu/HPSv2",
        PickScore: "config.json of yuvalkirstain/PickScore_v1",
        ClipScore: "config.json of openai/clip-vit-large-patch14",
        Aesthetic: "sac+logos+ava1-l14-linearMSE.pth of camenduru/improved-aesthetic-predictor",
    }
    for cls, words in needed.items():
        with pytest.raises(Failure) as caught:
            cls.load()
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["image-reward", "hpsv2"])
def test_a_missing_tokenizer_names_its_setting(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lotts_search.verifiers.weights.reachable", lambda model: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    kept = [path for path in folders[name].iterdir() if path.suffix == ".pt" or path.name == "config.json"]
    for path in kept:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(Failure, match=rf"tokenizer_config.json of \S+/\S+ was never.*{name}:tokenizer=PATH"):
        load(name, folders, weights=str(tmp_path))
    scores = load(name, folders, weights=str(tmp_path), tokenizer=str(folders[name])).score(PROMPTS, images_of(8, 8))
    np.testing.assert_array_equal(scores, load(name, folders).score(PROMPTS, images_of(8, 8)))


@pytest.mark.parametrize("name", READING)
def test_long_prompts_are_cut_with_a_notice(name: str, folders: dict[str, Path]) -> None:
    verifier = load(name, folders)
    image = images_of(32, 32, count=1)
    long = "red " * 60
    with pytest.warns(Notice, match=rf"verifier {name} reads \d+ tokens of a prompt") as told:
        cut, longer = (verifier.score([text], image) for text in (long, f"{long} star"))
    assert cut == longer and len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier.score(["red"], image)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_settings(name: str, folders: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=f"dtype of verifier {name} must be float32"):
        load(name, folders, dtype="float8")
    with pytest.raises(BadInput, match=f"device of verifier {name} cannot be 'gpu'"):
        load(name, folders, device="gpu")


def test_the_aesthetic_head_must_fit_clip(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"layers.0.weight \[1024, 48\] instead of \[1024, 24\]"):
        load("aesthetic", folders, weights=str(aesthetic_head(tmp_path, width=48)))


def test_the_crop_of_transformers_and_that_of_torchvision_differ_by_a_pixel() -> None:
    from lotts_search.verifiers.pixels import cropped

    images = images_of(
        32, 35
    )  # a margin of 3 pixels: 1.5 is cut down to 1 by transformers, and rounded to 2 by torchvision
    whole = torch.tensor(images).permute(0, 3, 1, 2) / 255
    assert torch.equal(cropped(images, 32), whole[..., 1:33])
    assert torch.equal(cropped(images, 32, round), whole[..., 2:34])


def test_hpsv2_cleans_prompts_as_its_package() -> None:
    assert cleaned("a “red” cat &amp;amp; dog’s") == 'a "red" cat & dog\'s'


def test_published_sizes() -> None:
    """The published sizes give the published number of weights, and every published name."""
    from accelerate import init_empty_weights

    from lotts_search.verifiers import hpsv2 as hps
    from lotts_search.verifiers import image_reward as reward

    with init_empty_weights(include_buffers=False):
        network = reward._network(reward.PUBLISHED)
        clip = CLIPModel(hps._config(hps.PUBLISHED, CLIPTokenizerIds()))
    names = {reward.published(name)[0] for name in network.state_dict()}
    # 625 in the published file, with two projections of weight and bias and position_ids, which scoring does not use.
    assert len(names) == 625 - 5
    assert sum(value.numel() for value in clip.state_dict().values()) == 986_109_441  # open_clip's ViT-H-14
    blocks = [name for name in map(hps.published, clip.state_dict()) if ".resblocks.31." in name[0]]
    assert len({key for key, _ in blocks}) == 12


class CLIPTokenizerIds:
    """The ids of CLIP's own tokenizer."""

    bos_token_id, eos_token_id = 49406, 49407
