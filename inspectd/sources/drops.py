"""Drop folders: images that somebody else writes, each inspected once, in order of arrival, when it is whole.

A file is whole when its size and time have not changed for a while and it decodes to its end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspectd.errors import SourceLost
from inspectd.recipe import IMAGE_SUFFIXES
from inspectd.records import Frame, PixelsU8, TimeKind
from inspectd.source_settings import DropSource
from inspectd.sources.folders import UNREADABLE, header_size_wh_px, load_image, natural
from inspectd.sources.handled import Handled, Version

POLL_S = 0.05


@dataclass(slots=True, kw_only=True)
class _Waiting:
    version: Version
    since_s: float
    tried: bool = False


class Intake:
    """Decides when a file is worth a look. Pure: listings and time come in, names go out."""

    def __init__(self, *, settle_s: float, give_up_s: float) -> None:
        self._settle_s = settle_s
        self._give_up_s = give_up_s
        self._waiting: dict[str, _Waiting] = {}

    def see(self, files: dict[str, Version], now_s: float) -> int:
        """Takes a listing of the files that are not done; how many went away before they were looked at."""
        gone = self._waiting.keys() - files.keys()
        for name in gone:
            del self._waiting[name]
        for name, version in files.items():
            known = self._waiting.get(name)
            if known is None or known.version != version:
                self._waiting[name] = _Waiting(version=version, since_s=now_s)
        return len(gone)

    def ripe(self, now_s: float) -> Iterator[tuple[str, Version, bool]]:
        """Name, version and whether this is its last chance, of each file that has settled, oldest first.

        One that could not be read is not tried again until it changes, or its time is over.
        """
        for name, waiting in sorted(
            self._waiting.items(), key=lambda item: (item[1].version.mtime_ns, natural(item[0]))
        ):
            still_s = now_s - waiting.since_s
            last = still_s >= self._give_up_s
            if last or (still_s >= self._settle_s and not waiting.tried):
                waiting.tried = True
                yield name, waiting.version, last

    def done(self, name: str) -> None:
        """The file was handed out."""
        self._waiting.pop(name, None)


class DropFolder:
    """A `FrameSource` over a folder that is being filled. It has no end."""

    simulated = True
    live = False
    is_there = True

    def __init__(self, settings: DropSource, *, start_index: int = 0) -> None:
        """Looks into the folder.

        Raises:
            SourceLost: the folder is not there, or the index cannot be written.
        """
        self.size_wh_px = settings.max_size_wh_px
        self.frames_missed = 0
        self._folder = settings.path
        files = list_images(settings.path)
        self._handled = Handled(settings.index, start_index=start_index, present=files)
        self._intake = Intake(settle_s=settings.settle_s, give_up_s=max(settings.settle_s, settings.unreadable_after_s))
        self._ripe: Iterator[tuple[str, Version, bool]] = iter(())
        self._look_s = 0.0

    @property
    def next_index(self) -> int:
        """The index after the last image that was handed out, in this folder's whole life."""
        return self._handled.next_index

    def read(self, timeout_s: float) -> Frame | None:
        """The next whole image."""
        until_s = time.monotonic() + timeout_s
        while True:
            for name, version, last in self._ripe:
                frame = self._try(name, version, last=last)
                if frame is not None or time.monotonic() >= until_s:
                    return frame
            wait_s = min(self._look_s, until_s) - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            if time.monotonic() >= until_s:
                return None
            self._look()

    def acknowledge(self) -> None:
        """Notes that the last image is through.

        Raises:
            SourceLost: it cannot be noted.
        """
        self._handled.finish()

    def close(self) -> None:
        """Lets go of the folder. An image that nobody acknowledged is the next one's."""

    def _look(self) -> None:
        now_s = time.monotonic()
        files = list_images(self._folder)
        new = {name: version for name, version in files.items() if not self._handled.knows(name, version)}
        self.frames_missed += self._intake.see(new, now_s)
        self._ripe = self._intake.ripe(now_s)
        taken_s = time.monotonic() - now_s
        self._look_s = now_s + max(POLL_S, 5 * taken_s)  # a folder of a hundred thousand images costs a fifth of a core

    def _try(self, name: str, version: Version, *, last: bool) -> Frame | None:
        """The frame of a file; None while it cannot be read and may yet be."""
        path = self._folder / name
        pixels_bgr, damage = self._load(path)
        if pixels_bgr is None and not last:
            return None
        if _version(path) != version:  # it was written to meanwhile: what was read may be half of each
            return None
        index = self._handled.begin(name, version)
        self._intake.done(name)
        width, height = self.size_wh_px
        return Frame(
            index=index,
            pixels_bgr=np.zeros((height, width, 3), np.uint8) if pixels_bgr is None else pixels_bgr,
            captured_ns=time.monotonic_ns(),
            captured_utc_ns=min(max(0, version.mtime_ns), time.time_ns()),  # a file may bear any date
            time_kind=TimeKind.FILE,
            damage=damage,
        )

    def _load(self, path: Path) -> tuple[PixelsU8 | None, str | None]:
        most_w, most_h = self.size_wh_px
        size = header_size_wh_px(path)
        if size is None:  # nothing that may be of any size is decoded
            return None, f"{path.name}: {UNREADABLE}"
        if size[0] > most_w or size[1] > most_h:
            return None, f"{path.name}: {size[0]}x{size[1]} px, max_size_wh_px is [{most_w}, {most_h}]"
        return load_image(path)


def list_images(folder: Path) -> dict[str, Version]:
    """The images directly in a folder by name; hidden files and other kinds are left out.

    Raises:
        SourceLost: the folder is not there or cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _is_image(entry)]
    except OSError as error:
        raise SourceLost(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    versions = {name: _version(folder / name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
        return False
    with suppress(OSError):
        return entry.is_file()
    return False


def _version(path: Path) -> Version | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return Version(size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)
