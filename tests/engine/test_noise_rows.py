from __future__ import annotations

import numpy as np
import pytest
import torch

from lotts_search.engine.noise_rows import NoiseKey, NoiseRows
from lotts_search.work.noise import draw
from tests.pretended import DEVICES, pretended_devices


@pytest.mark.parametrize("threads", [0, 3])
def test_noise_of_many_rows_is_that_of_each(threads: int) -> None:
    drawing = NoiseRows((2, 3, 5), torch.device("cpu"), threads)
    for number in (7, 2, 11):
        wanted: list[NoiseKey | None] = [(number, ("seed 1", f"branch@{row} 0"), "step", row) for row in range(number)]
        wanted[number // 2] = None
        drawing.begin([(0, (), "start", 0)])  # never asked for
        drawing.begin(wanted)
        rows = drawing.finish().numpy().copy()
        assert rows.shape == (number, 2, 3, 5)
        for row, one in zip(rows, wanted, strict=True):
            assert np.array_equal(row, np.zeros((2, 3, 5)) if one is None else draw(*one, (2, 3, 5)))


def test_noise_can_be_drawn_into_an_array() -> None:
    out = np.full((4, 3), np.nan, np.float32)
    assert draw(1, ("a",), "near", 2, (4, 3), out=out) is out
    assert np.array_equal(out, draw(1, ("a",), "near", 2, (4, 3)))
    # What a generator has left over of one draw is not part of the next.
    draw(1, ("a",), "near", 2, (1,))
    assert np.array_equal(out, draw(1, ("a",), "near", 2, (4, 3)))


def test_noise_is_on_the_device_of_every_kind() -> None:
    """Not only on a CUDA device, whose noise has threads of its own."""
    key: NoiseKey = (1, ("seed 0",), "step", 3)
    with pretended_devices():
        rows = NoiseRows((2, 3), DEVICES[1])
        rows.begin([key, None])
        noise = rows.finish()
        assert noise.device == DEVICES[1]
        assert np.array_equal(noise.cpu().numpy(), [draw(*key, (2, 3)), np.zeros((2, 3))])
