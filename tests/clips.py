"""Small real clips for tests: every frame spells its own number, in blocks that survive any encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 8
BLOCK_PX = 16
TIME_BASE = Fraction(1, 1000)


def numbered(number: int, size_wh: tuple[int, int] = (160, 96)) -> NDArray[np.uint8]:
    """A BGR picture whose top row of blocks spells `number` in binary, above a pattern that moves."""
    width, height = size_wh
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    wave = 110 + 50 * np.sin((x + 3 * number) / 9) * np.cos(y / 7)
    picture = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    for bit in range(BITS):
        picture[:BLOCK_PX, bit * BLOCK_PX : (bit + 1) * BLOCK_PX] = 235 if number >> bit & 1 else 20
    return picture


def number_of(pixels_bgr: NDArray[np.uint8]) -> int:
    """The number that a picture spells."""
    centres = pixels_bgr[BLOCK_PX // 2, BLOCK_PX // 2 : BITS * BLOCK_PX : BLOCK_PX].mean(axis=1)
    return sum(int(centre > 127) << bit for bit, centre in enumerate(centres))


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    gop: int = 12,
    b_frames: int = 0,
    form: str | None = None,
) -> Path:
    """Encodes BGR pictures; `times_ms` gives each its own time (a variable frame rate)."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = TIME_BASE if times_ms is not None else Fraction(1, fps)
        stream.codec_context.gop_size = gop
        if codec == "libx264":
            stream.options = {"bf": str(b_frames), "preset": "veryfast", "threads": "1", "sc_threshold": "0"}
        if codec == "libx265":
            shape = f"bframes={b_frames}:keyint={gop}:min-keyint={gop}:scenecut=0:pools=1:frame-threads=1"
            stream.options = {"preset": "ultrafast", "x265-params": f"{shape}:log-level=none"}
        if codec == "mjpeg":
            stream.options = {"huffman": "default"}  # the tables that RTP knows (RFC 2435)
        for number, picture in enumerate(frames):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format=pix_fmt)
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_numbered(path: Path, count: int, size_wh: tuple[int, int] = (160, 96), **how: object) -> Path:
    """A clip of numbered frames."""
    return write_clip(path, (numbered(number, size_wh) for number in range(count)), **how)  # type: ignore[arg-type]


def flip_bits(path: Path, packet: int, at_share: float = 0.5, bits: int = 24) -> None:
    """Damages one packet of an MP4 in place: inverts bits in its middle, as a bad disk or link would."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        pos, size = packets[packet].pos, packets[packet].size
    assert pos is not None
    data = bytearray(path.read_bytes())
    start = pos + max(5, int(size * at_share))
    for offset in range(start, min(start + bits // 8, pos + size)):
        data[offset] ^= 0xFF
    path.write_bytes(bytes(data))


def set_display_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Writes a, b, c, d of the track header's matrix (ISO/IEC 14496-12, 8.3.2), as a phone that is turned does."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    for place, value in zip((0, 1, 3, 4), (a, b, c, d), strict=True):
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(data))
