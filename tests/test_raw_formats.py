"""Camera buffers of every layout become BGR; one that is too short never does."""

from __future__ import annotations

import numpy as np
import pytest

from inspectd.images import RawFormat, raw_to_bgr

W, H = 64, 48
RNG = np.random.default_rng(5)
PLAIN_BGR = np.full((H, W, 3), (40, 90, 200), np.uint8)
NOISE_BGR = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (H, W), dtype=np.uint8)
GREY_BGR = np.repeat(GREY[..., None], 3, 2)


def bayer(first: str) -> np.ndarray:
    """The plain colour through a filter of which the first two letters of the first row are given, as PFNC does."""
    rows = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}[first]
    mosaic = np.empty((H, W), np.uint8)
    for place, letter in enumerate(rows):
        mosaic[place // 2 :: 2, place % 2 :: 2] = PLAIN_BGR[0, 0, "BGR".index(letter)]
    return mosaic


def yuv422(order: str) -> np.ndarray:
    """The plain colour by ITU-R BT.601 with the range of video."""
    b, g, r = (int(level) / 255 for level in PLAIN_BGR[0, 0])
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    levels = {"Y": 16 + 219 * luma, "U": 128 + 224 * (b - luma) / 1.772, "V": 128 + 224 * (r - luma) / 1.402}
    return np.tile(np.array([round(levels[letter]) for letter in order], np.uint8), H * W // 2)


EXACT = {
    RawFormat.MONO8: (GREY, GREY_BGR),
    RawFormat.MONO10: ((GREY.astype("<u2") << 2) + 3, GREY_BGR),
    RawFormat.MONO12: ((GREY.astype("<u2") << 4) + 15, GREY_BGR),
    RawFormat.MONO16: ((GREY.astype("<u2") << 8) + 255, GREY_BGR),
    RawFormat.RGB8: (NOISE_BGR[..., ::-1], NOISE_BGR),
    RawFormat.BGR8: (NOISE_BGR, NOISE_BGR),
    RawFormat.RGBA8: (np.dstack([NOISE_BGR[..., ::-1], GREY]), NOISE_BGR),
    RawFormat.BGRA8: (np.dstack([NOISE_BGR, GREY]), NOISE_BGR),
    RawFormat.BAYER_RG8: (bayer("RG"), PLAIN_BGR),
    RawFormat.BAYER_GR8: (bayer("GR"), PLAIN_BGR),
    RawFormat.BAYER_GB8: (bayer("GB"), PLAIN_BGR),
    RawFormat.BAYER_BG8: (bayer("BG"), PLAIN_BGR),
}


def flat(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)


@pytest.mark.parametrize("form", EXACT)
def test_layout_becomes_bgr(form: RawFormat) -> None:
    """Each layout gives the picture that was put into it, to the bit; the result owns its pixels."""
    raw, expected = EXACT[form]
    buffer = flat(raw)
    pixels = raw_to_bgr(buffer, form, (W, H))
    assert np.array_equal(pixels, expected)
    assert not np.shares_memory(pixels, buffer)


@pytest.mark.parametrize(("form", "order"), [(RawFormat.YUYV, "YUYV"), (RawFormat.UYVY, "UYVY")])
def test_yuv_keeps_its_colours(form: RawFormat, order: str) -> None:
    """The plain colour comes back to within rounding."""
    pixels = raw_to_bgr(yuv422(order), form, (W, H))
    assert np.abs(pixels.astype(int) - PLAIN_BGR).max() <= 2


def test_nv12_has_half_as_many_colour_lines() -> None:
    """A grey picture of NV12 is grey."""
    buffer = np.concatenate([np.full(W * H, 126, np.uint8), np.full(W * H // 2, 128, np.uint8)])
    assert np.abs(raw_to_bgr(buffer, RawFormat.NV12, (W, H)).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("form", [*EXACT, RawFormat.YUYV, RawFormat.NV12])
def test_short_buffer_is_refused(form: RawFormat) -> None:
    """One byte too few, and it is no picture: what would stand in its place is an older one."""
    size = {RawFormat.YUYV: W * H * 2, RawFormat.NV12: W * H * 3 // 2}.get(form)
    buffer = np.zeros(size, np.uint8) if size else flat(EXACT[form][0])
    raw_to_bgr(buffer, form, (W, H))
    with pytest.raises(ValueError, match=f"incomplete: {buffer.size - 1} bytes of {buffer.size}"):
        raw_to_bgr(buffer[:-1], form, (W, H))


def test_padding_of_lines_is_left_out() -> None:
    """Lines that are longer than their pixels, and bytes behind the last one, change nothing."""
    padded = np.concatenate([np.pad(GREY, ((0, 0), (0, 16)), constant_values=77).reshape(-1), np.zeros(99, np.uint8)])
    assert np.array_equal(raw_to_bgr(padded, RawFormat.MONO8, (W, H), stride_bytes=W + 16), GREY_BGR)
