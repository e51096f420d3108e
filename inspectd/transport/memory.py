"""Shared-memory segments: files in /dev/shm, preallocated in full, mapped by every process that knows the name.

Not `multiprocessing.shared_memory`: it only truncates (a full /dev/shm would be a SIGBUS at noon instead of an error at
start), and its resource tracker would unlink the ticket table when the supervisor is killed, which the next daemon must
still read.

Everything that processes tell each other here is an aligned 8-byte word, written and read by one machine instruction
(CPython copies a `memoryview` item of a known size, which compilers turn into one move), so that none is ever seen
half. What must be seen in order is kept in order by the machine on x86, whose stores become visible in program order
and whose loads are made in it. Weaker machines need `fence` at the places where it stands.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ConfigError, TransportError

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
FAMILY = "inspectd-"
"""How every segment's name begins: nothing else in /dev/shm is ever touched."""
WORD_BYTES = 8
_NAME = re.compile(rf"{FAMILY}[A-Za-z0-9_.-]{{1,200}}")
_round_trip = threading.Lock()


def _fence() -> None:
    with _round_trip:
        pass
    with _round_trip:
        pass


def _no_fence() -> None:
    pass


fence: Callable[[], None] = _no_fence if platform.machine() in ("x86_64", "AMD64") else _fence
"""Stores before it are seen before stores after it; the same for loads.

On x86 there is nothing to do. Elsewhere a lock is released and taken again: on ARMv8 the release keeps what came before
it above, the following acquire what comes after it below, and an acquire never overtakes a release. Argued, not tried:
no such machine has run this yet.
"""


class Segment:
    """One mapped segment.

    Attributes:
        bytes: all of it, `(size,) uint8`.
        words: all of it as signed 8-byte words.
    """

    def __init__(self, name: str, file: int) -> None:
        self.name = name
        try:
            self._map = mmap.mmap(file, 0)
        finally:
            os.close(file)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        whole = len(self._map) // WORD_BYTES * WORD_BYTES
        self.words: memoryview[int] = memoryview(self._map)[:whole].cast("q")

    @classmethod
    def create(cls, name: str, size_bytes: int) -> Segment:
        """Makes a segment of zeros, rounded up to whole words.

        Raises:
            TransportError: the name is taken or no name for a segment, or /dev/shm has not that much room.
        """
        path = _path(name)
        size_bytes = -(-size_bytes // WORD_BYTES) * WORD_BYTES
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror or error}") from error
        try:
            os.posix_fallocate(file, 0, size_bytes)
        except OSError as error:
            os.close(file)
            path.unlink(missing_ok=True)
            raise TransportError(_no_room(path, size_bytes, error)) from error
        return cls(name, file)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Maps a segment that exists.

        Raises:
            TransportError: there is none of that name, or it is empty.
        """
        path = _path(name)
        try:
            return cls(name, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:  # mmap's word for a file of no bytes: its maker was killed before it had any
            raise TransportError(f"{path}: {error}") from error

    def close(self) -> None:
        """Forgets the mapping; the kernel lets go of it when the last view has gone."""
        self.bytes = np.empty(0, np.uint8)
        self.words = memoryview(b"").cast("q")
        with contextlib.suppress(BufferError):  # a view is in use: its end will unmap
            self._map.close()

    def unlink(self) -> None:
        """Takes the name away; processes that have it mapped keep it."""
        _path(self.name).unlink(missing_ok=True)


def names(prefix: str) -> list[str]:
    """The names of all segments that begin so, sorted.

    Raises:
        ValueError: the prefix could mean files that are not inspectd's.
        TransportError: there is no /dev/shm.
    """
    if not prefix.startswith(FAMILY):
        raise ValueError(f"prefix {prefix!r} must begin with {FAMILY!r}")
    try:
        return sorted(path.name for path in FOLDER.iterdir() if path.name.startswith(prefix))
    except OSError as error:
        raise TransportError(f"{FOLDER}: {error.strerror or error}") from error


def sweep(prefix: str) -> list[str]:
    """Unlinks all segments that begin so, and tells which. Raises as `names` does."""
    swept = names(prefix)
    for name in swept:
        (FOLDER / name).unlink(missing_ok=True)
    return swept


def held_bytes(prefix: str) -> int:
    """How much of /dev/shm all segments that begin so take.

    Raises:
        TransportError: there is no /dev/shm.
    """
    held = 0
    for name in names(prefix):
        with contextlib.suppress(FileNotFoundError):  # swept just now
            held += (FOLDER / name).stat().st_blocks * 512
    return held


def require_capacity(frames_bytes: int, spill_bytes: int) -> None:
    """Refuses what /dev/shm could not hold were it empty; one that is only full now may have room later.

    Raises:
        ConfigError: it is too small.
    """
    total_bytes = shutil.disk_usage(FOLDER).total
    if 0 < total_bytes < frames_bytes + spill_bytes:  # 0: no limit
        raise ConfigError(
            f"{FOLDER}: holds {total_bytes / 1e6:.1f} MB in all, cameras.*.slots need {frames_bytes / 1e6:.1f} MB and "
            f"journal.spill_mb {spill_bytes / 1e6:.1f} MB; make it larger (containers: --shm-size), or lower these"
        )


def _path(name: str) -> Path:
    if _NAME.fullmatch(name) is None:
        raise TransportError(f"segment name {name!r}: expected {FAMILY}… of letters, digits, dots, dashes, underscores")
    return FOLDER / name


def _no_room(path: Path, size_bytes: int, error: OSError) -> str:
    if error.errno != errno.ENOSPC:
        return f"{path}: {error.strerror or error}"
    free_bytes = shutil.disk_usage(FOLDER).free
    return (
        f"{FOLDER}: {path.name} needs {size_bytes} bytes ({size_bytes / 1e6:.1f} MB) of shared memory, {free_bytes} "
        f"bytes ({free_bytes / 1e6:.1f} MB) are free; make it larger, or lower cameras.NAME.slots or journal.spill_mb"
    )
