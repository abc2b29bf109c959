"""What verifiers with a torch network share: devices, precisions, tokenizers, heads, and calls in batches.

torch and transformers are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lotts_search.backbones.model_folder import load_component, read_json
from lotts_search.errors import BadInput, notice
from lotts_search.verifiers.weights import find_folder

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]


def place(verifier: str, device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision of a verifier's network.

    Raises:
        BadInput: there is no such device or precision.
    """
    import torch

    if dtype not in get_args(Dtype):
        raise BadInput(f"dtype of verifier {verifier} must be {', '.join(get_args(Dtype))}, not {dtype!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise BadInput(f"device of verifier {verifier} cannot be {device!r}: {reason}") from error
    return torch.device(device), getattr(torch, dtype)


def in_batches(call: Callable[[slice], torch.Tensor], count: int, size: int) -> torch.Tensor:
    """Return the float32 rows of ``call`` on slices of at most ``size`` rows of ``count``, computed without gradients.

    Raises:
        BadInput: size is below 1.
    """
    import torch

    if size < 1:
        raise BadInput(f"batch must be 1 or more, not {size}")
    with torch.inference_mode():
        return torch.cat([call(slice(start, start + size)).float() for start in range(0, count, size)])


def linear_stack(width: int) -> torch.nn.Sequential:
    """Return the five linear layers of ImageReward and of the LAION aesthetic predictor, [B, width] → [B, 1]. Dropout
    layers take part in the numbering of their published weights."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(), nn.Linear(1024, 128), nn.Dropout(), nn.Linear(128, 64), nn.Dropout(),
        nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip


class Tokens:
    """A tokenizer that cuts long prompts, and says so once.

    Args:
        verifier: name of the verifier in messages.
        kind: name of the tokenizer's class in transformers.
        folder: folder that may have the tokenizer's files.
        source: the setting ``tokenizer``: a folder or Hub id; None = ``folder``, or ``fallback`` where it has none.
        limit: most tokens of a prompt, with the start and end tokens.

    Raises:
        BadInput, Failure: the tokenizer is missing or broken.
    """

    def __init__(self, verifier: str, kind: str, folder: Path, source: str | None, fallback: str, limit: int):
        own = any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "vocab.txt"))
        if source is not None or not own:
            folder = find_folder(verifier, source or fallback, setting="tokenizer")
        stored = read_json(str(folder), "tokenizer_config.json", optional=True).get("tokenizer_class", kind)
        if not stored.startswith(kind):
            raise BadInput(f"verifier {verifier}: tokenizer must be a {kind}, and {folder} holds a {stored}")

        def load() -> Any:
            import transformers

            tokenizer = getattr(transformers, kind).from_pretrained(folder)
            # Without its files a tokenizer still loads, but with special tokens only.
            if len(tokenizer) < 10:
                raise ValueError("its vocabulary is missing")
            return tokenizer

        self.tokenizer = load_component(str(folder), "tokenizer", load)
        self.limit = limit
        self._verifier = verifier
        self._told = False

    def __call__(self, prompts: list[str], padding: bool | str = True) -> Any:
        """Return ``input_ids`` and ``attention_mask`` [B, tokens]; ``padding`` is transformers'."""
        if not self._told:
            lengths = map(len, self.tokenizer(prompts, verbose=False)["input_ids"])
            cut = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > self.limit]
            if cut:
                self._told = True
                notice(
                    f"verifier {self._verifier} reads {self.limit} tokens of a prompt, and cuts longer ones, e.g. "
                    f"{cut[0][:60]!r}…"
                )
        return self.tokenizer(prompts, padding=padding, truncation=True, max_length=self.limit, return_tensors="pt")


def distinct(prompts: list[str]) -> tuple[list[str], list[int]]:
    """Return the distinct prompts, and the place of each prompt among them."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]
