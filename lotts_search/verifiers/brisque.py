"""BRISQUE: how natural an image looks, by the statistics of its pixels. It needs no network and ignores the prompt.

Scores are those of the package brisque 0.2.0 to 1e-9, except where an image has plain areas. There the package depends on
the sign of rounding errors, and on a solver that does not always converge: here such coefficients are 0, and a shape that
no distribution has is the nearest one.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from scipy.special import gamma

from lotts_search.errors import BadInput, Failure
from lotts_search.work.requests import Bytes, Floats

Values = npt.NDArray[np.float64]
SMALLEST = 16
"""Shortest side in pixels: at half of it, a window of MSCN coefficients still fits."""
_SHA256 = "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d"
_LUMINANCE = (0.2125, 0.7154, 0.0721)
_WINDOW = 7 / 6
"""Standard deviation of the Gaussian window of MSCN coefficients, in pixels; its radius is 3."""
_SHAPES = (0.2, 10.0)
"""Range of shape parameters, which is that of the paper's implementation: beyond it distributions hardly differ."""
_ROUNDING = 1e-9
"""Magnitude of MSCN coefficients that are rounding errors of a plain area."""
_HALF = np.array([-3, 19, 19, -3]) / 32
"""Keys' cubic kernel with a = -0.75 between two pixels, which is how OpenCV halves an image."""
LEAST = np.array([
    0.336999, 0.019667, 0.230000, -0.125959, 0.000167, 0.000616, 0.231000, -0.125873, 0.000165, 0.000600, 0.241000,
    -0.128814, 0.000179, 0.000386, 0.243000, -0.133080, 0.000182, 0.000421, 0.436998, 0.016929, 0.247000, -0.200231,
    0.000104, 0.000834, 0.257000, -0.200017, 0.000112, 0.000876, 0.257000, -0.155072, 0.000112, 0.000356, 0.258000,
    -0.154374, 0.000117, 0.000351,
])  # fmt: skip
MOST = np.array([
    9.999411, 0.807472, 1.644021, 0.202917, 0.712384, 0.468672, 1.644021, 0.169548, 0.713132, 0.467896, 1.553016,
    0.101368, 0.687324, 0.533087, 1.554016, 0.101000, 0.689177, 0.533133, 3.639918, 0.800955, 1.096995, 0.175286,
    0.755547, 0.399270, 1.095995, 0.155928, 0.751488, 0.402398, 1.041992, 0.093209, 0.623516, 0.532925, 1.042992,
    0.093714, 0.621958, 0.534484,
])  # fmt: skip
"""Range of each feature in training, from normalize.pickle of the package brisque 0.2.0, scaled to -1..1."""


class Brisque:
    """``brisque``: how natural an image looks (Mittal et al. 2012, "No-reference image quality assessment in the spatial
    domain"), as the negated BRISQUE, usually -110..0. It ignores the prompt.
    """

    name = "brisque"
    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(self, gamma: float, bias: float, weights: Values, vectors: Values):
        self.gamma, self.bias, self.weights, self.vectors = gamma, bias, weights, vectors

    @classmethod
    def load(cls) -> Brisque:
        """Load the verifier: the support vectors of the package brisque 0.2.0, of which nothing is imported.

        Raises:
            Failure: the package is missing, or of another version.
        """
        spec = find_spec("brisque")
        install = "pip install --no-deps brisque==0.2.0"
        if spec is None or spec.origin is None:
            raise Failure(f"verifier 'brisque' needs the support vectors of the package brisque: {install}")
        file = Path(spec.origin).parent / "models" / "svm.txt"
        text = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(text).hexdigest() != _SHA256:
            raise Failure(f"the support vectors of the installed package brisque are not those of 0.2.0: {install}")
        head, _, rows = text.decode().partition("SV\n")
        settings = dict(line.split(" ", 1) for line in head.splitlines())
        table = np.array([[part.rpartition(":")[2] for part in row.split()] for row in rows.splitlines()], np.float64)
        return cls(float(settings["gamma"]), float(settings["rho"]), table[:, 0], table[:, 1:])

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Raise BadInput where a side is below :data:`SMALLEST` pixels."""
        if min(height, width) < SMALLEST:
            raise BadInput(f"brisque scores images with sides of {SMALLEST} pixels or more, not {height}x{width}")

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3]; ``prompts`` [B] do not count.

        Raises:
            BadInput: an image has a side below :data:`SMALLEST` pixels.
        """
        self.check_size(*images.shape[1:3])
        return np.array([-self.brisque(image) for image in images], np.float32)

    def brisque(self, image: Bytes) -> float:
        """Return the BRISQUE of an image [h, w, 3], lower is better: support vector regression, whose kernel is
        exp(-gamma·|f - v|²) of the features f and the vectors v.
        """
        grey = image @ np.array(_LUMINANCE) / 255
        found = np.concatenate([features(grey), features(halved(grey))])
        scaled = 2 * (found - LEAST) / (MOST - LEAST) - 1
        kernel = np.exp(-self.gamma * ((self.vectors - scaled) ** 2).sum(1))
        return float(self.weights @ kernel - self.bias)


def features(grey: Values) -> Values:
    """Return the 18 features of luminance [h, w], 0..1: of its MSCN coefficients and of the products of neighbours."""
    mean = gaussian_filter(grey, _WINDOW, mode="constant", radius=3)
    spread = np.sqrt(np.abs(gaussian_filter(grey**2, _WINDOW, mode="constant", radius=3) - mean**2))
    normal = (grey - mean) / (spread + 1 / 255)
    normal[np.abs(normal) < _ROUNDING] = 0
    shape, _, left, right = _fit(normal)
    products = (
        normal[:, :-1] * normal[:, 1:],
        normal[:-1] * normal[1:],
        normal[:-1, :-1] * normal[1:, 1:],
        normal[1:, :-1] * normal[:-1, 1:],
    )
    return np.concatenate([[shape, (left + right) / 2], *(_fit(product) for product in products)])


def halved(grey: Values) -> Values:
    """Return an image [h, w] at half its size, by cubic interpolation without antialiasing."""
    for axis, length in enumerate(grey.shape):
        first = 2 * np.arange(round(length / 2))
        taps = [np.take(grey, first + tap, axis, mode="clip") for tap in (-1, 0, 1, 2)]
        grey = np.tensordot(_HALF, taps, 1)
    return grey


def _fit(values: Values) -> Values:
    """Fit an asymmetric generalized Gaussian by moments (Lasmar et al. 2009), and return its shape, its mean, and the
    variances of its left and right side. The shape stays in :data:`_SHAPES`; a side without values has no variance.
    """
    negative = values < 0
    squares = values**2
    left, right = (float(squares[side].mean()) if side.any() else 0.0 for side in (negative, ~negative))
    low, high = np.sqrt(left), np.sqrt(right)
    ratio = 0.0
    if left + right:
        skew = (low**3 + high**3) * (low + high) / (left + right) ** 2
        ratio = float(np.abs(values).mean() ** 2 / squares.mean() * skew)
    ratio = min(max(ratio, _moments(_SHAPES[0])), _moments(_SHAPES[1]))
    shape = brentq(lambda shape: _moments(shape) - ratio, *_SHAPES, xtol=1e-12)
    return np.array([shape, (high - low) * np.sqrt(ratio), left, right])


def _moments(shape: float) -> float:
    """Return the squared mean magnitude over the mean square of a generalized Gaussian; it grows with the shape."""
    return float(gamma(2 / shape) ** 2 / (gamma(1 / shape) * gamma(3 / shape)))
