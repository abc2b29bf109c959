"""The nodes: generate an image, or refine images, by a search on a server."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from typing import Any

from . import endpoint
from .images import image_files, image_of, mask_files, picture

UNITS = ("images", "nfe", "seconds")
SEED = 2**53 - 1
"""Larger whole numbers are not exact in a browser."""
PREVIEW = 512
"""Longest side of a preview in pixels."""

COMMON: dict[str, dict[str, Any]] = {
    "required": {
        "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True}),
        "strategy": ("STRING", {"default": "", "tooltip": "one of /v1/strategies of the server; empty = its default"}),
        "budget": ("FLOAT", {"default": 9.0, "min": 0.1, "max": 1e6, "step": 1.0}),
        "unit": (list(UNITS), {"default": "images", "tooltip": "of the budget; nfe = denoising steps of one image"}),
        "seed": ("INT", {"default": 0, "min": 0, "max": SEED, "control_after_generate": True}),
    },
    "optional": {
        "negative_prompt": ("STRING", {"default": "", "multiline": True}),
        "steps": ("INT", {"default": 0, "min": 0, "max": 10_000, "tooltip": "of one image; 0 = the model's own"}),
        "guidance": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 1000.0, "tooltip": "below 0 = the model's own"}),
        "model": ("STRING", {"default": "", "tooltip": "one of /v1/models; empty = the server's first"}),
        "verifier": ("STRING", {"default": "", "tooltip": "what scores the images; empty = the model's first"}),
        "settings": ("STRING", {"default": "", "tooltip": 'of the strategy, as JSON: {"refinements": 4}'}),
        "server": ("STRING", {"default": "", "tooltip": f"its address; empty = $LOTTS_URL, or {endpoint.HERE}"}),
    },
}
"""Inputs of both nodes. The API key is none of them, since they are saved with a workflow: it is ``$LOTTS_API_KEY``."""


class _Search:
    """What both nodes have in common."""

    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    OUTPUT_TOOLTIPS = ("the best image", "seed, score and the command that makes it again")
    FUNCTION = "run"
    CATEGORY = "lotts-search"

    @classmethod
    def IS_CHANGED(cls, server: str | None = "", **_: Any) -> str:
        """Equal inputs give equal images, so what may change beside them is the server that an empty address means."""
        return endpoint.address(server)

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        budget: float | None = None,
        unit: str | None = None,
        settings: str | None = None,
        server: str | None = None,
    ) -> bool | str:
        """Return True, or what is wrong; None is an input that another node computes."""
        try:
            if budget is not None and unit is not None:
                _budget(budget, unit)
            _settings(settings or "")
            endpoint.address(server)
        except ValueError as error:
            return str(error)
        return True


class Generate(_Search):
    """Search for the best image of a prompt."""

    DESCRIPTION = "Searches for the best image of a prompt within a budget, on a server of lotts-search."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Return the inputs."""
        return COMMON

    def run(self, **inputs: Any) -> tuple[Any, str]:
        """Return the image [1, H, W, 3] and the report.

        Raises:
            ValueError: an input is wrong.
            RuntimeError: the server refuses, fails or does not answer.
        """
        events = endpoint.generate(inputs.get("server") or "", _fields(inputs, inputs["seed"]))
        found, report = _watch(events, _Progress(1), 0)
        return image_of([found]), report


