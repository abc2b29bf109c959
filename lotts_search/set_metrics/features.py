"""The features that sets of images are compared by: CLIP's, those of the shapes world, or your own."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self, runtime_checkable

from lotts_search.errors import BadInput
from lotts_search.plugins import Entry, resolve
from lotts_search.settings import arguments
from lotts_search.verifiers.clip import OPENAI, Clip
from lotts_search.verifiers.networks import Dtype
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.work.requests import Bytes, Floats


@runtime_checkable
class Features(Protocol):
    """A class method ``load`` creates it; its arguments are its settings, as those of a verifier."""

    def embed(self, images: Bytes) -> Floats:
        """Return the features [B, d] of uint8 images [B, h, w, 3] of one size."""


class ClipFeatures:
    """Features of the images in CLIP's common space of images and texts, not normalized."""

    cmmd: ClassVar[bool] = True
    """CMMD is defined on CLIP's features alone."""

    def __init__(self, clip: Clip):
        self._clip = clip

    @classmethod
    def load(cls, *, weights: str = OPENAI, device: str = "cpu", dtype: Dtype = "float32", batch: int = 16) -> Self:
        """Load the model.

        Args:
            weights: CLIP in transformers' format, with safetensors: a folder or Hub id.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of the network.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        return cls(Clip.load("features clip", weights, device, dtype, batch, texts=False))

    def embed(self, images: Bytes) -> Floats:
        """Return the features [B, d] of uint8 images [B, h, w, 3]."""
        found: Floats = self._clip.image_features(images).cpu().numpy()
        return found


_KNOWN = {
    entry.name: entry
    for entry in (
        Entry("clip", "lotts_search.set_metrics.features:ClipFeatures", "CLIP ViT-L/14, or another CLIP."),
        Entry("shapes", "lotts_search.shapes.reward.features:ShapesFeatures", "The image tower of shapes-reward."),
    )
}


def load_features(text: str) -> Features:
    """Load features.

    Args:
        text: ``clip``, ``shapes`` or ``package.module:Class``, with settings as ``NAME:KEY=VALUE,KEY=VALUE``.

    Raises:
        BadInput: an unknown name or setting, or an object of another kind.
        Failure: files are missing or broken.
    """
    spec = VerifierSpec.parse(text)
    found = resolve("features", spec.name, _KNOWN)
    if not callable(getattr(found, "load", None)):
        raise BadInput(f"{spec.name} are no features: it must be a class with a class method load()")
    features = found.load(**arguments(found.load, spec.settings, f"features {spec.name!r}"))
    if not isinstance(features, Features):
        raise BadInput(f"{spec.name} are no features: its load() returned no object with a method embed(images)")
    return features
