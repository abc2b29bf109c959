"""What diffusers would load is loaded; everything else is refused at once, in one sentence."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from lotts_search import plugins
from lotts_search.backbones import loading, lora, model_folder
from lotts_search.backbones.defaults import (
    FLUX_DEV,
    FLUX_SCHNELL,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    defaults_of,
    few_steps,
    merged,
)
from lotts_search.backbones.flux import Flux
from lotts_search.backbones.load_options import Adapter
from lotts_search.backbones.loading import Loader
from lotts_search.backbones.sd3 import StableDiffusion3
from lotts_search.backbones.sdxl import StableDiffusionXL
from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.cli.pools import Compute
from lotts_search.errors import BadInput, Failure, LottsError, Notice
from lotts_search.registry import check_model, find_model, load_backbone, models
from tests.tiny import tiny_pipeline

NETWORK = "diffusion_pytorch_model"
WEIGHTS = {"unet": NETWORK, "vae": NETWORK, "text_encoder": "model"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def as_variant(folder: Path, component: str, keep: bool = True) -> None:
    """Add a variant fp16 of a component whose weights are all halved, or replace the plain file by it."""
    plain = folder / component / f"{WEIGHTS[component]}.safetensors"
    weights = {name: value / 2 for name, value in load_file(plain).items()}
    save_file(weights, plain.with_name(f"{WEIGHTS[component]}.fp16.safetensors"), {"format": "pt"})
    if not keep:
        plain.unlink()


def message_of(error: type[LottsError], load: Callable[[], object]) -> str:
    """Return the message of an error, which must be one line and come before the libraries have tried again for half a minute."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        load()
    assert time.monotonic() - began < 20 and "\n" not in str(caught.value)
    return str(caught.value)


def sizes(backbone: Any) -> dict[str, float]:
    return {name: sum(value.abs().sum().item() for value in getattr(backbone, name).parameters()) for name in WEIGHTS}


@pytest.mark.parametrize("having", [("unet",), ("vae",), ("text_encoder", "unet")])
def test_parts_without_the_variant_are_loaded_plain_as_by_diffusers(folder: Path, having: tuple[str, ...]) -> None:
    before = sizes(load_backbone(str(folder), device="cpu"))
    for component in having:
        as_variant(folder, component)
    assert sizes(load_backbone(str(folder), device="cpu")) == before
    with pytest.warns(Notice) as caught:
        after = sizes(load_backbone(str(folder), device="cpu", variant="fp16"))
    for component in WEIGHTS:
        assert after[component] == pytest.approx(before[component] / (2 if component in having else 1), rel=1e-5)
        told = any(f"its {component} has no variant fp16" in str(each.message) for each in caught)
        assert told is (component not in having)


