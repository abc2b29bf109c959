"""A verifier with noise, to study how a search depends on the quality of its scores."""

from __future__ import annotations

import hashlib

import numpy as np

from lotts_search.combinations.parts import LARGEST, call_size, filled, flops_of, load_parts
from lotts_search.errors import BadInput
from lotts_search.verifiers.base import Verifier
from lotts_search.work.requests import Bytes, Floats


class Noisy:
    """``noisy``: another verifier's score plus Gaussian noise, which depends only on the seed, the prompt and the image.

    So the same image has the same noise in any call, process and search.
    """

    name = "noisy"
    requirements: tuple[str, ...] = ()

    def __init__(self, part: Verifier, sd: float, seed: int):
        self.part, self.sd, self.seed = part, sd, seed
        self.batch, self.pad, self.flops = call_size([part]), filled([part]), flops_of([part])

    @classmethod
    def load(cls, *, of: tuple[str, ...], sd: float, seed: int = 0) -> Noisy:
        """Load the verifier and the one that it wraps.

        Args:
            of: the verifier, a name or package.module:Class, with its own settings.
            sd: standard deviation of the noise, in the unit of the scores, 0..1e30.
            seed: another seed gives other noise.

        Raises:
            BadInput: a name or a setting is wrong.
            Failure: the verifier cannot be loaded.
        """
        if len(of) != 1:
            raise BadInput(
                f'noisy wraps one verifier, not {len(of)}; one with several settings is written as of=["NAME:…"]'
            )
        if not 0 <= sd <= LARGEST:
            raise BadInput(f"sd of noisy must be within 0..{LARGEST:g}, not {sd}")
        return cls(load_parts(of, "noisy")[0], sd, seed)

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        noise = [self._noise(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
        return (self.part.score(prompts, images) + self.sd * np.array(noise)).astype(np.float32)

    def _noise(self, prompt: str, image: Bytes) -> float:
        text = f"{self.seed} {image.shape} {prompt}\0".encode()
        digest = hashlib.sha256(text + image.tobytes()).digest()
        return float(np.random.default_rng(np.frombuffer(digest, np.uint32)).standard_normal())
