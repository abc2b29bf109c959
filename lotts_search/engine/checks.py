"""What the engine refuses before it begins."""

from __future__ import annotations

import numpy as np

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput
from lotts_search.work.requests import Encode, Generate, Locate, Predict, Segment


def check(backbone: Backbone, work: Generate) -> None:
    """Refuse work that cannot be carried out.

    Raises:
        BadInput: a step outside the schedule, a state of another schedule or of the wrong shape, a wrong image.
    """
    info = backbone.info
    if isinstance(work, Encode):
        if work.image.dtype != np.uint8 or work.image.shape != (*info.image, 3):
            size = "x".join(map(str, work.image.shape))
            raise BadInput(f"an image for {info.name} must be {info.image[0]}x{info.image[1]}x3 bytes, got {size}")
        return
    steps = work.sampling.steps
    if not work.sampling.prompt.strip():
        raise BadInput("the prompt is empty")
    if work.state is not None:
        if work.state.latent.shape != info.latent:
            raise BadInput(f"a latent of {info.name} has shape {info.latent}, got {work.state.latent.shape}")
        if not isinstance(work, Locate) and not work.state.complete and work.state.steps != steps:
            raise BadInput(f"the state is on a schedule of {work.state.steps} steps, not of {steps}")
    if isinstance(work, Predict) and work.state.complete:
        raise BadInput("the state is complete: there is nothing to predict")
    if isinstance(work, Segment):
        _check_segment(backbone, work)


def _check_segment(backbone: Backbone, work: Segment) -> None:
    steps = work.sampling.steps
    backbone.schedule(steps)
    if work.renoise is not None:
        if work.state is None or not work.state.complete:
            raise BadInput("only a complete candidate can be re-noised")
        if not 0 <= work.renoise < steps:
            raise BadInput(f"a refinement must start at a step within 0..{steps - 1}, got {work.renoise}")
        if work.region is not None and work.region.mask.shape != backbone.info.latent[1:]:
            raise BadInput(f"a mask must be {backbone.info.latent[1:]} on the latent, got {work.region.mask.shape}")
    if not work.start <= work.stop <= steps:
        raise BadInput(f"a segment from step {work.start} must stop within {work.start}..{steps}, got {work.stop}")
