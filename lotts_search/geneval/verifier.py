"""GenEval by a detector of transformers and CLIP. torch and transformers are imported when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lotts_search.backbones.model_folder import load_component, load_weights
from lotts_search.errors import BadInput
from lotts_search.geneval.rules import Found, Verdict, judge, kept
from lotts_search.geneval.tasks import CLASSES, COLOURS, Task
from lotts_search.verifiers.clip import OPENAI, Clip
from lotts_search.verifiers.networks import Dtype, place
from lotts_search.verifiers.weights import find_folder
from lotts_search.work.requests import Bytes, Floats

YOLOS = "hustvl/yolos-base"
"""YOLOS of Fang et al. 2021, a plain vision transformer trained on COCO."""
OTHER_NAMES = {
    "mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard", "aeroplane": "airplane",
    "motorbike": "motorcycle", "sofa": "couch", "pottedplant": "potted plant", "diningtable": "dining table",
    "tvmonitor": "tv",
}  # fmt: skip
"""Classes of COCO as published detectors name them, and their names here."""


class GenEval:
    """``geneval``: 1 where a detector finds what a prompt of GenEval's tasks asks for, else 0 (Ghosh et al. 2023).

    The rules and thresholds are GenEval's. The detector is another, and colours are those of boxes instead of outlines, so
    compare its values with each other, not with published ones. It scores prompts of the set ``geneval``, and GenEval's own.
    """

    name = "geneval"
    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(
        self, detector: Any, processor: Any, clip: Clip, threshold: float, counting: float, overlap: float, batch: int
    ):
        self._detector, self._processor, self._clip = detector, processor, clip
        self._threshold, self._counting, self._overlap = threshold, counting, overlap
        self.batch = batch
        self._names = _names(detector.config)
        self._colours: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        *,
        weights: str = YOLOS,
        clip: str = OPENAI,
        tokenizer: str | None = None,
        threshold: float = 0.3,
        counting: float = 0.9,
        overlap: float = 1.0,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch: int = 8,
    ) -> GenEval:
        """Load the verifier.

        Args:
            weights: detector of COCO's classes in transformers' format, with safetensors: a folder or Hub id.
            clip: CLIP in transformers' format, which names colours: a folder or Hub id.
            tokenizer: folder or Hub id of CLIP's tokenizer; none = that of the CLIP.
            threshold: confidence, 0..1, above which an object counts.
            counting: the same in counting tasks.
            overlap: intersection over union, 0..1, from which the less confident of two objects of a class does not count;
                1 = all count.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of the networks.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, the detector lacks classes, or a setting is wrong.
        """
        for setting, value in (("threshold", threshold), ("counting", counting), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise BadInput(f"{setting} of verifier geneval must be 0..1, not {value:g}")
        if batch < 1:
            raise BadInput(f"batch must be 1 or more, not {batch}")
        folder = str(find_folder(cls.name, weights))
        where, precision = place(cls.name, device, dtype)
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        refused = {"trust_remote_code": False}  # not even a question on the terminal
        # Without torchvision, which this project does not need, the processors work on PIL images.
        processor = load_component(
            folder, "image processor", lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **refused)
        )
        detector = load_weights(folder, "", AutoModelForObjectDetection, dtype=precision, **refused).to(where)
        eye = Clip.load(cls.name, clip, device, dtype, batch, tokenizer=tokenizer, setting="clip")
        return cls(detector, processor, eye, threshold, counting, overlap, batch)

    @classmethod
    def check(cls, prompt: str) -> None:
        """Raise ValueError where the prompt is none of GenEval's tasks."""
        Task.of(prompt)

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return 1 for right and 0 for wrong [B] for ``prompts`` [B] and uint8 images [B, h, w, 3].

        Raises:
            BadInput: a prompt is none of GenEval's tasks.
        """
        return np.array([verdict.right for verdict in self.verdicts(prompts, images)], np.float32)

    def verdicts(self, prompts: list[str], images: Bytes) -> list[Verdict]:
        """Return the verdicts with their reasons; arguments and errors are those of :meth:`score`."""
        tasks = [Task.of(prompt) for prompt in prompts]
        return [
            self._verdict(task, image, found)
            for task, image, found in zip(tasks, images, self._detect(images), strict=True)
        ]

    def _verdict(self, task: Task, image: Bytes, found: list[Found]) -> Verdict:
        threshold = self._counting if task.tag == "counting" else self._threshold
        return judge(task, kept(found, threshold, self._overlap), lambda one: self._colour(image, one))

    def _detect(self, images: Bytes) -> Iterator[list[Found]]:
        """Yield the objects of each image."""
        import torch

        for start in range(0, len(images), self.batch):
            some = list(images[start : start + self.batch])
            # The format matters for images of one or three rows, which may be taken for channels.
            inputs = self._processor(images=some, return_tensors="pt", input_data_format="channels_last")
            inputs = inputs.to(self._detector.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._detector.dtype)
            with torch.inference_mode():
                outputs = self._detector(**inputs)
            outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
            for one in self._processor.post_process_object_detection(
                outputs, threshold=min(self._threshold, self._counting), target_sizes=[images.shape[1:3]] * len(some)
            ):
                parts = zip(*(one[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
                yield [
                    Found(self._names[label], score, tuple(box)) for label, score, box in parts if label in self._names
                ]

    def _colour(self, image: Bytes, one: Found) -> str:
        """Return the colour of an object: that of the text closest to its box, by CLIP."""
        height, width = image.shape[:2]
        left, top = (max(0, min(round(low), side - 1)) for low, side in zip(one.box[:2], (width, height), strict=True))
        right, bottom = (max(round(high), low + 1) for high, low in zip(one.box[2:], (left, top), strict=True))
        seen = self._clip.embed_images(image[None, top:bottom, left:right])[0]
        return COLOURS[int((self._texts(one.name) @ seen).argmax())]

    def _texts(self, name: str) -> Any:
        """Return CLIP's embedding of each colour of a class [10, d]: the mean over three phrases, of length 1."""
        if name not in self._colours:
            from torch.nn import functional

            phrases = [
                phrase.format(colour, name)
                for colour in COLOURS
                for phrase in ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
            ]
            embedded = self._clip.embed_prompts(phrases)
            means = embedded.reshape(len(COLOURS), -1, embedded.shape[-1]).mean(dim=1)
            self._colours[name] = functional.normalize(means, dim=-1)
        return self._colours[name]


def _names(config: Any) -> Mapping[int, str]:
    """Return the class of each of a detector's labels; other labels are left out.

    Raises:
        BadInput: the detector lacks classes.
    """
    labels = {int(number): OTHER_NAMES.get(label, label) for number, label in config.id2label.items()}
    if lacking := [name for name in CLASSES if name not in labels.values()]:
        raise BadInput(
            f"verifier geneval: the detector lacks {len(lacking)} of COCO's {len(CLASSES)} classes, first {lacking[0]!r}: "
            "take one that was trained on COCO"
        )
    return {number: name for number, name in labels.items() if name in CLASSES}
