"""Pictures: the only place where colours are swapped and where files are decoded and encoded.

Pixels are `(H, W, 3) uint8` BGR unless a name says otherwise.
"""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum
from pathlib import Path

import cv2
import numpy as np

from inspectd.errors import SourceError
from inspectd.records import PixelsU8


def bgr_to_rgb(pixels_bgr: PixelsU8) -> PixelsU8:
    """A copy of `(H, W, 3) uint8` pixels with red first."""
    return np.asarray(cv2.cvtColor(pixels_bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def rgb_to_bgr(pixels_rgb: PixelsU8) -> PixelsU8:
    """A copy of `(H, W, 3) uint8` pixels with blue first."""
    return np.asarray(cv2.cvtColor(pixels_rgb, cv2.COLOR_RGB2BGR), dtype=np.uint8)


class RawFormat(StrEnum):
    """How pixels lie in a camera's buffer. Words of more than eight bits are little-endian."""

    MONO8 = "Mono8"
    MONO10 = "Mono10"
    MONO12 = "Mono12"
    MONO10_P = "Mono10p"
    MONO12_P = "Mono12p"
    MONO10_PACKED = "Mono10Packed"
    MONO12_PACKED = "Mono12Packed"
    MONO16 = "Mono16"
    BAYER_RG8 = "BayerRG8"
    BAYER_GR8 = "BayerGR8"
    BAYER_GB8 = "BayerGB8"
    BAYER_BG8 = "BayerBG8"
    RGB8 = "RGB8"
    RGBA8 = "RGBa8"
    BGR8 = "BGR8"
    BGRA8 = "BGRa8"
    YUYV = "YUV422_8"
    UYVY = "YUV422_8_UYVY"
    NV12 = "NV12"


_BYTES_A_PIXEL = {
    RawFormat.MONO10: 2,
    RawFormat.MONO12: 2,
    RawFormat.MONO16: 2,
    RawFormat.RGB8: 3,
    RawFormat.BGR8: 3,
    RawFormat.RGBA8: 4,
    RawFormat.BGRA8: 4,
    RawFormat.YUYV: 2,
    RawFormat.UYVY: 2,
}
_BIT_STREAMS = {RawFormat.MONO10_P: 10, RawFormat.MONO12_P: 12}
"""Bits of a pixel; pixels follow each other without a gap, their lowest bits first (PFNC)."""
_TRIPLES = frozenset({RawFormat.MONO10_PACKED, RawFormat.MONO12_PACKED})
"""Three bytes hold two pixels: the upper bits of each around the lower bits of both (GigE Vision)."""
_SHIFTS = {RawFormat.MONO10: 2, RawFormat.MONO12: 4, RawFormat.MONO16: 8}
_TO_BGR = {
    RawFormat.MONO8: cv2.COLOR_GRAY2BGR,
    RawFormat.BAYER_RG8: cv2.COLOR_BayerRGGB2BGR,
    RawFormat.BAYER_GR8: cv2.COLOR_BayerGRBG2BGR,
    RawFormat.BAYER_GB8: cv2.COLOR_BayerGBRG2BGR,
    RawFormat.BAYER_BG8: cv2.COLOR_BayerBGGR2BGR,
    RawFormat.RGB8: cv2.COLOR_RGB2BGR,
    RawFormat.RGBA8: cv2.COLOR_RGBA2BGR,
    RawFormat.BGRA8: cv2.COLOR_BGRA2BGR,
    RawFormat.YUYV: cv2.COLOR_YUV2BGR_YUYV,
    RawFormat.UYVY: cv2.COLOR_YUV2BGR_UYVY,
    RawFormat.NV12: cv2.COLOR_YUV2BGR_NV12,
}


def raw_to_bgr(raw: PixelsU8, form: RawFormat, size_wh_px: tuple[int, int], *, stride_bytes: int = 0) -> PixelsU8:
    """A camera's buffer `(n,) uint8` as `(H, W, 3) uint8` BGR, eight bits a channel; a copy.

    `stride_bytes` is the length of a line with its padding, 0 where lines have none.

    Raises:
        ValueError: the buffer holds fewer bytes than the picture has.
    """
    width, height = size_wh_px
    rows = height * 3 // 2 if form is RawFormat.NV12 else height
    if form in _BIT_STREAMS and not stride_bytes:  # a line may begin within a byte
        return raw_to_bgr(raw, form, (width * height, 1), stride_bytes=1).reshape(height, width, 3)
    row_bytes = line_bytes(form, width)
    stride = max(row_bytes, stride_bytes)
    needed = stride * (rows - 1) + row_bytes
    if raw.size < needed:
        raise ValueError(f"incomplete: {raw.size} bytes of {needed}")
    lines = np.lib.stride_tricks.as_strided(raw, (rows, row_bytes), (stride, 1), writeable=False)
    packed = np.ascontiguousarray(lines)
    if form in _SHIFTS:
        grey = (packed.view("<u2") >> _SHIFTS[form]).clip(0, 255).astype(np.uint8)
        return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    if form in _BIT_STREAMS or form in _TRIPLES:
        grey = np.ascontiguousarray(_upper_bits(packed, form)[:, :width])
        return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    channels = row_bytes // width
    picture = packed.reshape(rows, width, channels) if channels > 1 else packed
    if form is RawFormat.BGR8:
        return picture.copy()
    return np.asarray(cv2.cvtColor(picture, _TO_BGR[form]), dtype=np.uint8)


def line_bytes(form: RawFormat, width: int) -> int:
    """How many bytes a line of so many pixels takes, without padding.

    >>> line_bytes(RawFormat.MONO10_P, 6), line_bytes(RawFormat.MONO10_PACKED, 6)
    (8, 9)
    """
    if form in _TRIPLES:
        return -(-width // 2) * 3
    if form in _BIT_STREAMS:
        return -(-width * _BIT_STREAMS[form] // 8)
    return width * _BYTES_A_PIXEL.get(form, 1)


def _upper_bits(lines: PixelsU8, form: RawFormat) -> PixelsU8:
    """The upper eight bits of each pixel of packed lines, and of what fills the last group."""
    group_bytes = 5 if form is RawFormat.MONO10_P else 3
    groups = np.pad(lines, ((0, 0), (0, -lines.shape[1] % group_bytes))).reshape(len(lines), -1, group_bytes)
    if form in _TRIPLES:
        return groups[..., ::2].reshape(len(lines), -1)
    shifts = np.arange(1, group_bytes, dtype=np.uint8) * np.uint8(_BIT_STREAMS[form] - 8)
    upper = np.right_shift(groups[..., :-1], shifts) | np.left_shift(groups[..., 1:], 8 - shifts)
    return np.asarray(upper, dtype=np.uint8).reshape(len(lines), -1)


def read_image_bgr(path: Path) -> PixelsU8:
    """An image file as `(H, W, 3) uint8` BGR: grey is spread over the colours, 16 bits become 8, EXIF turns apply.

    Raises:
        SourceError: the file cannot be read or is no image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    return decode_image_bgr(content, name=str(path))


def decode_image_bgr(content: bytes, *, name: str) -> PixelsU8:
    """The bytes of an image file as `(H, W, 3) uint8` BGR; `name` stands in the error.

    Raises:
        SourceError: the bytes are no image.
    """
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        raise SourceError(f"{name}: not a readable image ({error.err})") from error
    if decoded is None:
        raise SourceError(f"{name}: not a readable image (PNG, JPEG, BMP, TIFF or WebP is expected)")
    return np.asarray(decoded, dtype=np.uint8)


def encode_label_png(labels: PixelsU8) -> bytes:
    """A label mask `(h, w) uint8` as an 8-bit single-channel PNG (contract §3, `png-label8`).

    Written here because labels are long runs of few values: without row filters zlib's fastest level takes a third of
    the time of OpenCV's encoder and gives a smaller file.

    Raises:
        ValueError: not a label mask.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or not labels.size:
        raise ValueError(f"a label mask is {labels.shape} {labels.dtype}, expected (h, w) uint8")
    h, w = labels.shape
    rows = np.zeros((h, 1 + w), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = labels
    header = struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)  # 8 bits, grey, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, level=1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def decode_label_png(content: bytes) -> PixelsU8:
    """The label mask `(h, w) uint8` of a PNG.

    Raises:
        SourceError: the bytes are no 8-bit single-channel PNG.
    """
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    except cv2.error:
        decoded = None
    if decoded is None or decoded.ndim != 2 or decoded.dtype != np.uint8:
        raise SourceError("a label mask is not an 8-bit single-channel PNG")
    return np.asarray(decoded, dtype=np.uint8)


def encode_jpeg(pixels_bgr: PixelsU8, *, quality: int = 85) -> bytes:
    """Pixels as a JPEG.

    Raises:
        ValueError: not a picture.
    """
    return _encoded(".jpg", pixels_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(pixels_bgr: PixelsU8) -> bytes:
    """Pixels as a PNG.

    Raises:
        ValueError: not a picture.
    """
    return _encoded(".png", pixels_bgr, [])


def _encoded(suffix: str, pixels_bgr: PixelsU8, options: list[int]) -> bytes:
    if pixels_bgr.ndim != 3 or pixels_bgr.shape[2] != 3 or pixels_bgr.dtype != np.uint8 or not pixels_bgr.size:
        raise ValueError(f"a picture is {pixels_bgr.shape} {pixels_bgr.dtype}, expected (H, W, 3) uint8 BGR")
    try:
        done, content = cv2.imencode(suffix, pixels_bgr, options)
    except cv2.error as error:
        raise ValueError(f"a picture of {pixels_bgr.shape} cannot be encoded as {suffix}: {error.err}") from error
    if not done:
        raise ValueError(f"a picture of {pixels_bgr.shape} cannot be encoded as {suffix}")
    return content.tobytes()


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
