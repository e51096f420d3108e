"""Standard error that nobody dies of: on a full disk, or with a reader that has gone or stands still, lines are lost
and told later."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE_S = 0.2
"""A reader that stands still is waited for so long, once."""


class LossyFile(io.RawIOBase):
    """Writes to a descriptor; what it does not take is counted, and the count is told with the next that it does."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lost = 0
        self._reason = ""

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person looks on."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """As a text file on top wants to know."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes it all, or as much as can be; never raises."""
        told = f"inspectd: {self._lost} lines of the log could not be written: {self._reason}\n" if self._lost else ""
        rest = memoryview(told.encode() + bytes(data))
        try:
            while rest:
                self._await_room()
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        except OSError as error:
            self._lost, self._reason = self._lost + 1, error.strerror or str(error)
        else:
            self._lost = 0
        return memoryview(data).nbytes

    def _await_room(self) -> None:
        """A pipe that can be written to has room for PIPE_BUF bytes at least.

        Raises:
            BlockingIOError: it has not.
        """
        poll = select.poll()  # one of its own for each thread: it may not be shared
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(0 if self._lost else PATIENCE_S * 1000):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def guard_stderr() -> None:
    """Makes the process's own standard error one whose writes never raise; one that somebody put there is left alone.

    Python's own keeps what it could not write and fails again with it, when the process ends too (exit 120).
    """
    own = sys.__stderr__
    if own is None:  # closed by whoever started us
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    elif sys.stderr is own:
        # a raw file will do for a buffered one, since it takes all that it is given
        sys.stderr = io.TextIOWrapper(LossyFile(own.fileno()), own.encoding, "backslashreplace", line_buffering=True)