def test_a_variant_that_no_part_has_is_refused(folder: Path) -> None:
    def load(variant: str) -> Callable[[], object]:
        return lambda: load_backbone(str(folder), device="cpu", variant=variant)

    assert "no weights of the variant 'fp16'; it has: no variants" in message_of(BadInput, load("fp16"))
    as_variant(folder, "unet")
    for name in ("bf16", "FP16", "fp1"):
        assert f"no weights of the variant {name!r}; it has: fp16" in message_of(BadInput, load(name))


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_part_that_has_only_a_variant_names_the_option(folder: Path, component: str) -> None:
    as_variant(folder, component, keep=False)
    said = message_of(BadInput, lambda: load_backbone(str(folder), device="cpu"))
    assert said.endswith(f"its {component} has only the variant fp16: add --variant fp16")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["model.safetensors"], {None}),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], {"fp16"}),
        (["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], {"fp16"}),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model-00001-of-00003.safetensors"], {"non_ema", None}),
        (["model.fp16.bin", "config.json", "other.fp16.safetensors", "my_model.safetensors"], set()),
    ],
)  # fmt: skip
def test_variants_are_read_from_names_of_files(tmp_path: Path, files: list[str], found: set[str | None]) -> None:
    (tmp_path / "unet").mkdir()
    for name in files:
        (tmp_path / "unet" / name).touch()
    assert model_folder.weight_variants(str(tmp_path)).get("unet", set()) == found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (["pipeline", "StableDiffusionPipeline"], "its pipeline pipeline.StableDiffusionPipeline is code of its own"),
        (["my_code", "Mine"], "its pipeline my_code.Mine is code of its own, which is never run"),
        ([], "is code of its own"),
        (None, "names no pipeline in _class_name"),
        (7, "names no pipeline in _class_name"),
        ({"a": 1}, "names no pipeline in _class_name"),
    ],
)
def test_a_class_name_that_is_no_name_is_refused(folder: Path, name: object, said: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert said in message_of(BadInput, lambda: load_backbone(str(folder), device="cpu"))
    assert said in message_of(BadInput, lambda: StableDiffusion.from_pretrained(str(folder)))
    assert said in message_of(BadInput, lambda: defaults_of("x", lambda file: {"_class_name": name}))


@pytest.mark.parametrize(
    ("file", "names", "said"),
    [
        ("xl.safetensors", ["conditioner.embedders.1.model.ln_final.weight"], "StableDiffusionXLPipeline.from_single_file("),
        ("old.v1.safetensors", ["cond_stage_model.transformer.x", "model.diffusion_model.x"], "; StableDiffusionPipeline.from_single_file("),
        ("three.safetensors", ["model.diffusion_model.joint_blocks.0.x"], "StableDiffusion3Pipeline.from_single_file("),
        ("flux.safetensors", ["double_blocks.0.img_attn.proj.weight"], "FluxPipeline.from_single_file("),
        ("ink.safetensors", ["unet.down_blocks.0.to_q.lora_A.weight"], "is a LoRA adapter, not a model: add it to a model with --lora"),
        ("kohya.safetensors", ["lora_unet_x.lora_down.weight"], "is a LoRA adapter, not a model"),
        ("unknown.safetensors", ["some.weight"], "; StableDiffusionPipeline.from_single_file("),
    ],
)  # fmt: skip
def test_a_single_file_says_how_to_convert_it(tmp_path: Path, file: str, names: list[str], said: str) -> None:
    path = tmp_path / file
    save_file({name: torch.zeros(1) for name in names}, path)
    for load in (
        lambda: load_backbone(str(path)),
        lambda: check_model(str(path)),
        lambda: StableDiffusion.from_pretrained(str(path)),
    ):
        found = message_of(BadInput, load)
        assert said in found
        if "convert" in found:
            assert f"from_single_file('{path}').save_pretrained('{path.with_suffix('')}')" in found


@pytest.mark.parametrize("name", ["it's.v1", 'a "b" c', "$HOME", "back`tick`", "back\\slash", "über ☂"])
@pytest.mark.parametrize("layer", ["joint_blocks.0.x", "unet.lora_A.weight"])
def test_what_a_single_file_is_to_be_given_to_can_be_pasted_into_a_shell(tmp_path: Path, name: str, layer: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file({layer: torch.zeros(1)}, path)
    said = message_of(BadInput, lambda: check_model(str(path)))
    if "lora" in layer:
        shown = subprocess.run(
            ["sh", "-c", f"printf %s {said.partition('--lora ')[2]}"], capture_output=True, check=True
        )
        assert shown.stdout.decode() == str(path)
        return
    command = said.partition("use that: python -c ")[2]
    program = subprocess.run(["sh", "-c", f"printf %s {command}"], capture_output=True, check=True).stdout.decode()
    given = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    assert sorted(given) == sorted([str(path), str(tmp_path / name)])


def test_other_files_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "model.gguf", "empty"):
        Path(name).write_text("")
        for path in (name, f"./{name}", str(tmp_path / name)):
            said = message_of(BadInput, lambda path=path: load_backbone(path))  # type: ignore[misc]
            assert "is a file, not a model folder in diffusers format" in said
    for path in ("broken.safetensors", "old.ckpt"):
        Path(path).write_text("")
        said = message_of(BadInput, lambda path=path: load_backbone(path))  # type: ignore[misc]
        assert (
            "is a single file; convert it once" in said
            and f"StableDiffusionPipeline.from_single_file('{path}')" in said
        )

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("safetensors.safe_open", forbidden)
    assert "is a single file" in message_of(BadInput, lambda: load_backbone("broken.safetensors"))


def test_a_file_that_is_called_like_an_embedded_model_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes-sd").write_text("notes")
    check_model("shapes-sd")
    assert find_model("shapes-sd")[1] == "StableDiffusionPipeline"


def test_an_empty_name_is_not_the_model_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models()["shapes-sd"].target)
    assert find_model(".")[1] == "StableDiffusionPipeline"
    for refused in (lambda: find_model(""), lambda: check_model(""), lambda: load_backbone("")):
        assert "unknown model ''. Known: shapes-flux" in message_of(BadInput, refused)


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(model_folder, "get_hf_file_metadata", fail)


