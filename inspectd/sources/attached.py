"""The cameras that this machine can reach: what the kernel lists, what producers find, what answers at a URL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from inspectd.errors import SourceError
from inspectd.source_settings import GenicamSource, MjpegSource, RtspSource, Source, V4l2Format, V4l2Source
from inspectd.sources import genicam, v4l2_kernel
from inspectd.sources.addresses import redact

LARGEST_WH_PX = (8192, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """One camera, or in `error` why it cannot be used. `modes` are lines for people; `source` opens it as it is."""

    kind: str
    name: str
    description: str = ""
    modes: tuple[str, ...] = ()
    source: Source | None = None
    error: str | None = None


def kernel_cameras() -> Iterator[Attached]:
    """Cameras of the kernel's, by their stable names. Nodes that carry only metadata are left out."""
    for path in v4l2_kernel.devices():
        try:
            device = v4l2_kernel.examine(path)
        except v4l2_kernel.NoVideo:
            continue
        except SourceError as error:
            yield Attached(kind="v4l2", name=str(path), error=str(error))
            continue
        yield Attached(
            kind="v4l2",
            name=str(path),
            description=f"{device.card} ({device.driver})",
            modes=tuple(_mode(mode) for mode in device.modes),
            source=_at_its_largest(device),
        )


def gentl_cameras(producers: tuple[Path, ...]) -> Iterator[Attached]:
    """Cameras that the producers find; without any given, those of GENICAM_GENTL64_PATH, where there are some."""
    try:
        paths = list(producers) or genicam.producers(())
    except SourceError:
        return  # nobody asked for them
    for path in paths:
        try:
            genicam.producers((path,))
            found = genicam.list_cameras(path)
        except SourceError as error:
            yield Attached(kind="genicam", name=str(path), error=str(error))
            continue
        for info in found:
            yield _gentl_camera(info)


def camera_at(source: RtspSource | MjpegSource) -> Attached:
    """A camera by its URL."""
    whole = source.model_copy(update={"max_size_wh_px": LARGEST_WH_PX})
    return Attached(kind=source.kind, name=redact(source.url), source=whole)


def _gentl_camera(info: genicam.CameraInfo) -> Attached:
    description = f"{info.vendor} {info.model} ({info.transport}), {info.producer}"
    source = GenicamSource(kind="genicam", serial=info.serial, producers=(info.producer,), max_size_wh_px=LARGEST_WH_PX)
    try:
        modes = genicam.describe(source)
    except SourceError as error:
        return Attached(kind="genicam", name=info.serial, description=description, error=str(error))
    return Attached(kind="genicam", name=info.serial, description=description, modes=modes, source=source)


def _at_its_largest(device: v4l2_kernel.VideoDevice) -> V4l2Source:
    formats = get_args(V4l2Format)
    modes = [mode for mode in device.modes if mode.format in formats]
    if not modes:
        return V4l2Source(kind="v4l2", device=device.path)
    best = max(modes, key=lambda mode: mode.size_wh_px)
    return V4l2Source.model_validate(
        {"kind": "v4l2", "device": device.path, "format": best.format, "size_wh_px": best.size_wh_px}
    )


def _mode(mode: v4l2_kernel.Mode) -> str:
    width, height = mode.size_wh_px
    rates = ", ".join(f"{fps:g}" for fps in mode.fps)
    return f"{mode.format} {width}x{height}{f' at {rates} fps' if rates else ''}"
