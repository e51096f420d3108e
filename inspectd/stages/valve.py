"""The last resort against peers that make the publisher's memory grow.

ZeroMQ bounds the messages that wait and the size of a frame, but neither the frames of a message that never ends nor
what many clients do not read. When the process has grown by more than anything sound explains, the public sockets are
opened anew, which gives all of it back: peers of good will reconnect by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
from enum import Enum, auto

ROOM_BYTES = 384 << 20
"""Far above what the journal's buffer, pictures and full queues of subscribers take together."""
LOOK_NS = 100_000_000
PAUSE_NS = 500_000_000
"""What was given back needs so long to be seen."""


class Relief(Enum):
    """Which socket is to be opened anew."""

    CONTROL = auto()
    VERDICTS = auto()


class Valve:
    """Decides. Pure: memory and time come in.

    Args:
        resident_bytes: the process when all its peers are still to come.
    """

    def __init__(self, resident_bytes: int) -> None:
        self._limit_bytes = resident_bytes + ROOM_BYTES
        self._due_ns = 0
        self._opened: Relief | None = None

    def is_due(self, now_ns: int) -> bool:
        """Whether memory is to be looked at."""
        return now_ns >= self._due_ns

    def look(self, resident_bytes: int, now_ns: int, *, flooded: bool = False) -> Relief | None:
        """What must be given up now. Where nothing helped, the memory is held by something else, and is put up with.

        Args:
            flooded: it is known to be the subscribers: then control is left alone.
        """
        self._due_ns = now_ns + LOOK_NS
        if resident_bytes < self._limit_bytes:
            self._opened = None
            return None
        match self._opened:
            case None if not flooded:
                self._opened = Relief.CONTROL
            case None | Relief.CONTROL:
                self._opened = Relief.VERDICTS
            case Relief.VERDICTS:
                self._opened, self._limit_bytes = None, resident_bytes + ROOM_BYTES
                return None
        self._due_ns = now_ns + PAUSE_NS
        return self._opened


def give_back() -> None:
    """Returns freed memory to the system."""
    with contextlib.suppress(AttributeError):  # only glibc holds it back
        ctypes.CDLL(None).malloc_trim(0)
