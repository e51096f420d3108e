"""Video files by PyAV: any size, rate, turn and pixel format; damage becomes a damaged shot, never an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from inspectd.errors import ConfigError
from inspectd.records import PixelsU8
from inspectd.sources.base import SourceInfo
from inspectd.sources.decoding import Decoder, Picture, Upright, upright_size_wh_px
from inspectd.sources.files import Pass, Shot

SHORT_BY_S = 0.05
"""A file that ends so much (and two frames) before its header says has been cut off."""
NOT_VIDEO = frozenset({"tty"})
"""Formats that FFmpeg makes pictures of and that are none: this one renders any text file."""


def probe_video(path: Path) -> SourceInfo:
    """Size, rate and length of a video file, from its header and its first frame.

    Raises:
        ConfigError: missing, unreadable, not a video, or without a frame.
    """
    with closing(_open(path)) as container:
        stream = _video_stream(path, container)
        fps = stream.average_rate or stream.guessed_rate
        size_wh_px = _first_size(container, stream)
        if size_wh_px is None:
            raise ConfigError(f"{path}: holds no frame that can be decoded")
        return SourceInfo(size_wh_px=size_wh_px, fps=float(fps) if fps else None, frames=stream.frames or None)


def video_shots(path: Path, size_wh_px: tuple[int, int]) -> Pass:
    """One pass through a video file. A frame of another size than `size_wh_px` is damaged.

    A file that vanished or broke off since `probe_video` gives one damaged shot and ends.
    """
    upright = Upright()
    try:
        container = _open(path)
        stream = _video_stream(path, container)
    except ConfigError as error:
        yield _lost_shot(str(error), None)
        return
    with closing(container):
        for picture in _pictures(container, stream):
            yield _shot(picture, upright, size_wh_px)


def _open(path: Path) -> InputContainer:
    if path.is_dir():
        raise ConfigError(f'{path}: is a folder; use kind = "folder"')
    try:
        return av.open(f"file:{path}", metadata_errors="replace")
    except FFmpegError as error:
        raise ConfigError(f"{path}: {_why(error)}") from error


def _why(error: FFmpegError) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "not a video, or cut off before its first frame"
    return (error.strerror or type(error).__name__).lower()


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    if not container.streams.video or container.format.name in NOT_VIDEO:
        raise ConfigError(f"{path}: has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ConfigError(f"{path}: its video is of a kind that cannot be decoded here")
    return stream


def _first_size(container: InputContainer, stream: VideoStream) -> tuple[int, int] | None:
    for picture in _pictures(container, stream):
        if picture.raw is not None:
            return upright_size_wh_px(picture.raw)
    return None


def _pictures(container: InputContainer, stream: VideoStream) -> Iterator[Picture]:
    """All pictures of a file; one more, damaged, where it breaks off before its own end."""
    decoder = Decoder(stream)
    broken: str | None = None
    end_s, count = 0.0, 0
    sound = True
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            broken = f"the file breaks off: {_why(error)}"
            packet = None
        last = packet is None or packet.size == 0
        count += not last
        if packet is not None and packet.pts is not None:
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        for picture in decoder.decode(None if last else packet):
            sound = picture.damage is None
            yield picture
        if last:
            break
    broken = broken or _cut_off(container, stream, end_s, count)
    if broken is not None and sound:  # else the last picture says so already
        yield Picture(raw=None, pts_s=None, damage=broken)


def _cut_off(container: InputContainer, stream: VideoStream, end_s: float, count: int) -> str | None:
    """What the header promised and the file did not hold; None where the header promises nothing."""
    if "mp4" not in container.format.name and count + 2 < stream.frames:  # an MP4's edits leave frames out
        return f"the file breaks off after {count} of {stream.frames} frames"
    start_s = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    if stream.duration is not None and stream.time_base is not None:
        length_s = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:  # else it may be the sound's
        length_s = container.duration / av.time_base
    else:
        return None
    period_s = float(1 / stream.average_rate) if stream.average_rate else SHORT_BY_S
    if end_s - start_s + max(SHORT_BY_S, 2 * period_s) >= length_s:
        return None
    return f"the file breaks off after {end_s - start_s:.1f} s of {length_s:.1f} s"


def _shot(picture: Picture, upright: Upright, size_wh_px: tuple[int, int]) -> Shot:
    raw = picture.raw
    if raw is None:
        return _lost_shot(picture.damage or "lost", picture.pts_s)

    def load() -> tuple[PixelsU8 | None, str | None]:
        size = upright_size_wh_px(raw)
        if size != size_wh_px:
            return None, f"the frame size changed from {size_wh_px[0]}x{size_wh_px[1]} to {size[0]}x{size[1]} px"
        return upright.pixels_bgr(raw), picture.damage

    return Shot(pts_s=picture.pts_s, load=load)


def _lost_shot(damage: str, pts_s: float | None) -> Shot:
    return Shot(pts_s=pts_s, load=lambda: (None, damage))
