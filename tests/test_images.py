"""Colours and picture files."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from inspectd.errors import SourceError
from inspectd.images import (
    bgr_to_rgb,
    decode_image_bgr,
    decode_label_png,
    encode_jpeg,
    encode_label_png,
    encode_png,
    read_image_bgr,
    rgb_to_bgr,
)

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)


def test_colours_are_swapped_into_a_copy():
    """Red and blue change places, and the original may be overwritten afterwards."""
    frame = PIXELS.copy()
    swapped = bgr_to_rgb(frame)
    frame[:] = 0
    assert np.array_equal(swapped, PIXELS[:, :, ::-1])
    assert np.array_equal(rgb_to_bgr(swapped), PIXELS)


def test_part_of_a_frame_can_be_swapped():
    """A view that is not contiguous is taken as it is."""
    assert np.array_equal(bgr_to_rgb(PIXELS[3:9, 5:11]), PIXELS[3:9, 5:11, ::-1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (57, 3), (480, 640)])
def test_a_label_mask_survives_and_is_what_the_contract_says(shape: tuple[int, int]):
    """Another decoder reads an 8-bit single-channel PNG with the very labels."""
    labels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    content = encode_label_png(labels)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", shape[::-1])
        assert np.array_equal(np.asarray(image), labels)
    assert np.array_equal(decode_label_png(content), labels)


def test_a_label_mask_may_be_a_view():
    """Slices with steps are encoded as they look."""
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decode_label_png(encode_label_png(labels[::2, ::-1])), labels[::2, ::-1])


@pytest.mark.parametrize("labels", [np.zeros((0, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int)])
def test_what_is_no_label_mask_is_refused(labels: np.ndarray):
    """Empty, coloured or of wide integers: never silently something else."""
    with pytest.raises(ValueError, match="a label mask is"):
        encode_label_png(labels)


@pytest.mark.parametrize("content", [b"", b"no png", encode_png(PIXELS), encode_label_png(PIXELS[:, :, 0])[:-30]])
def test_what_is_no_label_png_is_refused(content: bytes):
    """Nothing, nonsense, a coloured picture, one cut off."""
    with pytest.raises(SourceError, match="8-bit single-channel"):
        decode_label_png(content)


def test_pictures_are_encoded():
    """PNG exactly, JPEG nearly."""
    smooth = cv2.GaussianBlur(PIXELS, (0, 0), 4)
    assert np.array_equal(decode_image_bgr(encode_png(PIXELS), name="x"), PIXELS)
    assert np.abs(decode_image_bgr(encode_jpeg(smooth), name="x").astype(int) - smooth).mean() < 3
    with pytest.raises(ValueError, match="a picture is"):
        encode_jpeg(PIXELS[:, :, 0])


def test_grey_deep_and_transparent_images_become_bgr(tmp_path: Path):
    """Whatever the file holds, the model sees three 8-bit channels."""
    grey16 = (PIXELS[:, :, 0].astype(np.uint16) << 8) + 7
    cv2.imwrite(str(tmp_path / "grey16.png"), grey16)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)]))
    assert np.array_equal(read_image_bgr(tmp_path / "grey16.png"), np.repeat(PIXELS[:, :, :1], 3, axis=2))
    assert np.array_equal(read_image_bgr(tmp_path / "alpha.png"), PIXELS)


def test_the_cameras_orientation_is_applied(tmp_path: Path):
    """A picture taken with the camera turned comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(bgr_to_rgb(PIXELS)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image_bgr(tmp_path / "turned.png"), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str):
    """Half a picture is no picture: the error names the file."""
    content = cv2.imencode(suffix, PIXELS)[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SourceError, match=r"cut\.\w+: not a readable image"):
        read_image_bgr(path)


def test_a_missing_image_is_named(tmp_path: Path):
    """One line, with the system's reason."""
    with pytest.raises(SourceError, match=r"none\.png: No such file"):
        read_image_bgr(tmp_path / "none.png")
