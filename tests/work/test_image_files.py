"""Images and masks from files: the right pixels of every mode, rotation, depth and aspect ratio."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lotts_search.cli.outputs import prepare
from lotts_search.errors import BadInput, Notice
from lotts_search.work.image_files import image_size, mask_png, read_image, read_mask

SIZE = (4, 4)
COLOUR = (200, 40, 90)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full(SIZE, value, np.uint16))


def with_alpha(colour: tuple[int, int, int], alpha: int, mode: str = "RGBA") -> Image.Image:
    return Image.new("RGBA", SIZE, (*colour, alpha)).convert(mode)


def palette() -> Image.Image:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *COLOUR])
    return image


@pytest.mark.parametrize(
    ("image", "ending", "expected"),
    [
        (Image.new("RGB", SIZE, COLOUR), "png", COLOUR),
        (Image.new("L", SIZE, 77), "png", (77, 77, 77)),
        (Image.new("1", SIZE, 1), "png", (255, 255, 255)),
        (palette(), "png", COLOUR),
        (Image.new("CMYK", SIZE, (0, 255, 255, 0)), "tiff", (255, 0, 0)),
        (Image.new("HSV", SIZE, (0, 255, 255)).convert("RGB"), "bmp", (255, 0, 0)),
        (with_alpha(COLOUR, 255), "png", COLOUR),
        (with_alpha(COLOUR, 0), "png", (255, 255, 255)),
        (with_alpha((0, 0, 0), 51), "png", (204, 204, 204)),
        (Image.new("LA", SIZE, (0, 0)), "png", (255, 255, 255)),
        (grey16(0), "png", (0, 0, 0)),
        (grey16(65535), "png", (255, 255, 255)),
        (grey16(7710), "png", (30, 30, 30)),
        (grey16(7710), "tiff", (30, 30, 30)),
        (Image.new("I", SIZE, 51400), "tiff", (200, 200, 200)),
        (Image.new("F", SIZE, 120.0), "tiff", (120, 120, 120)),
    ],
)
def test_every_mode_gives_the_colour_that_is_seen(tmp_path: Path, image: Image.Image, ending: str, expected) -> None:
    path = saved(tmp_path / f"a.{ending}", image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        pixels = read_image(path, SIZE)
    assert pixels.dtype == np.uint8 and pixels.shape == (*SIZE, 3)
    assert np.array_equal(pixels, np.broadcast_to(np.array(expected, np.uint8), (*SIZE, 3)))


def profile(space: bytes = b"RGB ") -> bytes:
    """An sRGB profile with red and green exchanged, or that of a grey scale with the same curve."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    if space == b"GRAY":
        return data[:16] + space + data[20:].replace(b"rTRC", b"kTRC", 1)
    return data.replace(b"rXYZ", b"....", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"....", b"gXYZ", 1)


SWAPPED = (COLOUR[1], COLOUR[0], COLOUR[2])


@pytest.mark.filterwarnings("ignore::lotts_search.errors.Notice")
@pytest.mark.parametrize(
    ("image", "ending", "space", "expected"),
    [
        (Image.new("RGB", SIZE, COLOUR), "png", b"RGB ", SWAPPED),
        (palette(), "png", b"RGB ", SWAPPED),
        (with_alpha(COLOUR, 255), "png", b"RGB ", SWAPPED),
        (with_alpha(COLOUR, 0), "png", b"RGB ", (255, 255, 255)),
        (with_alpha((0, 0, 0), 51), "png", b"RGB ", (204, 204, 204)),
        (Image.new("L", SIZE, 77), "png", b"GRAY", (77, 77, 77)),
        (Image.new("LA", SIZE, (0, 51)), "png", b"GRAY", (204, 204, 204)),
    ],
)
def test_the_colour_profile_of_a_file_is_applied(
    tmp_path: Path, image: Image.Image, ending: str, space: bytes, expected: tuple[int, int, int]
) -> None:
    path = saved(tmp_path / f"a.{ending}", image, icc_profile=profile(space))
    with pytest.warns(Notice, match=rf"a.{ending}: its colours are converted from swap .* to sRGB"):
        found = read_image(path)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("image", "ending", "data", "expected"),
    [
        (Image.new("CMYK", SIZE, (0, 255, 255, 0)), "tiff", profile(), (255, 0, 0)),
        (Image.new("RGB", SIZE, COLOUR), "png", profile(b"GRAY"), COLOUR),
        (Image.new("RGB", SIZE, COLOUR), "png", b"no profile", COLOUR),
        (grey16(7710), "png", profile(b"GRAY"), (30, 30, 30)),
    ],
)
def test_a_profile_that_does_not_fit_is_reported(
    tmp_path: Path, image: Image.Image, ending: str, data: bytes, expected: tuple[int, int, int]
) -> None:
    path = saved(tmp_path / f"a.{ending}", image, icc_profile=data)
    with pytest.warns(Notice, match=f"a.{ending}: its colour profile does not fit its colours and is ignored"):
        assert (read_image(path) == expected).all()


