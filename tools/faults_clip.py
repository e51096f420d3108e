"""The harness's clips: each picture spells its number and whether its part is good or bad, above the part itself.

Two rows of blocks hold number, kind and a checksum; the recipe looks below them. Whoever decodes a clip can so tell
which frame of it a picture is, and that it is no mixture, without asking the daemon. BGR throughout.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from demo_clip import station
from demo_defects import DefectKind
from demo_parts import render_part, sample_pose
from demo_shapes import PartKind
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

BLOCK_PX = 16
BLOCKS = 15
PART_PX = BLOCKS * BLOCK_PX
STRIP_PX = 2 * BLOCK_PX
SIZE_WH_PX = PART_PX, STRIP_PX + PART_PX
NUMBER_BITS, CHECK_BITS = 14, 12
BOLD = (DefectKind.HOLE, DefectKind.STAIN, DefectKind.CONTAMINATION)
"""Damage that the demo model cannot overlook when it is large."""
LEAST_DAMAGE_PX = 700


class Kind(StrEnum):
    """What a part is."""

    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelt:
    """What a picture says of itself."""

    number: int
    kind: Kind


def render(seed: int, count: int, bad_share: float = 0.4) -> list[tuple[Kind, Pixels]]:
    """Parts of the sample's product `(240, 240, 3) uint8`, in random order, the share of bad ones exactly kept."""
    rng = np.random.default_rng(seed)
    bad = round(count * bad_share)
    kinds = rng.permutation([Kind.BAD] * bad + [Kind.GOOD] * (count - bad))
    return [(Kind(kind), _part(Kind(kind), rng)) for kind in kinds]


def _part(kind: Kind, rng: np.random.Generator) -> Pixels:
    """One part; a bad one is drawn again until its damage is large."""
    product, scene = station(0, PartKind.NUT)
    while True:
        defects = () if kind is Kind.GOOD else (BOLD[int(rng.integers(len(BOLD)))],)
        pose = replace(sample_pose(rng), scale=1.0)
        made = render_part(product, scene, pose, size_px=PART_PX, seed=int(rng.integers(2**31)), defects=defects)
        if kind is Kind.GOOD or made.mask.sum() >= LEAST_DAMAGE_PX:
            return np.ascontiguousarray(made.pixels_rgb[..., ::-1])


def spell(number: int, kind: Kind, part_bgr: Pixels) -> Pixels:
    """The part under the blocks that tell its number and kind: `(272, 240, 3) uint8`."""
    bits = [_word(number, kind) >> bit & 1 for bit in range(2 * BLOCKS)]
    levels = np.where(np.array(bits).reshape(2, BLOCKS), 235, 20).astype(np.uint8)
    strip = np.repeat(np.repeat(levels, BLOCK_PX, 0), BLOCK_PX, 1)
    return np.concatenate([np.repeat(strip[..., None], 3, 2), part_bgr])


def read(picture_bgr: Pixels) -> Spelt | None:
    """What a picture spells; None where it spells nothing, as one that is damaged or mixed does."""
    if picture_bgr.shape[1] < PART_PX or picture_bgr.shape[0] < STRIP_PX:
        return None
    blocks = picture_bgr[:STRIP_PX, :PART_PX].reshape(2, BLOCK_PX, BLOCKS, BLOCK_PX, 3)
    bits = blocks[:, 4:-4, :, 4:-4].mean((1, 3, 4)).ravel() > 127
    word = sum(int(bit) << at for at, bit in enumerate(bits))
    number, kind = word & (1 << NUMBER_BITS) - 1, Kind.BAD if word >> NUMBER_BITS & 1 else Kind.GOOD
    return Spelt(number=number, kind=kind) if word == _word(number, kind) else None


def _word(number: int, kind: Kind) -> int:
    value = number | (kind is Kind.BAD) << NUMBER_BITS
    check = zlib.crc32(value.to_bytes(4, "big")) & (1 << CHECK_BITS) - 1
    return value | check << NUMBER_BITS + 1


def write(
    path: Path,
    pictures_bgr: Iterable[Pixels],
    fps: float,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    form: str | None = None,
    first_number: int = 0,
) -> Path:
    """Encodes pictures, in order of display, without B frames, timed from `first_number` on."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.bit_rate = 12_000_000  # of codecs that are not told a quality
        if codec == "libx264":
            stream.options = {"bf": "0", "preset": "veryfast", "threads": "1", "sc_threshold": "0", "qp": "18"}
        for number, picture in enumerate(pictures_bgr):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = first_number + number, 1 / Fraction(fps).limit_denominator(1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode(path: Path) -> Iterator[tuple[float | None, Pixels, bool]]:
    """The pictures of a clip as any player shows them: time, pixels, and whether the decoder owns up to damage."""
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        errors = 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                frames = stream.codec_context.decode(packet) if packet is not None else []
            except av.error.FFmpegError:
                errors += 1
                if errors > 100:
                    return
                continue
            if packet is None:
                return
            for frame in frames:
                yield frame.time, frame.to_ndarray(format="bgr24"), bool(frame.is_corrupt)


def kinds_of(path: Path) -> list[Kind]:
    """The kind of every frame, as the clip itself spells it.

    Raises:
        ValueError: a picture cannot be read, or is out of order.
    """
    kinds = []
    for number, (_, picture_bgr, _) in enumerate(decode(path)):
        spelt = read(picture_bgr)
        if spelt is None or spelt.number != number:
            raise ValueError(f"{path}: frame {number} spells {spelt}")
        kinds.append(spelt.kind)
    return kinds


def packets_of(path: Path) -> Sequence[tuple[int, int, bool]]:
    """Place and size of every packet in the file, and whether it is a key frame."""
    with av.open(f"file:{path}") as container:
        return [(p.pos, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size and p.pos is not None]
