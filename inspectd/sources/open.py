"""From settings to an open source: the one place that knows all kinds."""

from __future__ import annotations

from inspectd.source_settings import (
    DropSource,
    FileSource,
    FolderSource,
    GenicamSource,
    MjpegSource,
    RtspSource,
    Source,
    V4l2Source,
)
from inspectd.sources.addresses import redact
from inspectd.sources.base import FrameSource, SourceInfo
from inspectd.sources.drops import DropFolder
from inspectd.sources.files import Recording
from inspectd.sources.folders import folder_shots, image_paths, probe_folder
from inspectd.sources.genicam import GenicamConnection
from inspectd.sources.live import Connection, LiveCamera, Patience
from inspectd.sources.mjpeg import MjpegConnection
from inspectd.sources.rtsp import rtsp_camera
from inspectd.sources.v4l2 import V4l2Connection
from inspectd.sources.videos import probe_video, video_shots


def probe(settings: Source) -> SourceInfo:
    """What a source will give. Opens files and reads their headers; a network camera is not asked.

    Raises:
        ConfigError: a file is missing, unreadable, not a video or without a frame; a folder holds no readable image.
    """
    match settings:
        case FileSource():
            return probe_video(settings.path)
        case FolderSource():
            return probe_folder(settings.path, settings.rate_fps)
        case DropSource() | RtspSource() | MjpegSource() | V4l2Source() | GenicamSource():
            return SourceInfo(size_wh_px=settings.max_size_wh_px)


def open_source(settings: Source, *, start_index: int = 0) -> FrameSource:
    """Opens a source; its first frame has the index `start_index`, and a recording goes on there.

    Opening a network camera does not block: what is wrong with it is raised by `read`.

    Raises:
        ConfigError: as `probe`.
    """
    info = probe(settings)
    match settings:
        case FileSource(path=path):
            return Recording(
                lambda: video_shots(path, info.size_wh_px),
                name=path.name,
                info=info,
                pace=settings.pace,
                loop=settings.loop,
                start_index=start_index,
            )
        case FolderSource():
            paths = image_paths(settings.path)
            return Recording(
                lambda: folder_shots(paths),
                name=settings.path.name,
                info=info,
                pace=settings.pace,
                loop=settings.loop,
                start_index=start_index,
            )
        case DropSource():
            return DropFolder(settings, start_index=start_index)
        case RtspSource():
            return rtsp_camera(settings, start_index=start_index)
        case MjpegSource() | V4l2Source() | GenicamSource():
            return _live(settings, start_index)


def _live(settings: MjpegSource | V4l2Source | GenicamSource, start_index: int) -> LiveCamera:
    connection: Connection
    match settings:
        case MjpegSource():
            connection, name = MjpegConnection(settings), redact(settings.url)
        case V4l2Source():
            connection, name = V4l2Connection(settings), str(settings.device)
        case GenicamSource():
            connection, name = GenicamConnection(settings), f"camera {settings.serial}"
    return LiveCamera(
        connection,
        name=name,
        size_wh_px=settings.max_size_wh_px,
        patience=Patience(open_s=settings.open_timeout_s, silence_s=settings.silence_s),
        start_index=start_index,
    )