@pytest.mark.parametrize(
    "path", ["/gone", "./gone", "~/gone", "gone/old.ckpt", "gone/new.safetensors", "one/two/three", "alone"]
)
def test_what_can_only_be_a_path_is_never_sought_on_the_hub(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def sought(*_: object, **__: object) -> None:
        pytest.fail("the Hub was asked")

    monkeypatch.setattr(model_folder, "get_hf_file_metadata", sought)
    monkeypatch.setattr(model_folder, "hf_hub_download", sought)
    said = message_of(BadInput, lambda: model_folder.read_json(path, "model_index.json"))
    assert said == f"there is no model folder {path}"


@pytest.mark.parametrize("name", ["a b/c", "owner/-name", "owner/na..me"])
def test_a_name_that_the_hub_does_not_allow_is_refused(unplugged: None, name: str) -> None:
    said = message_of(BadInput, lambda: model_folder.read_json(name, "model_index.json"))
    assert said == f"there is no model {name}, neither as a folder nor on the Hub"


@pytest.mark.parametrize("name", ["nobody/no-model", "stabilityai/none-such", "a/b"])
def test_without_a_network_an_unknown_name_is_refused_at_once(unplugged: None, folder: Path, name: str) -> None:
    said = message_of(Failure, lambda: load_backbone(name))
    assert said == f"model {name}: no folder of that name, and the Hub cannot be reached"
    assert said == message_of(Failure, lambda: model_folder.read_json(name, "lotts.json", optional=True))
    for adapter in (name, f"{name}/ink.safetensors"):
        said = message_of(Failure, lambda adapter=adapter: load_backbone(str(folder), device="cpu", lora=[adapter]))  # type: ignore[misc]
        assert said == f"there is no LoRA adapter {adapter}, neither a file nor a folder, and the Hub cannot be reached"


@pytest.mark.parametrize(
    "path", ["loras/gone.safetensors", "./loras/gone.safetensors", "gone.safetensors", "my loras/x", "style"]
)
def test_a_path_of_an_adapter_that_is_not_there_is_never_sought_on_the_hub(folder: Path, path: str) -> None:
    said = message_of(BadInput, lambda: load_backbone(str(folder), device="cpu", lora=[path]))
    assert said == f"there is no LoRA adapter {path}, neither a file nor a folder"


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("name", ["nobody/no-model", "./gone", "shapes-ds"])
def test_a_wrong_name_is_refused_before_a_verifier_or_ray_starts(unplugged: None, name: str, local: bool) -> None:
    def enter() -> None:
        with Compute(local=local).pool(name, "no_such_module:Verifier"):
            pass

    said = message_of(Failure if "nobody" in name else BadInput, enter)
    assert name in said and ("did you mean 'shapes-sd" in said) is (name == "shapes-ds")


def answer(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    """Return an error that the Hub answers."""
    return kind("no", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_the_parts_of_a_model_on_the_hub_are_listed_once_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        None: [
            "README.md",
            "model_index.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/model.safetensors",
        ],
        "old": ["unet/model.safetensors"],
    }
    monkeypatch.setattr(model_folder, "reachable", lambda model: True)
    monkeypatch.setattr(model_folder, "list_repo_files", lambda model, revision: files[revision])
    assert model_folder.weight_variants("some/model") == {"unet": {"fp16"}, "vae": {None}}
    assert model_folder.weight_variants("some/model", "old") == {"unet": {None}}
    monkeypatch.setattr(model_folder, "list_repo_files", raising(answer(HfHubHTTPError)))
    said = message_of(Failure, lambda: model_folder.weight_variants("some/model"))
    assert said == "model some/model: the Hub does not list its files (no)"


@pytest.mark.parametrize(
    ("error", "reached"),
    [
        (None, True),
        (answer(HfHubHTTPError), True),
        (answer(RepositoryNotFoundError), True),
        (ConnectionError("Name or service not known"), False),
        (TimeoutError("timed out"), False),
    ],
    ids=str,
)
def test_the_hub_is_reached_if_it_answers_in_time(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, reached: bool
) -> None:
    def ask(address: str, timeout: float) -> None:
        assert 0 < timeout <= 10, "the libraries would wait for half a minute"
        if error is not None:
            raise error

    monkeypatch.setattr(model_folder, "get_hf_file_metadata", ask)
    assert model_folder.reachable("some/model") is reached


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RemoteEntryNotFoundError, "model some/model on the Hub has no lotts.json"),
        (GatedRepoError, "model some/model is gated: accept its terms on the Hub, and log in with `hf auth login`"),
        (RepositoryNotFoundError, "there is no model some/model, neither as a folder nor on the Hub"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: type[HfHubHTTPError], said: str
) -> None:
    monkeypatch.setattr(model_folder, "reachable", lambda model: True)
    monkeypatch.setattr(model_folder, "hf_hub_download", raising(answer(error)))
    assert message_of(BadInput, lambda: model_folder.read_json("some/model", "lotts.json")) == said
    if error is RemoteEntryNotFoundError:
        assert model_folder.read_json("some/model", "lotts.json", optional=True) == {}
    else:
        assert message_of(BadInput, lambda: model_folder.read_json("some/model", "lotts.json", optional=True)) == said


@pytest.mark.parametrize("connected", [True, False])
def test_the_libraries_ask_the_hub_only_while_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    asked: list[object] = []

    def download(model: str, file: str, revision: object, local_files_only: bool) -> str:
        asked.append(local_files_only)
        return str(tmp_path / file)

    class Part:
        @classmethod
        def from_pretrained(cls, model: str, **options: object) -> Any:
            asked.append(options.get("local_files_only", False))
            return torch.nn.Identity(), {"missing_keys": []}

    for module in (model_folder, loading):
        monkeypatch.setattr(module, "reachable", lambda model: connected)
    monkeypatch.setattr(model_folder, "hf_hub_download", download)
    monkeypatch.setattr(model_folder, "list_repo_files", lambda model, revision: [])
    Loader("some/model", "FluxPipeline", {"device": "cpu"}).weights("vae", Part)
    assert asked == [not connected] * 2


@pytest.mark.parametrize(
    ("source", "connected", "sought", "loaded"),
    [
        ("me/style", True, None, ("me/style", None)),
        ("me/style/deep/ink.safetensors", True, None, ("me/style", "deep/ink.safetensors")),
        ("me/style", False, "pytorch_lora_weights.safetensors", ("{cache}", "pytorch_lora_weights.safetensors")),
        ("me/style/ink.safetensors", False, "ink.safetensors", ("{cache}", "ink.safetensors")),
    ],
)
def test_an_adapter_of_the_hub_is_loaded_by_repository_and_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    connected: bool,
    sought: str | None,
    loaded: tuple[str, str | None],
) -> None:
    found: list[object] = []

    def download(repository: str, file: str, local_files_only: bool) -> str:
        assert repository == "me/style" and local_files_only
        found.append(file)
        return str(tmp_path / file)

    class Pipeline:
        def lora_state_dict(self, source: str, **options: Any) -> dict[str, object]:
            found.append((source.replace(str(tmp_path), "{cache}"), options.get("weight_name")))
            return {}

        def load_lora_weights(self, source: str, adapter_name: str, **options: Any) -> None:
            self.lora_state_dict(source, **options)

        def get_list_adapters(self) -> dict[str, object]:
            return {}

    monkeypatch.setattr(diffusers, "MadeUpPipeline", Pipeline, raising=False)
    monkeypatch.setattr(lora, "reachable", lambda model: connected)
    monkeypatch.setattr(lora, "hf_hub_download", download)
    with pytest.raises(BadInput, match="another family"):
        lora.merge_adapters("m", "MadeUpPipeline", {}, [Adapter(source)])
    # What is checked is what is merged.
    assert found == ([] if sought is None else [sought]) + [loaded, loaded]


