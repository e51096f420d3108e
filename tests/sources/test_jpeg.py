"""Single JPEG pictures: whole ones as they are, cut or broken ones never."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from clips import number_of, numbered
from mjpeg_servers import jpeg

from inspectd.sources.jpeg import decode_jpeg_bgr


@pytest.mark.parametrize("padding", [b"", b"\r\n", b"\0" * 500])
def test_whole_picture_is_decoded_with_its_colours(padding: bytes) -> None:
    """Pixels are those of OpenCV's decoder but for rounding; padding behind the end does not matter."""
    content = jpeg(77)
    pixels_bgr, damage = decode_jpeg_bgr(content + padding)
    assert damage is None
    assert pixels_bgr is not None
    assert number_of(pixels_bgr) == 77
    reference = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(pixels_bgr.astype(int) - reference).mean() < 1.5


def test_colours_are_not_swapped() -> None:
    """Red stays red, at full range."""
    red = np.zeros((32, 48, 3), np.uint8)
    red[..., 2] = 255
    pixels_bgr, _ = decode_jpeg_bgr(cv2.imencode(".jpg", red)[1].tobytes())
    assert pixels_bgr is not None
    assert np.abs(pixels_bgr.astype(int) - (0, 0, 254)).max() <= 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["no-end", "end-marker-added"])
def test_cut_picture_is_damage(share: float, end: bytes) -> None:
    """Only a beginning is never a picture, also where the camera puts the end marker behind what it has."""
    noisy = cv2.add(numbered(1), np.random.default_rng(0).integers(0, 20, (96, 160, 3), dtype=np.uint8))
    content = cv2.imencode(".jpg", noisy)[1].tobytes()
    pixels_bgr, damage = decode_jpeg_bgr(content[: int(len(content) * share)] + end)
    assert pixels_bgr is None
    assert damage is not None
    assert "\n" not in damage


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"x" * 300 + b"\xff\xd9"])
def test_what_is_no_picture_is_damage(content: bytes) -> None:
    """Garbage between the markers is damage, not an exception."""
    assert decode_jpeg_bgr(content)[0] is None
