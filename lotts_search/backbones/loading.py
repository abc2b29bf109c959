"""Load the parts of a model folder with the options that all families share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.defaults import few_steps, merged, pipeline_of, sounds_distilled
from lotts_search.backbones.load_options import LoadOptions
from lotts_search.backbones.lora import check_adapters, merge_adapters
from lotts_search.backbones.model_folder import load_component, load_weights, reachable, read_json, weight_variants
from lotts_search.backbones.offload import offload
from lotts_search.backbones.spread import free_bytes, gpus, spread
from lotts_search.errors import BadInput, Failure, notice
from lotts_search.work.fitting import out_of_memory
from lotts_search.work.model import Defaults


class Loader:
    """Load the parts of a diffusers folder or Hub id, then move them to their device.

    A family reads its modules with :meth:`weights`, :meth:`autoencoder`, :meth:`tokenizer` and :meth:`scheduler`, and
    ends with :meth:`settle`, which merges adapters and moves everything.

    Args:
        model: folder or Hub id.
        pipeline: name of the diffusers pipeline that the folder must contain. It is imported only to load adapters:
            importing pipelines is slow.
        options: keyword arguments of ``from_pretrained``: the fields of :class:`LoadOptions`.
        plugin: accept a folder of any pipeline, for a subclass that another package registers for its own.

    Attributes:
        index: the folder's ``model_index.json``.
        device: device of the model.

    Raises:
        BadInput: the model does not exist or is of another family, or an option is invalid.
    """

    def __init__(self, model: str, pipeline: str, options: dict[str, Any], plugin: bool = False):
        self.options = LoadOptions.of(options)
        self.model, self.name = model, self.options.name or model
        self.index = read_json(model, "model_index.json", revision=self.options.revision)
        found = pipeline_of(model, self.index)
        if found != pipeline and not plugin:
            raise BadInput(f"model {model} is a {found}, not a {pipeline}")
        self._pipeline = pipeline
        self.dtype: torch.dtype = getattr(torch, self.options.dtype)
        try:
            self.device = torch.device(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise BadInput(f"device must be cpu, cuda or cuda:N, got {self.options.device!r}") from error
        self._gpus = gpus(self.device, self.options.spread) if self.options.spread else []
        self.device = self._gpus[0] if self._gpus else self.device
        check_adapters(self.options.lora)
        self._loaded: dict[str, Any] = {}
        self._helpers: list[Any] = []
        self._source: dict[str, Any] = {} if self.options.revision is None else {"revision": self.options.revision}
        if not Path(model).is_dir() and not reachable(model):
            self._source["local_files_only"] = True  # or the libraries retry for half a minute for every missing file
        self._variants = weight_variants(model, self.options.revision)
        known = set().union(*self._variants.values())
        if self.options.variant is not None and self.options.variant not in known:
            raise BadInput(
                f"model {model} has no weights of the variant {self.options.variant!r}; it has: "
                f"{', '.join(sorted(filter(None, known))) or 'no variants'}"
            )

    def weights(self, component: str, cls: Any, dtype: torch.dtype | None = None) -> Any:
        """Load a module of the folder, on the CPU; ``dtype`` None = that of the options."""
        found, wanted = self._variants.get(component, set()), self.options.variant
        if wanted is not None and wanted not in found:
            notice(f"model {self.model}: its {component} has no variant {wanted}, so its plain weights are loaded")
            wanted = None
        if found and wanted not in found:
            known = " or ".join(sorted(filter(None, found)))
            raise BadInput(f"model {self.model}: its {component} has only the variant {known}: add --variant {known}")
        variant = {} if wanted is None else {"variant": wanted}
        # transformers and diffusers name the same argument differently.
        key = "dtype" if cls.__module__.startswith("transformers.") else "torch_dtype"
        module = load_weights(self.model, component, cls, **{key: dtype or self.dtype}, **self._source, **variant)
        self._loaded[component] = module
        return module

    def autoencoder(self) -> LatentCodec:
        """Load the folder's AutoencoderKL and the tiny decoder that the options may name."""
        config = read_json(self.model, "vae/config.json", optional=True, revision=self.options.revision)
        # Only diffusers' SDXL pipeline reads this setting, and its default there is True.
        upcast = config.get("force_upcast", self._pipeline == "StableDiffusionXLPipeline")
        dtype = torch.float32 if upcast and self.dtype == torch.float16 else self.dtype
        vae = self.weights("vae", AutoencoderKL, dtype)
        if self.options.vae_slicing:
            vae.enable_slicing()
        if self.options.vae_tiling:
            vae.enable_tiling()
        tiny = None if self.options.preview is None else self._tiny(self.options.preview)
        codec = LatentCodec(vae, self.device, tiny)
        if tiny is not None and tiny.config["latent_channels"] != codec.channels:
            raise BadInput(
                f"the tiny decoder {self.options.preview} takes {tiny.config['latent_channels']} latent channels,"
                f" model {self.model} has {codec.channels}"
            )
        return codec

    def _tiny(self, source: str) -> Any:
        read_json(source, "config.json")  # reports a missing model in one line
        tiny = load_weights(source, "", AutoencoderTiny, torch_dtype=self.dtype)
        self._helpers.append(tiny)
        return tiny

    def tokenizer(self, component: str, cls: Any, limit: int | None = None) -> Any:
        """Load a tokenizer of the folder; ``limit`` is the maximum number of tokens of its text encoder."""

        def load() -> Any:
            tokenizer = cls.from_pretrained(self.model, subfolder=component, **self._source)
            # Without its files a tokenizer still loads, but with special tokens only.
            if len(tokenizer) < 10:
                raise ValueError("its vocabulary is missing")
            if limit is not None:
                tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
            return tokenizer

        self._loaded[component] = load_component(self.model, component, load)
        return self._loaded[component]

    def scheduler(self, cls: Any) -> dict[str, Any]:
        """Return the config of the folder's scheduler, read by the class ``cls``."""
        config: dict[str, Any] = load_component(
            self.model, "scheduler", lambda: cls.load_config(self.model, subfolder="scheduler", **self._source)
        )
        return config

    def config(self, component: str) -> dict[str, Any]:
        """Return the config of a component of the folder."""
        return read_json(self.model, f"{component}/config.json", revision=self.options.revision)

    def latent_size(self, multiple: int, factor: int) -> tuple[int, int] | None:
        """Return latent height and width for the options' image size, None for the model's own size.

        Args:
            multiple: both sides must be multiples of this number of pixels.
            factor: image pixels per latent pixel and side.

        Raises:
            BadInput: a side is not such a multiple.
        """
        size = self.options.size
        if size is None:
            return None
        if min(size) < multiple or size[0] % multiple or size[1] % multiple:
            near = [max(multiple, round(side / multiple) * multiple) for side in size]
            raise BadInput(
                f"height and width must be multiples of {multiple} pixels for {self.name}, such as {near[0]}x{near[1]}, got "
                f"{size[0]}x{size[1]}"
            )
        return size[0] // factor, size[1] // factor

    def defaults(self, family: Defaults) -> Defaults:
        """Return the folder's settings, completed with those of its family."""
        settings, scheduler = (
            read_json(self.model, file, optional=True, revision=self.options.revision)
            for file in ("lotts.json", "scheduler/scheduler_config.json")
        )
        few = few_steps(self.model, self.index, scheduler, family)
        if settings.keys() & {"steps", "guidance"}:
            return merged(self.model, settings, few)
        if few is family and sounds_distilled(self.model, self.index, family):
            spacing = scheduler.get("timestep_spacing", "linspace or leading")
            notice(
                f"model {self.model} may need few steps by its name, but the timesteps of its {scheduler.get('_class_name')} are"
                f" {spacing}: it keeps {few.steps} steps with guidance {few.guidance:g}; --steps and --guidance, or steps and"
                " guidance in its lotts.json, change that"
            )
        elif few is not family:
            notice(
                f"model {self.model} looks distilled to few steps (by its name or {scheduler.get('_class_name')}): its defaults"
                f" are {few.steps} steps without guidance"
            )
        return merged(self.model, settings, few)

    def settle(self, **rest: Any) -> None:
        """Merge adapters, move all modules to the device or to several, or set up offloading, and compile if requested.

        Args:
            rest: arguments of the pipeline's constructor besides the loaded parts.

        Raises:
            BadInput: several GPUs together have too little memory.
            Failure: the device has too little memory.
        """
        if self.options.lora:
            merge_adapters(self.model, self._pipeline, {**self._loaded, **rest}, self.options.lora)
        parts = [*self._loaded.values(), *self._helpers]
        modules = [part for part in parts if isinstance(part, torch.nn.Module)]
        if self.options.channels_last:
            for module in modules:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.options.offload is not None:
            offload(modules, self.options.offload, self.device)
        elif self._gpus:
            if not self._networks:
                raise BadInput(f"model {self.name} cannot be spread: it has neither a unet nor a transformer")
            encoders = [module for name, module in self._loaded.items() if name.startswith("text_encoder")]
            others = [module for module in modules if module not in (*self._networks, *encoders)]
            rooms = [free_bytes(gpu) for gpu in self._gpus]
            spread(self.name, self._networks[0], encoders, others, self._gpus, rooms)
        else:
            load_component(self.model, f"device {self.device}", lambda: self._move(modules))
        if self.options.compile:
            # Batch sizes of a search vary; without `dynamic` each size would be compiled separately.
            for network in self._networks:
                network.compile_repeated_blocks(dynamic=True)

    @property
    def _networks(self) -> list[Any]:
        return [self._loaded[part] for part in ("unet", "transformer") if part in self._loaded]

    def _move(self, modules: list[torch.nn.Module]) -> None:
        try:
            for module in modules:
                module.to(self.device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise Failure(
                f"model {self.name} does not fit into the memory of {self.device}: choose a smaller dtype, spread=2 for two GPUs, or "
                "offload='model'"
            ) from error
