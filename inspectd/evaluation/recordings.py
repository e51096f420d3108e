"""The frames of recordings that are to be inspected: every one, or one a part, as live capture would choose them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from inspectd.errors import SourceError
from inspectd.recipe import IMAGE_SUFFIXES, Recipe
from inspectd.records import Frame, TriggerKind
from inspectd.settings import TriggerSettings
from inspectd.source_settings import FileSource, FolderSource
from inspectd.sources.base import EndOfSource, FrameSource
from inspectd.sources.open import open_source
from inspectd.sources.presence import Part, Parts
from inspectd.sources.triggers import Continuous

_READ_S = 5.0

EVERY_FRAME = TriggerSettings()
EVERY_PART = TriggerSettings(kind="presence")


def source_of(path: Path) -> FileSource | FolderSource:
    """A recording as a source that is read as fast as it goes: a video or image file, or a folder of images."""
    if path.is_dir():
        return FolderSource(kind="folder", path=path, pace="fast")
    return FileSource(kind="file", path=path, pace="fast")


def parts_of(path: Path, recipe: Recipe, *, presence: bool = False) -> Iterator[tuple[Frame, ...]]:
    """What of a recording is to be measured: every frame by itself or, of a video, the frames of each part that vote.

    Images are parts by themselves.

    Raises:
        ConfigError: the recording is missing or holds no frame.
        SourceError: it breaks off, or a frame is damaged: nothing may be measured from that.
    """
    still = path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
    with closing(open_source(source_of(path))) as source:
        for part in chosen(source, recipe, EVERY_PART if presence and not still else EVERY_FRAME):
            if part.best.damage is not None:
                raise SourceError(f"{path}: frame {part.best.index} is damaged: {part.best.damage}")
            yield part.frames


def chosen(
    source: FrameSource, recipe: Recipe, trigger: TriggerSettings, on_read: Callable[[], None] = lambda: None
) -> Iterator[Part]:
    """The parts of an open source that the trigger takes, damaged frames among them, until the source ends.

    Args:
        on_read: called after each frame of the source, taken or not.

    Raises:
        SourceError: the source is lost.
    """
    match TriggerKind(trigger.kind):
        case TriggerKind.PRESENCE:
            return _parts(_read(source, on_read), recipe, trigger)
        case TriggerKind.CONTINUOUS | TriggerKind.EXTERNAL:
            return _continuous(_read(source, on_read), trigger)


def _continuous(frames: Iterator[Frame], trigger: TriggerSettings) -> Iterator[Part]:
    every = Continuous(every_nth=trigger.every_nth)
    return (Part(frames=(frame,)) for frame in frames if frame.damage is not None or every.wants(frame))


def _parts(frames: Iterator[Frame], recipe: Recipe, trigger: TriggerSettings) -> Iterator[Part]:
    parts = Parts(trigger, recipe)
    for frame in frames:
        yield from parts.feed(frame)
    yield from parts.flush()


def _read(source: FrameSource, on_read: Callable[[], None]) -> Iterator[Frame]:
    while True:
        try:
            frame = source.read(_READ_S)
        except EndOfSource:
            return
        if frame is not None:
            on_read()
            yield frame
