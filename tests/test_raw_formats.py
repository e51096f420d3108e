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


def stream(bits: int, values: np.ndarray) -> np.ndarray:
    """Pixels bit by bit, the lowest first and without a gap, as PFNC has Mono10p and Mono12p."""
    each = values.reshape(-1, 1).astype("<u2").view(np.uint8)
    return np.packbits(np.unpackbits(each, axis=1, bitorder="little")[:, :bits], bitorder="little")


def triples(bits: int, values: np.ndarray) -> np.ndarray:
    """Two pixels in three bytes, as GigE Vision has Mono10Packed and Mono12Packed."""
    first, second = values.reshape(-1, 2).astype(int).T
    low = bits - 8
    middle = first & (1 << low) - 1 | (second & (1 << low) - 1) << 4
    return np.stack([first >> low, middle, second >> low], axis=1).astype(np.uint8)


GREY10, GREY12 = (GREY.astype("<u2") << 2) + 3, (GREY.astype("<u2") << 4) + 15
EXACT = {
    RawFormat.MONO8: (GREY, GREY_BGR),
    RawFormat.MONO10: (GREY10, GREY_BGR),
    RawFormat.MONO12: (GREY12, GREY_BGR),
    RawFormat.MONO10_P: (stream(10, GREY10), GREY_BGR),
    RawFormat.MONO12_P: (stream(12, GREY12), GREY_BGR),
    RawFormat.MONO10_PACKED: (triples(10, GREY10), GREY_BGR),
    RawFormat.MONO12_PACKED: (triples(12, GREY12), GREY_BGR),
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


def test_packed_bits_lie_as_the_standards_say() -> None:
    """By hand, bit for bit: 0x155, 0x2AA, 0x001 and 0x3FE; and a line of an odd width may begin within a byte."""
    stream10 = np.array([0b01010101, 0b10101001, 0b00011010, 0b10000000, 0b11111111], np.uint8)
    stream12 = np.array([0x56, 0xF4, 0xCD, 0x89, 0x07], np.uint8)  # 0x456, 0xCDF, 0x789
    triples10 = np.array([0x55, 0b00100001, 0xAA], np.uint8)  # 0x155, 0x2AA
    assert raw_to_bgr(stream10, RawFormat.MONO10_P, (4, 1))[0, :, 0].tolist() == [0x55, 0xAA, 0x00, 0xFF]
    assert raw_to_bgr(stream12, RawFormat.MONO12_P, (1, 3))[:, 0, 0].tolist() == [0x45, 0xCD, 0x78]
    assert raw_to_bgr(triples10, RawFormat.MONO10_PACKED, (2, 1))[0, :, 0].tolist() == [0x55, 0xAA]


def test_padded_lines_of_packed_pixels_begin_at_a_byte() -> None:
    """Seven pixels of ten bits are nine bytes; what follows them is left out."""
    lines = [np.pad(stream(10, GREY10[row, :7]), (0, 7), constant_values=77) for row in range(H)]
    pixels = raw_to_bgr(np.concatenate(lines), RawFormat.MONO10_P, (7, H), stride_bytes=16)
    assert np.array_equal(pixels, GREY_BGR[:, :7])