def test_colours_of_srgb_stay_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", Image.fromarray(pixels), icc_profile=data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path), pixels)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    # Where the red corner of the stored image (top left) is seen, by the EXIF standard.
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
def test_the_rotation_of_a_camera_is_applied(tmp_path: Path, orientation: int, expected: tuple[int, int]) -> None:
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[0, 0] = 255, 0, 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "photo.png", Image.fromarray(pixels), exif=exif)
    seen = read_image(path, (12, 8) if orientation > 4 else (8, 12))
    assert tuple(seen[expected]) == (255, 0, 0) and (seen == 0).sum() == seen.size - 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I", SIZE, 70000), "must be 0..65535"),
        (Image.new("I", SIZE, -1), "must be 0..65535"),
        (Image.new("F", SIZE, 0.5), "fractions up to 1"),
        (Image.new("F", SIZE, float("nan")), "must be 0..255"),
    ],
)
def test_values_that_no_image_has_are_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    path = saved(tmp_path / "a.tiff", image)
    for read in (read_image, read_mask):
        with pytest.raises(BadInput, match=message):
            read(path, SIZE)


@pytest.mark.parametrize(("width", "height"), [(256, 64), (64, 256), (100, 90), (3, 500)])
def test_another_aspect_ratio_is_cropped_and_said_and_never_squeezed(tmp_path: Path, width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = COLOUR
    path = saved(tmp_path / "wide.png", Image.fromarray(pixels))
    with pytest.warns(Notice, match=f"{width}x{height} cropped around its centre .* resampled to 64x64"):
        found = read_image(path, (64, 64))
    assert np.abs(found.astype(int) - COLOUR).max() <= 1


def mask_file(tmp_path: Path, image: Image.Image, **options: object) -> Path:
    return saved(tmp_path / "mask.png", image, **options)


def drawn(base: Image.Image, colour: object) -> Image.Image:
    base.paste(colour, (0, 0, 2, 4))  # the left half
    return base


LEFT = np.array([[True, True, False, False]] * 4)


@pytest.mark.parametrize(
    "image",
    [
        drawn(Image.new("L", SIZE, 0), 255),
        drawn(Image.new("1", SIZE, 0), 1),
        drawn(Image.new("RGB", SIZE, "black"), "white"),
        drawn(Image.new("RGBA", SIZE, (0, 0, 0, 0)), (255, 255, 255, 255)),
        drawn(Image.new("RGBA", SIZE, (255, 255, 255, 0)), (255, 255, 255, 255)),
        drawn(Image.new("LA", SIZE, (255, 0)), (255, 255)),
        Image.fromarray(np.where(LEFT, 60000, 7864).astype(np.uint16)),  # 12 % is not white
    ],
)
def test_white_is_what_is_seen_white(tmp_path: Path, image: Image.Image) -> None:
    assert np.array_equal(read_mask(mask_file(tmp_path, image), SIZE), LEFT)


@pytest.mark.parametrize("stroke", [1, 2, 5])
@pytest.mark.parametrize("at", [0, 31, 200, 505])
def test_a_thin_stroke_is_kept(tmp_path: Path, stroke: int, at: int) -> None:
    pixels = np.zeros((512, 512), np.uint8)
    pixels[:, at : at + stroke] = 255
    found = read_mask(mask_file(tmp_path, Image.fromarray(pixels)), (64, 64))
    columns = {column // 8 for column in range(at, at + stroke)}
    assert set(np.flatnonzero(found.any(0)).tolist()) == columns and found[:, sorted(columns)].all()


def test_a_mask_is_cropped_like_its_image(tmp_path: Path) -> None:
    pixels = np.zeros((64, 256), np.uint8)
    pixels[:, 96:112] = 255  # the image is cropped to 96..160
    path = mask_file(tmp_path, Image.fromarray(pixels))
    found = read_mask(path, (64, 64), like=(64, 256))
    assert np.array_equal(found.any(0), np.arange(64) < 16) and found[:, :16].all()
    assert np.array_equal(read_mask(path, (16, 16), like=(128, 512)).any(0), np.arange(16) < 4)
    with pytest.raises(BadInput, match=r"is 256x64, the image 64x64: they must have one aspect ratio"):
        read_mask(path, (64, 64))
    pixels[:] = 0
    pixels[:, :50] = 255
    with pytest.raises(BadInput, match="outside the part of the image that is used"):
        read_mask(mask_file(tmp_path, Image.fromarray(pixels)), (64, 64), like=(64, 256))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", SIZE, 0), "is empty: no pixel is white, and white marks what is resampled$"),
        (Image.new("L", SIZE, 127), "is empty"),
        (drawn(Image.new("RGBA", SIZE, (0, 0, 0, 0)), (0, 0, 0, 255)), "black strokes on a transparent ground"),
    ],
)
def test_masks_without_white(tmp_path: Path, image: Image.Image, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_mask(mask_file(tmp_path, image), SIZE)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), COLOUR).save(whole, "PNG")
    (tmp_path / "b.png").write_bytes(whole.getvalue()[:60])
    for name, message in (
        ("a.png", "is not a readable image"),
        ("b.png", "is not a readable image"),
        ("c.png", "there is no file"),
    ):
        with pytest.raises(BadInput, match=message):
            read_image(tmp_path / name, SIZE)


