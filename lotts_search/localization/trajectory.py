"""Masks from the trajectory that made an image: its late changes of mind, which cost no network row."""

from __future__ import annotations

from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput
from lotts_search.localization.select import from_heat, smooth
from lotts_search.work.masks import TrajectoryMask
from lotts_search.work.requests import Locate, Located


def locate_trajectory(backbone: Backbone, work: Locate, source: TrajectoryMask) -> Located:
    """Select where the x0 prediction changed most (:mod:`lotts_search.work.change_maps`).

    Raises:
        BadInput: the trajectory of the image is not known.
    """
    change = work.state.change
    if change is None:
        raise BadInput("the mask source trajectory needs an image sampled from pure noise in two steps or more")
    stages = {"change": change, "smoothed": smooth(change, source.smooth)}
    return from_heat(stages["smoothed"], source.ratio, (change.shape[0], change.shape[1]), stages)