@pytest.mark.parametrize("known_absent", [True, False])
def test_a_cached_model_is_read_without_a_network(
    unplugged: None, known_absent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, cache = "0" * 40, tmp_path / "models--some--model"
    for place in (f"snapshots/{commit}/unet", "refs", f".no_exist/{commit}"):
        (cache / place).mkdir(parents=True)
    (cache / "snapshots" / commit / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (cache / "snapshots" / commit / "unet" / "model.fp16.safetensors").touch()
    (cache / "refs" / "main").write_text(commit)
    if known_absent:
        (cache / ".no_exist" / commit / "lotts.json").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_folder.read_json("some/model", "model_index.json") == {"_class_name": "FluxPipeline"}
    assert model_folder.weight_variants("some/model") == {"unet": {"fp16"}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model_folder.read_json("some/model", "lotts.json", optional=True) == {}
    assert [each.category for each in caught] == ([] if known_absent else [Notice])


class Mine(StableDiffusion):
    """A family of another package."""


class MineToo(Mine):
    """A family derived from it."""


@pytest.mark.parametrize("kind", [Mine, MineToo])
def test_a_family_by_subclass_loads_the_pipeline_that_it_is_registered_for(
    folder: Path, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "MinePipeline"}))
    with pytest.raises(BadInput, match="is a MinePipeline, not a StableDiffusionPipeline"):
        StableDiffusion.from_pretrained(str(folder))
    point = EntryPoint("MinePipeline", f"{__name__}:{kind.__name__}", "lotts_search.families")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])
    plugins._plugins.cache_clear()
    try:
        assert type(load_backbone(str(folder), device="cpu")).__name__ == kind.__name__
    finally:
        plugins._plugins.cache_clear()


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux])
def test_only_subclasses_of_a_family_accept_another_pipeline(tmp_path: Path, family: Any) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "MinePipeline"}')
    with pytest.raises(BadInput, match="is a MinePipeline, not a "):
        family.from_pretrained(str(tmp_path), device="cpu")
    with pytest.raises(Failure, match="cannot load its "):  # the folder has no weights
        type("Own", (family,), {}).from_pretrained(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("name", "origin", "scheduler", "found"),
    [
        ("sdxl-turbo", "", {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, (4, 1.0, 2, 1)),
        ("mine", "stabilityai/sd-turbo", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, (4, 1.0, 2, 1)),
        ("SDXL-Lightning-8step", "", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, (8, 1.0, 4, 1)),
        ("sdxl_lightning_2step_unet", "", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, (2, 1.0, 1, 0)),
        ("Turbo, 6 Steps", "", {"timestep_spacing": "trailing"}, (6, 1.0, 3, 1)),
        ("turbo_16-steps", "", {"timestep_spacing": "trailing"}, (16, 1.0, 8, 1)),
        ("turbo-of-128steps", "", {"timestep_spacing": "trailing"}, (4, 1.0, 2, 1)),
        ("dreamshaper", "", {"_class_name": "LCMScheduler"}, (4, 1.0, 2, 1)),
        ("mix", "", {"_class_name": "TCDScheduler"}, (4, 1.0, 2, 1)),
        ("sd3.5-large-turbo", "", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, (4, 1.0, 2, 1)),
        ("sdxl-turbo", "", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, (30, 5.5, 15, 3)),
        ("juggernaut", "", {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, (30, 5.5, 15, 3)),
        ("sdxl", "", {}, (30, 5.5, 15, 3)),
        ("turbo-and-lightning/mine", "", {"timestep_spacing": "trailing"}, (30, 5.5, 15, 3)),
    ],
)  # fmt: skip
def test_models_distilled_to_few_steps_get_few_steps(
    name: str, origin: str, scheduler: dict[str, str], found: tuple[float, ...]
) -> None:
    index = {"_class_name": "StableDiffusionXLPipeline", "_name_or_path": origin}
    got = few_steps(f"models/{name}", index, scheduler, STABLE_DIFFUSION_XL)
    assert (got.steps, got.guidance, got.t0, got.integrate) == found
    files = {"model_index.json": index, "scheduler/scheduler_config.json": scheduler, "lotts.json": {}}
    before_loading = defaults_of(f"models/{name}", lambda file: files[file])
    assert before_loading == (got, False)
    for flux in (FLUX_SCHNELL, FLUX_DEV):
        assert few_steps(name, index, scheduler, flux) is flux


def test_few_steps_are_reported_unless_the_folder_sets_its_own(original: Path, tmp_path: Path) -> None:
    turbo = Path(shutil.copytree(original, tmp_path / "sd-turbo"))
    config = turbo / "scheduler" / "scheduler_config.json"
    settings = json.loads(config.read_text()) | {
        "_class_name": "EulerDiscreteScheduler",
        "timestep_spacing": "trailing",
    }
    config.write_text(json.dumps(settings))
    with pytest.warns(Notice, match="looks distilled to few steps .*: its defaults are 4 steps without guidance"):
        info = load_backbone(str(turbo), device="cpu").info
    assert (info.defaults.steps, info.defaults.guidance, info.scheduler) == (4, 1.0, "EulerDiscreteScheduler")
    (turbo / "lotts.json").write_text('{"steps": 6, "guidance": 2}')
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        info = load_backbone(str(turbo), device="cpu").info
        assert (info.defaults.steps, info.defaults.guidance) == (6, 2.0)
        (turbo / "lotts.json").write_text('{"guidance": 2}')
        assert load_backbone(str(turbo), device="cpu").info.defaults.guidance == 2
        plain = load_backbone(str(original), device="cpu").info
    assert (
        plain.defaults == STABLE_DIFFUSION
        and plain.scheduler == json.loads((original / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    )


@pytest.mark.parametrize(
    ("name", "spacing"), [("dream-turbo", "leading"), ("lcm-mix", "linspace"), ("my Hyper-SD", "leading")]
)
def test_a_name_of_few_steps_without_their_timesteps_is_reported(
    original: Path, tmp_path: Path, name: str, spacing: str
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / name))
    config = folder / "scheduler" / "scheduler_config.json"
    settings = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": spacing}
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.warns(Notice, match=f"may need few steps .* are {spacing}: it keeps 50 steps with guidance 7.5"):
        assert load_backbone(str(folder), device="cpu").info.defaults == STABLE_DIFFUSION
    (folder / "lotts.json").write_text('{"steps": 6}')
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert load_backbone(str(folder), device="cpu").info.defaults.steps == 6


@pytest.mark.parametrize(
    ("settings", "defaults"),
    [
        ({"steps": 10}, (10, 5, 1)),  # t0 and tg keep their share of the family's 50 steps
        ({"steps": 3}, (3, 2, 0)),
        ({"steps": 20, "t0": 3}, (20, 3, 2)),
        ({"t0": 48}, (50, 48, 2)),
    ],
)
def test_a_models_own_steps_carry_the_settings_of_its_family_along(
    settings: dict[str, int], defaults: tuple[int, int, int]
) -> None:
    found = merged("m", settings, STABLE_DIFFUSION)
    assert (found.steps, found.t0, found.integrate) == defaults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be within 1..10000, not 0"),
        ({"steps": -3, "t0": 1}, "steps must be within 1..10000, not -3"),
        ({"t0": 50}, "t0 must be within 0..49, not 50"),
        ({"steps": 10, "t0": 25}, "t0 must be within 0..9, not 25"),
        ({"integrate": 26}, "integrate must be within 0..25, not 26"),
        ({"t0": -1}, "t0 must be within 0..49, not -1"),
        ({"steps": 9.7}, "bad value for 'steps': it must be a whole number, not 9.7"),
        ({"steps": float("nan")}, "bad value for 'steps': it must be a whole number, not nan"),
        ({"integrate": True}, "bad value for 'integrate': it must be a number, not True"),
        ({"guidance": "7"}, "bad value for 'guidance': it must be a number, not '7'"),
        ({"eta": None}, "bad value for 'eta': it must be a number, not None"),
    ],
)
def test_settings_of_a_model_that_cannot_work_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=rf"model m: lotts.json: {message}"):
        merged("m", settings, STABLE_DIFFUSION)


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "banana"},
        {"timestep_spacing": "banana"},
        {"beta_start": "0.1"},
        {"beta_start": -0.1},
        {"trained_betas": "none"},
    ],
    ids=str,
)
def test_broken_settings_of_a_scheduler_are_one_sentence(
    original: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(Failure, match="cannot load its scheduler: "):
        load_backbone(str(folder), device="cpu").schedule(4)


LOADING = """
import sys
from lotts_search.registry import load_backbone

def read():
    return int(open("/proc/self/io").read().split("read_bytes:")[1].split()[0])

load_backbone("shapes-flux", device="cpu")
before = read()
load_backbone(sys.argv[1], device="cpu")
print(read() - before)
"""
"""Prints how many bytes a process reads from the disk to load a model, beside the code that it needs."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="this system does not count what is read")
def test_a_machine_reads_the_weights_once_whatever_the_number_of_processes(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model("shapes-flux")[0], tmp_path / "model"))
    weights = list(folder.rglob("*.safetensors"))
    for file in weights:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    words = [sys.executable, "-c", LOADING, str(folder)]
    first, second = (int(subprocess.run(words, capture_output=True, check=True).stdout.split()[-1]) for _ in range(2))
    if first == 0:
        pytest.skip("the files are in memory anyway")
    size = sum(file.stat().st_size for file in weights)
    assert first > 0.9 * size and second < 0.1 * size
