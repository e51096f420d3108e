"""Packets to pictures: decoding with the damage named, and conversion to upright BGR.

A decoder that has met an error goes on guessing: what it gives then looks almost right. So every picture from the
error on is tainted until the next sound key frame, also where the decoder reports nothing more.
"""

from __future__ import annotations

import ctypes
import sys
from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from inspectd.records import PixelsU8
from inspectd.sources.h264 import FrameNumbers

NO_KEY_FRAME = "no key frame yet"
MOST_BROKEN = 64
"""More than a decoder holds back."""
REORDER = 16
"""Pictures that a stream may show later than it sends them, at most (H.264, A.3)."""
UNKNOWN = sys.maxsize
"""The number of a packet that nobody knows."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""glibc's malloc.h."""


def keep_large_blocks() -> None:
    """Lets this process use the memory of its last frames for its next ones, instead of asking the kernel each time.

    Three quarters of the time that a 1080p frame takes to become BGR are page faults otherwise. Does nothing where the
    C library is not glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    for option, size in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 256 << 20), (M_TOP_PAD, 64 << 20)):
        libc.mallopt(option, size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One decoded frame. `raw` is None where the decoder lost it; `damage` is None where it is sound."""

    raw: VideoFrame | None
    pts_s: float | None
    damage: str | None


class Decoder:
    """Decodes one video stream and tracks damage. Every packet is answered by a picture, a lost one by its stand-in.

    Packets carry their number through the decoder (`opaque`), so that damage is told exactly in spite of B-frames:
    a picture is tainted when its packet did not come before the broken one, until a key frame that came after it.
    With B-frames a picture may be shown before one that it was made from, so it is held until that one is known.
    """

    def __init__(self, stream: VideoStream, *, threads: int = 1) -> None:
        self._codec = stream.codec_context
        self._time_base = stream.time_base
        self._codec.thread_type = "SLICE"  # frame threads report errors late and add a frame of delay each
        self._codec.thread_count = threads
        self._codec.copy_opaque = True
        self._codec.flags |= Flags.output_corrupt  # better a frame that is marked than one that is missing
        is_h264 = self._codec.name == "h264"
        self._numbers = FrameNumbers(self._codec.extradata or b"") if is_h264 else None
        self._sent = 0
        self._open: set[int] = set()  # packets sent and not answered yet
        self._held: deque[tuple[int, VideoFrame]] = deque()
        self._begun = False
        self._broken: list[tuple[int, str]] = []  # packets that something is wrong with, since the last key frame

    @property
    def damage(self) -> str | None:
        """What taints the stream now, None when the last key frame and all after it were sound."""
        if not self._begun:
            return NO_KEY_FRAME
        return self._broken[0][1] if self._broken else None

    def decode(self, packet: Packet[VideoStream] | None) -> Iterator[Picture]:
        """The pictures that a packet yields, in the order of display; None flushes the decoder at the end."""
        number = self._sent
        if packet is not None:
            packet.opaque = [number]  # PyAV keeps it by its address: a small number would be another decoder's too
            self._sent += 1
            self._open.add(number)
            if packet.is_corrupt:
                self._taint(number, "packet damaged on the way")
            if self._numbers is not None and self._numbers.misses(bytes(packet)):
                self._taint(number, "a frame is missing")
        try:
            frames = self._codec.decode(packet)
        except FFmpegError as error:
            self._taint(number, f"decode error: {error.strerror}")
            self._open.discard(number)
            yield Picture(raw=None, pts_s=None if packet is None else self._seconds(packet.pts), damage=self.damage)
            return
        for frame in frames:
            self._hold(frame)
            while self._held and not self._waits(self._held[0][0]):
                yield from self._judge(*self._held.popleft())
        if packet is None:
            while self._held:
                yield from self._judge(*self._held.popleft())
            yield from self._lost(before=self._sent)

    def _hold(self, frame: VideoFrame) -> None:
        if isinstance(frame.opaque, list):
            number: int = frame.opaque[0]
            self._open.discard(number)
        else:  # a guess that lost its number is behind every damage, and answers the packet that waits longest
            number = UNKNOWN
            self._open.discard(min(self._open, default=0))
        self._held.append((number, frame))
        if frame.is_corrupt:
            self._taint(number, "decode error concealed")

    def _waits(self, number: int) -> bool:
        """Whether a packet that this picture may have been made from is still to be shown."""
        return self._codec.has_b_frames and any(number - REORDER <= each < number for each in self._open)

    def _judge(self, number: int, frame: VideoFrame) -> Iterator[Picture]:
        known = number != UNKNOWN and not frame.is_corrupt
        if known and (not self._begun or self._broken) and _is_entry(frame):
            yield from self._lost(before=number)
            self._begun = True
            self._broken = [each for each in self._broken if each[0] >= number]  # a decoder with B-frames is behind
        tainted = not self._begun or any(at <= number for at, _ in self._broken)
        yield Picture(raw=frame, pts_s=self._seconds(frame.pts), damage=self.damage if tainted else None)

    def _seconds(self, pts: int | None) -> float | None:
        """The stream's own time; a frame that is flushed out has lost its time base, so the stream's is taken."""
        return None if pts is None or self._time_base is None else float(pts * self._time_base)

    def _taint(self, number: int, damage: str) -> None:
        insort(self._broken, (number, damage))
        del self._broken[1:-MOST_BROKEN]  # the first decides, and the last where a key frame came in between

    def _lost(self, *, before: int) -> Iterator[Picture]:
        """Stand-ins for packets since the damage that the decoder swallowed without a word."""
        lost = {number for number in self._open if number < before}
        self._open -= lost
        if not self._begun or not self._broken:
            return  # a sound stream may hold packets that are no picture, such as edits of an MP4
        for number in sorted(lost):
            if number >= self._broken[0][0]:
                yield Picture(raw=None, pts_s=None, damage=self.damage)


def _is_entry(frame: VideoFrame) -> bool:
    """Whether decoding can start here. A gradual refresh is marked as a key frame too, but begins with old damage."""
    return frame.key_frame and frame.pict_type == PictureType.I


class Upright:
    """Converts decoded frames of any pixel format to `(H, W, 3) uint8` BGR, turned as the recording says."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def pixels_bgr(self, raw: VideoFrame) -> PixelsU8:
        """Eight bits a channel; deeper formats are scaled down."""
        pixels = np.asarray(self._reformatter.reformat(raw, format="bgr24", threads=1).to_ndarray(), dtype=np.uint8)
        turn = orientation(raw)
        turned = pixels.transpose(1, 0, 2) if turn.swapped else pixels
        return np.ascontiguousarray(turned[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """What makes a frame upright: x and y are swapped first, then each is mirrored."""

    swapped: bool = False
    mirror_x: bool = False
    mirror_y: bool = False


def orientation(raw: VideoFrame) -> Orientation:
    """A frame's turn by its display matrix: x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 8.3.2).

    Only quarter turns and mirrors are known; another angle is taken as the nearest of these.
    """
    # Not `raw.side_data`, which the frame would keep: a circle, and its pixels would wait for the garbage collector.
    matrix = SideDataContainer(raw).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]  # PyAV's stubs leave it out
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(swapped=True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(mirror_x=a < 0, mirror_y=d < 0)


def upright_size_wh_px(raw: VideoFrame) -> tuple[int, int]:
    """Width and height after turning."""
    return (raw.height, raw.width) if orientation(raw).swapped else (raw.width, raw.height)
