"""The windows of an image that a verifier scores lowest: the quality map of LoTTS, figure 7."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput, Failure
from lotts_search.localization.quality import image_of, shrink
from lotts_search.localization.select import from_heat
from lotts_search.registry import load_verifier
from lotts_search.verifiers.batcher import ScoreBatcher
from lotts_search.work.masks import WindowMask
from lotts_search.work.requests import Bytes, Locate, Located, Score, Usage

_lock = threading.Lock()
"""Held while a verifier scores windows: it may not be called by two threads."""


class WindowLocalization:
    """One localization by sliding windows; a :class:`~lotts_search.localization.plan.CallPlan`, because a verifier may take
    seconds.

    Raises:
        BadInput: the windows do not fit into the image, or the verifier cannot be loaded or refuses their size.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: WindowMask):
        self._source, self._prompt = source, work.sampling.prompt
        self._size = (backbone.info.latent[1], backbone.info.latent[2])
        self._image = image_of(backbone, work)
        height, width = self._image.shape[:2]
        if source.patch >= (side := min(height, width)):
            raise BadInput(
                f"windows of {source.patch} pixels are too large for images of {height}x{width}: patch must be below "
                f"{side}, e.g. patch {side // 2} and stride {side // 4}"
            )
        self._batcher = _batcher(source.verifier, source.patch)
        self.usage = Usage()
        count = len(self._starts(height)) * len(self._starts(width))
        self.expected = Usage(scores=count, flops=count * self._batcher.flops)

    def call(self) -> Located:
        """Score the windows, and return the mask. The heat of a pixel is the mean of the negated scores of the windows
        around it."""
        patch = self._source.patch
        rows, columns = (self._starts(side) for side in self._image.shape[:2])
        windows = sliding_window_view(self._image, (patch, patch), (0, 1))[rows][:, columns].transpose(0, 1, 3, 4, 2)
        scores = self._score(windows.reshape(-1, patch, patch, 3)).reshape(len(rows), len(columns))
        total, count = np.zeros((2, *self._image.shape[:2]))
        for row, line in zip(rows, scores, strict=True):
            for column, score in zip(columns, line, strict=True):
                total[row : row + patch, column : column + patch] -= score
                count[row : row + patch, column : column + patch] += 1
        heat = shrink((total / count).astype(np.float32), self._size)
        return from_heat(heat, self._source.ratio, self._size, {self._source.verifier: heat})

    def _starts(self, side: int) -> list[int]:
        """Return where windows begin along a side; the last one ends with the image."""
        patch = self._source.patch
        return [*range(0, side - patch, self._source.stride), side - patch]

    def _score(self, windows: Bytes) -> npt.NDArray[np.float64]:
        with _lock:
            found = [self._batcher.submit(Score(self._source.verifier, self._prompt, window)) for window in windows]
            while self._batcher.tick():
                pass
        results = [one.result() for one in found]
        for result in results:
            self.usage += result.usage
        return np.array([result.score for result in results])


@lru_cache(maxsize=16)
def _batcher(verifier: str, patch: int) -> ScoreBatcher:
    """Load the verifier of a mask source, once per process, and let it score a window of noise."""
    try:
        loaded = load_verifier(verifier)
        noise = np.random.default_rng(0).integers(0, 256, (1, patch, patch, 3), np.uint8)
        with _lock:
            loaded.score(["a window"], noise)
    except (BadInput, Failure) as error:
        raise BadInput(f"the verifier {verifier!r} of the mask source windows cannot be used: {error}") from error
    return ScoreBatcher(loaded)