MASKS = st.integers(1, 12).flatmap(
    lambda side: st.lists(st.booleans(), min_size=side * side, max_size=side * side).map(
        lambda cells: np.array(cells).reshape(side, side)
    )
)


@given(MASKS, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_no_white_pixel_is_lost_and_none_comes_from_nowhere(mask: np.ndarray, side: int) -> None:
    if not mask.any():
        with pytest.raises(BadInput, match="is empty"):
            read_mask(mask_png(mask), (side, side))
        return
    found = read_mask(mask_png(mask), (side, side))
    # Both laid on a grid of which both are multiples: a cell is white exactly if a white pixel lies in it in part.
    fine = mask.repeat(side, 0).repeat(side, 1)
    cells = fine.reshape(side, len(mask), side, len(mask)).any((1, 3))
    assert np.array_equal(found, cells)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert read_mask(b"\x89PNG\r\n\x1a\n" + data, SIZE).any()
    except BadInput as error:
        assert "the mask" in str(error)


def png(width: int, height: int, pixels: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A grey PNG whose header says what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


BOMBS = {
    "a header of many pixels": (png(60_000, 60_000, b""), "has too many pixels: at most 178,956,970 are read"),
    "a header of most pixels": (png(2**31 - 1, 2**31 - 1, b""), "has too many pixels"),
    "no pixels": (png(0, 0, b""), "is not a readable image"),
    "pixels that end": (png(800, 800, bytes(100)), "is not a readable image"),
    "a part without a name": (
        png(8, 8, bytes(72), (b"IDAT", zlib.compress(bytes(72))[:5]), (b"\1\2\3\4", b"")), "is not a readable image",
    ),
    "a text that unpacks": (
        png(8, 8, bytes(72), (b"zTXt", b"command\0\0" + zlib.compress(bytes(10**8)))), "is not a readable image",
    ),
    "a profile that unpacks": (
        png(8, 8, bytes(72), (b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8)))), "is not a readable image",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_in_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "best.png"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (lambda: read_image(path), lambda: read_mask(path, (8, 8)), lambda: image_size(path)):
            with pytest.raises(BadInput, match=f"best.png {message}"):
                read()
        assert prepare(tmp_path, "lotts-search generate 'a fox'") == tmp_path, "a file that is replaced is not needed"


def test_large_images_are_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(12_000, 8_000, bytes(12_001 * 8_000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (8_000, 12_000)


def test_a_grey_value_of_16_bits_that_is_transparent_is_neither_seen_nor_white(tmp_path: Path) -> None:
    """A PNG without an alpha channel may name one value that is transparent."""
    for value, hidden in ((257 * 200, 257 * 4), (257 * 4, 257 * 200)):
        image = Image.fromarray(np.where(LEFT, value, hidden).astype(np.uint16))
        path = saved(tmp_path / "a.png", image, transparency=hidden)
        with pytest.warns(Notice, match="a.png is transparent in places: white is laid under it"):
            found = read_image(path)
        assert np.array_equal(found[..., 0], np.where(LEFT, value // 257, 255))
        if value > hidden:
            assert np.array_equal(read_mask(path, SIZE), LEFT)
        else:
            with pytest.raises(BadInput, match="is empty: no pixel is white"):
                read_mask(path, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(saved(tmp_path / "b.png", grey16(257 * 9), transparency=3)) == 9).all()


@pytest.mark.parametrize(
    ("opacity", "white"), [(0, False), (100, False), (127, False), (128, True), (200, True), (255, True)]
)
def test_a_white_pixel_counts_by_its_opacity(tmp_path: Path, opacity: int, white: bool) -> None:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, opacity))
    image.putpixel((0, 0), (255, 255, 255, 255))
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (8, 8)).sum() == (64 if white else 1)


def test_the_first_frame_of_several_is_used_and_reported(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.warns(Notice, match="a.png has 3 frames: the first is used"):
        assert (read_image(tmp_path / "a.png") == (255, 0, 0)).all()


def test_the_share_that_is_left_out_is_reported_in_percent(tmp_path: Path) -> None:
    Image.new("RGB", (80, 50)).save(tmp_path / "a.png")
    with pytest.warns(Notice, match=r"80x50 cropped around its centre \(38 % are left out\)"):
        read_image(tmp_path / "a.png", (50, 50))