class Refine(_Search):
    """Refine images: resample a region that is given or found, and keep the best."""

    DESCRIPTION = (
        "Resamples the region inside the mask, or without a mask the one that looks defective, within a budget, on a server of "
        "lotts-search. Images are cropped and resampled to the size of the server's model."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Return the inputs."""
        return {
            "required": {"image": ("IMAGE",), **COMMON["required"]},
            "optional": {"mask": ("MASK",), **COMMON["optional"]},
        }

    def run(self, image: Any, mask: Any = None, **inputs: Any) -> tuple[Any, str]:
        """Return the refined images [B, H, W, 3], each by its own search with its own seed, and the report.

        Args:
            image: [B, H, W, C], 0..1.
            mask: [H, W] or [B, H, W], resampled from 0.5.

        Raises:
            ValueError, RuntimeError: as :meth:`Generate.run`.
        """
        images = image_files(image)
        files: list[dict[str, bytes]] = [{"image": one} for one in images]
        if mask is not None:
            for one, marked in zip(files, mask_files(mask, len(images)), strict=True):
                one["mask_image"] = marked
        progress = _Progress(len(images))
        found = []
        for number, one in enumerate(files):
            events = endpoint.edit(inputs.get("server") or "", _fields(inputs, inputs["seed"] + number), one)
            found.append(_watch(events, progress, number))
        return image_of([one for one, _ in found]), "\n".join(report for _, report in found)


def _fields(inputs: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the fields of a request."""
    fields = {
        "prompt": inputs["prompt"],
        "seed": seed,
        inputs["unit"]: _budget(inputs["budget"], inputs["unit"]),
        "partial_images": 3,
        "events": True,
    }
    for name in ("strategy", "negative_prompt", "model", "verifier"):
        if inputs.get(name):
            fields[name] = inputs[name]
    if inputs.get("steps"):
        fields["num_inference_steps"] = inputs["steps"]
    if inputs.get("guidance", -1.0) >= 0:
        fields["guidance_scale"] = inputs["guidance"]
    settings = _settings(inputs.get("settings") or "")
    return {**fields, "settings": settings} if settings else fields


def _budget(budget: float, unit: str) -> float:
    if unit not in UNITS:
        raise ValueError(f"unit must be {', '.join(UNITS)}, not {unit!r}")
    if not 0 < budget <= 1e6:
        raise ValueError(f"budget must be above 0 and at most 1000000, not {budget}")
    if unit != "images":
        return budget
    if budget != int(budget):
        raise ValueError(f"a budget in images must be a whole number, not {budget}")
    return int(budget)


def _settings(text: str) -> dict[str, Any]:
    try:
        return dict((json.loads(text) if text.strip() else {}).items())
    except (ValueError, AttributeError):
        raise ValueError(f'settings must be a JSON object such as {{"refinements": 4}}, not {text!r}') from None


def _watch(events: Generator[dict[str, Any], None, None], progress: _Progress, number: int) -> tuple[Any, str]:
    """Return the image of a search and its report, showing progress on the way.

    Raises:
        RuntimeError: the stream ended without an image.
    """
    with closing(events):  # the server stops a search when its client is gone
        for event in events:
            progress.go_on()
            kind = event.get("type", "")
            if kind.endswith(".completed"):
                progress.show(number, 1.0)
                return picture(event["b64_json"]), _report(event)
            if kind.endswith(".partial_image"):
                progress.preview = picture(event["b64_json"])
            progress.show(number, event.get("spent", 0.0))
    raise RuntimeError("the server ended the stream without an image")


def _report(event: dict[str, Any]) -> str:
    score = "none" if event["score"] is None else f"{event['score']:.4f}"
    first = f"seed {event['seed']}, score {score}, {event['status']}: {event['recipe']}"
    return "\n  ".join([first, *event["notes"]])


class _Progress:
    """ComfyUI's progress bar, if this runs in ComfyUI.

    Args:
        count: of the searches.

    Attributes:
        preview: an image to show once.
    """

    def __init__(self, count: int):
        self.preview: Any = None
        self._count, self._done = count, 0.0
        try:
            from comfy.model_management import throw_exception_if_processing_interrupted
            from comfy.utils import ProgressBar
        except ImportError:
            self._bar, self._check = None, lambda: None
        else:
            self._bar, self._check = ProgressBar(1000), throw_exception_if_processing_interrupted

    def go_on(self) -> None:
        """Raise ComfyUI's exception if its user stopped the workflow; the server then stops the search."""
        self._check()

    def show(self, number: int, spent: float) -> None:
        """Show that search ``number`` has spent this share of its budget, 0..1."""
        self._done = max(self._done, (number + spent) / self._count)
        new, self.preview = self.preview, None
        if self._bar is not None:
            preview = None if new is None else ("JPEG", new, PREVIEW)
            self._bar.update_absolute(round(1000 * self._done), 1000, preview)


NODE_CLASS_MAPPINGS = {"LottsSearchGenerate": Generate, "LottsSearchRefine": Refine}
NODE_DISPLAY_NAME_MAPPINGS = {"LottsSearchGenerate": "Generate by search", "LottsSearchRefine": "Refine by search"}
