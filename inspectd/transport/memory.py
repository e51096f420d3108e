"""Shared-memory segments: files in /dev/shm, preallocated in full, mapped by every process that knows the name.

Not `multiprocessing.shared_memory`: it only truncates (a full /dev/shm would be a SIGBUS at noon instead of an error at
start), and its resource tracker would unlink the ticket table when the supervisor is killed, which the next daemon must
still read.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import TransportError

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux


class Segment:
    """One mapped segment; `bytes` is all of it as `(size,) uint8`."""

    def __init__(self, name: str, file: int) -> None:
        self.name = name
        try:
            self._map = mmap.mmap(file, 0)
        finally:
            os.close(file)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    @classmethod
    def create(cls, name: str, size_bytes: int) -> Segment:
        """Makes a segment of zeros.

        Raises:
            TransportError: the name is taken, or /dev/shm has not that much room.
        """
        path = FOLDER / name
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror or error}") from error
        try:
            os.posix_fallocate(file, 0, size_bytes)
        except OSError as error:
            os.close(file)
            path.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise TransportError(f"{path}: {error.strerror or error}") from error
            free = shutil.disk_usage(FOLDER).free
            raise TransportError(
                f"{FOLDER}: {size_bytes / 1e6:.0f} MB of shared memory needed, {free / 1e6:.0f} MB free; "
                "make it larger, or lower cameras.NAME.slots"
            ) from error
        return cls(name, file)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Maps a segment that exists.

        Raises:
            TransportError: there is none of that name.
        """
        try:
            return cls(name, os.open(FOLDER / name, os.O_RDWR | os.O_CLOEXEC))
        except (OSError, ValueError) as error:
            raise TransportError(f"{FOLDER / name}: {error}") from error

    def close(self) -> None:
        """Forgets the mapping; the kernel lets go of it when the last view has gone."""
        self.bytes = np.empty(0, np.uint8)

    def unlink(self) -> None:
        """Takes the name away; processes that have it mapped keep it."""
        (FOLDER / self.name).unlink(missing_ok=True)


def names(prefix: str) -> list[str]:
    """The names of all segments that begin so, sorted."""
    return sorted(path.name for path in FOLDER.glob(f"{prefix}*"))


def sweep(prefix: str) -> list[str]:
    """Unlinks all segments that begin so, and tells which."""
    swept = names(prefix)
    for name in swept:
        (FOLDER / name).unlink(missing_ok=True)
    return swept
