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

SHORT_BY_S = 0.5
"""A file that ends so much before its header says has been cut off."""


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
    if not container.streams.video:
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
    last_s: float | None = None
    broken: str | None = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            broken = f"the file breaks off: {_why(error)}"
            packet = None
        if packet is None or packet.size == 0:
            break
        for picture in decoder.decode(packet):
            last_s = picture.pts_s if picture.pts_s is not None else last_s
            yield picture
    for picture in decoder.decode(None):
        last_s = picture.pts_s if picture.pts_s is not None else last_s
        yield picture
    broken = broken or _cut_off(stream, last_s)
    if broken is not None:
        yield Picture(raw=None, pts_s=None, damage=broken)


def _cut_off(stream: VideoStream, last_s: float | None) -> str | None:
    """What the header promised and the file did not hold."""
    if stream.duration is None or stream.time_base is None or last_s is None:
        return None
    start_s = float((stream.start_time or 0) * stream.time_base)
    length_s = float(stream.duration * stream.time_base)
    period_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
    if last_s - start_s + max(SHORT_BY_S, 2 * period_s) >= length_s:
        return None
    return f"the file breaks off after {last_s - start_s:.1f} s of {length_s:.1f} s"


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
