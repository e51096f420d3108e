"""Evidence: pictures of what was judged, below a quota of disk space, written beside the publisher's loop.

A picture lies at `SESSION/CAMERA/SEQ.jpg` in the evidence folder, where the three numbers of any verdict lead to it. It
is there whole or not at all. The oldest go first when the quota is full, and when the disk is: the journal needs the
room more. Pictures vouch for nothing: whatever goes wrong here is counted, and never delays a verdict.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Full, Queue

from inspectd.log import get_logger

LEAST_FREE_SHARE = 0.05
LEAST_FREE_BYTES = 64 << 20
"""Room that is left to the journal: the smaller of the two."""
BLOCK_BYTES = 4096
WAITING = 16
"""Pictures that may wait to be written."""
LOOK_S = 1.0
UNFINISHED = ".part"


class EvidenceStore:
    """The pictures on the disk.

    Args:
        folder: theirs alone; what lies there already counts.

    Attributes:
        used_bytes: what they take, in whole blocks of the disk; never more than the quota.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self.used_bytes = 0
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def open(self) -> None:
        """Counts what lies there, oldest first, takes away what was cut short, and what is beyond the quota.

        Raises:
            OSError: the folder cannot be read or written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found = []
        for path in self._folder.glob("*/*/*"):
            status = path.stat()
            if path.suffix == UNFINISHED or not status.st_size:
                path.unlink()
            else:
                found.append((status.st_mtime_ns, path.relative_to(self._folder).as_posix(), status.st_size))
        for _, name, size_bytes in sorted(found):
            self._count(name, size_bytes)
        self._make_room(0)

    def put(self, name: str, picture: bytes) -> bool:
        """Writes a picture. False where it does not fit below the quota, or would take the journal's room.

        Raises:
            OSError: it could not be written.
        """
        self.give_way()
        if _blocks(len(picture)) > self._quota_bytes or self._is_short(len(picture)):
            return False
        path, part = self._folder / name, self._folder / (name + UNFINISHED)
        self._forget(name)
        self._make_room(_blocks(len(picture)))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(picture)
            part.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        self._count(name, len(picture))
        return True

    def give_way(self) -> None:
        """Takes away the oldest pictures while the disk is nearly full."""
        while self._sizes and self._is_short(0):
            self._remove_oldest()

    def has(self, name: str) -> bool:
        """Whether that picture is there; asks no disk."""
        return name in self._sizes

    def _is_short(self, more_bytes: int) -> bool:
        disk = shutil.disk_usage(self._folder)
        return disk.free - more_bytes < min(LEAST_FREE_BYTES, LEAST_FREE_SHARE * disk.total)

    def _make_room(self, more_bytes: int) -> None:
        while self._sizes and self.used_bytes + more_bytes > self._quota_bytes:
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        name = next(iter(self._sizes))
        path = self._folder / name
        path.unlink(missing_ok=True)
        self._forget(name)
        for parent in (path.parent, path.parent.parent):
            with contextlib.suppress(OSError):  # not empty
                parent.rmdir()

    def _count(self, name: str, size_bytes: int) -> None:
        self._sizes[name] = _blocks(size_bytes)
        self.used_bytes += _blocks(size_bytes)

    def _forget(self, name: str) -> None:
        self.used_bytes -= self._sizes.pop(name, 0)


class EvidenceWriter:
    """The thread that writes pictures for the publisher.

    Args:
        sick: whether the journal has trouble: then no picture is written.

    Attributes:
        written: pictures that were written.
        shed: pictures that were given up: the disk is slow, full or sick.
    """

    def __init__(self, folder: Path, quota_bytes: int, *, sick: Callable[[], bool]) -> None:
        self.written = self.shed = 0
        self._store = EvidenceStore(folder, quota_bytes)
        self._sick = sick
        self._waiting: Queue[tuple[str, bytes]] = Queue(WAITING)
        self._error: str | None = None
        if quota_bytes:
            threading.Thread(target=self._run, name="evidence", daemon=True).start()

    @property
    def used_bytes(self) -> int:
        """What the pictures take on the disk."""
        return self._store.used_bytes

    def offer(self, session: str, camera: str, seq: int, picture: bytes, *, shed_before: int = 0) -> None:
        """Takes a picture, or sheds it; never waits. `shed_before` were given up before they came here."""
        self.shed += shed_before
        suffix = "png" if picture.startswith(b"\x89PNG") else "jpg"
        if self._sick():
            self.shed += 1
            return
        try:
            self._waiting.put_nowait((f"{session}/{camera}/{seq}.{suffix}", picture))
        except Full:
            self.shed += 1

    def find(self, session: str, camera: str, seq: int) -> str | None:
        """Where the picture of a verdict lies in the evidence folder, None where there is none; asks no disk."""
        names = (f"{session}/{camera}/{seq}.{suffix}" for suffix in ("jpg", "png"))
        return next(filter(self._store.has, names), None)

    def _run(self) -> None:
        while not self._attempt(self._store.open):
            threading.Event().wait(LOOK_S)
        while True:
            try:
                name, picture = self._waiting.get(timeout=LOOK_S)
            except Empty:
                self._attempt(self._store.give_way)
            else:
                self._write(name, picture)

    def _write(self, name: str, picture: bytes) -> None:
        kept = False

        def put() -> None:
            nonlocal kept
            kept = self._store.put(name, picture)

        self._attempt(put)
        self.written += kept
        self.shed += not kept

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Does something with the disk; the first failure of a row is worth a line."""
        try:
            work()
        except OSError as error:
            if self._error is None:
                get_logger().warning("evidence_failed", error=str(error))
            self._error = str(error)
            return False
        self._error = None
        return True


def _blocks(size_bytes: int) -> int:
    """Bytes in whole blocks.

    >>> _blocks(1), _blocks(4096), _blocks(4097)
    (4096, 4096, 8192)
    """
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
