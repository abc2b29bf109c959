"""Rewrite prompts with a vision-language model of the transformers library on this machine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from lotts_search.errors import BadInput, Failure
from lotts_search.rewriters.instructions import SYSTEM, question, read_reply
from lotts_search.work.requests import Rewrite


@dataclass
class TransformersRewriter:
    """An image-text-to-text model with a chat template: safetensors only, no code from the model folder.

    The first call imports torch and loads the model.

    Attributes:
        model: folder or Hub id.
        device: torch device; none = CUDA if available; auto = its layers over all GPUs that its process sees.
        dtype: float32, bfloat16 or float16; auto = as stored.
        timeout: seconds after which a call is abandoned.
        temperature: sampling temperature; 0 = greedy decoding.
        max_tokens: maximum tokens per reply.
        batch: requests per call. A reply may depend on the other requests of its batch.
    """

    model: str = ""
    device: str | None = None
    dtype: str = "auto"
    timeout: float = 120.0
    temperature: float = 0.7
    max_tokens: int = 512
    batch: int = 1

    requirements: ClassVar[tuple[str, ...]] = ()
    parallel: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise BadInput("the rewriter 'transformers' needs a model: a folder or Hub id")
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def rewrite(self, requests: Sequence[Rewrite]) -> list[list[str]]:
        """Return the prompts of each reply.

        Raises:
            Failure: the model cannot be loaded.
            ValueError: a reply contains no prompts.
        """
        with self._lock:
            return [read_reply(reply) for reply in self._replies(requests)]

    def _replies(self, requests: Sequence[Rewrite]) -> list[str]:
        import torch

        processor, network = self._load()
        chats = [
            [
                {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.fromarray(request.image)},
                        {"type": "text", "text": question(request)},
                    ],
                },
            ]
            for request in requests
        ]
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(network.device, network.dtype)
        sampled = {"do_sample": True, "temperature": self.temperature} if self.temperature > 0 else {"do_sample": False}
        devices = [network.device] if network.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(requests[0].seed)
            written = network.generate(**inputs, max_new_tokens=self.max_tokens, **sampled)
        replies: list[str] = processor.batch_decode(
            written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return replies

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor

            spread = self.device == "auto"
            device = None if spread else self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            try:
                processor = AutoProcessor.from_pretrained(self.model, trust_remote_code=False, padding_side="left")
                network = AutoModelForImageTextToText.from_pretrained(
                    self.model,
                    dtype=self.dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    device_map="auto" if spread else None,
                )
            except (OSError, ValueError, ImportError) as error:
                raise Failure(f"the rewriter's model {self.model} cannot be loaded: {error}") from error
            places = {str(place) for place in getattr(network, "hf_device_map", {}).values()}
            # transformers does not refuse what is far slower than GPUs.
            if len(places) > 1 and places & {"cpu", "disk"}:
                raise Failure(
                    f"the rewriter's model {self.model} does not fit into the GPUs: choose more, or a smaller dtype"
                )
            self._loaded = processor, (network if spread else network.to(device)).eval()
        return self._loaded
