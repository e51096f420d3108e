"""One sound frame of a source, and the rate at which it gives them: what a person wants to see of a camera."""

from __future__ import annotations

import threading
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from inspectd.errors import SourceError, SourceTimeout
from inspectd.quality import look
from inspectd.records import Frame, PixelsU8
from inspectd.source_settings import DropSource, GenicamSource, Source
from inspectd.sources.base import FrameSource
from inspectd.sources.drops import list_images
from inspectd.sources.folders import load_image
from inspectd.sources.live import LiveCamera
from inspectd.sources.open import open_source, probe

PATIENCE_S = 5.0
"""How long a frame may take beyond what the settings allow a camera to be silent."""
RATE_S = 1.0
ONE_PRODUCER = threading.Lock()
"""A process may open a GenTL producer once at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grab:
    """What came. `fps` is measured where the source is live, `frames` counts a recording or the images of a folder."""

    pixels_bgr: PixelsU8
    fps: float | None
    frames: int | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For people: size, rate, brightness and sharpness."""
        seen = look(self.pixels_bgr)
        height, width = self.pixels_bgr.shape[:2]
        rate = f" at {self.fps:.4g} fps" if self.fps else ""
        length = f", {self.frames} frames" if self.frames else ""
        light = f"brightness {seen.brightness:.0f}, sharpness {seen.sharpness:.0f}"
        return "; ".join([f"{width}x{height}{rate}{length}", light, *self.notes])


def grab(settings: Source) -> Grab | None:
    """Opens a source, takes a sound frame and lets go of it. None for a drop folder without an image.

    Raises:
        ConfigError: as `probe`.
        SourceError: the camera is lost, silent, or gives nothing but damage; a recording begins with damage.
    """
    if isinstance(settings, DropSource):
        return _newest(settings.path)  # looked at, not taken: the daemon will inspect it
    info = probe(settings)
    with (
        ONE_PRODUCER if isinstance(settings, GenicamSource) else nullcontext(),
        closing(open_source(settings)) as source,
    ):
        limit_s = getattr(settings, "open_timeout_s", 0.0) + min(getattr(settings, "silence_s", 0.0), 10.0) + PATIENCE_S
        frame = _sound_frame(source, limit_s)
        fps = _rate(source, frame) if source.live else info.fps
        notes = source.notes if isinstance(source, LiveCamera) else ()
        if isinstance(source, LiveCamera):
            source.end(PATIENCE_S)
    return Grab(pixels_bgr=frame.pixels_bgr, fps=fps, frames=info.frames, notes=notes)


def _sound_frame(source: FrameSource, limit_s: float) -> Frame:
    """The first frame without damage; a recording has to begin with one."""
    until_s, damage = time.monotonic() + limit_s, None
    while time.monotonic() < until_s:
        frame = source.read(0.2)
        if frame is None:
            continue
        if frame.damage is None:
            return frame
        damage = frame.damage
        if not source.live:
            raise SourceError(f"its first frame is damaged: {damage}")
    raise SourceTimeout(f"no frame within {limit_s:g} s" + (f" but damaged ones: {damage}" if damage else ""))


def _rate(source: FrameSource, first: Frame) -> float | None:
    """Frames a second, by their numbers and times over about a second."""
    last, until_s = first, time.monotonic() + RATE_S
    while time.monotonic() < until_s:
        last = source.read(0.1) or last
    span_s = (last.captured_ns - first.captured_ns) / 1e9
    return (last.index - first.index) / span_s if span_s > 0 else None


def _newest(folder: Path) -> Grab | None:
    found = list_images(folder)
    for name in sorted(found, key=lambda name: found[name].mtime_ns, reverse=True):
        pixels_bgr, _ = load_image(folder / name)
        if pixels_bgr is not None:
            return Grab(pixels_bgr=pixels_bgr, fps=None, frames=len(found))
    return None
