"""Sockets between the daemon's own processes, over ipc: results and wake-ups one way, commands the other.

A send never blocks and delivery is never assumed: `Outbox.send` answers None where the peer's queue is full, and the
caller counts it. Each generation of a child has sockets of its own (`stage_endpoint`), so that nothing a dead one left
is read by the living.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zmq

from inspectd.errors import ConfigError
from inspectd.transport.sockets import MAX_REQUEST_BYTES, SOCKET_PATH_BYTES, Socket, bind, context, listens

INTERNAL_HWM = 4096
MAX_WAKE_BYTES = 64
MAX_RESULT_BYTES = 256 << 20
"""A picture of the largest frame, uncompressed."""
_STAGE_SOCKET = re.compile(r"[a-z]+-\d+\.[a-z]+")


def stage_endpoint(sockets_dir: Path, stage: str, generation: int, what: str) -> str:
    """The ipc endpoint of one generation of a stage, such as `ipc:///run/inspectd/worker-3.wake`."""
    return f"ipc://{sockets_dir}/{stage}-{generation}.{what}"


def require_short_paths(sockets_dir: Path) -> None:
    """Sees to it that the endpoint of every stage fits into the address of a socket.

    Raises:
        ConfigError: `runtime_dir` is too long.
    """
    length = len(os.fsencode(stage_endpoint(sockets_dir, "publisher", 99999, "commands").removeprefix("ipc://")))
    if length > SOCKET_PATH_BYTES:
        raise ConfigError(
            f"runtime_dir {sockets_dir}: socket paths would have {length} bytes, at most {SOCKET_PATH_BYTES} are "
            f"allowed; choose a shorter runtime_dir"
        )


def sweep_stage_endpoints(sockets_dir: Path) -> None:
    """Unlinks the sockets that dead stages left; whatever else lies in the folder, or lives, is not touched.

    Raises:
        OSError: a socket cannot be unlinked.
    """
    for path in sockets_dir.iterdir():
        if _STAGE_SOCKET.fullmatch(path.name) and path.is_socket() and not listens(path):
            path.unlink()


class Inbox(Socket):
    """The receiving end (PULL, bound) of results or wake-ups inside the daemon."""

    def __init__(self, endpoint: str, *, max_bytes: int = MAX_WAKE_BYTES) -> None:
        socket = context().socket(zmq.PULL)
        socket.set(zmq.RCVHWM, INTERNAL_HWM)
        socket.set(zmq.MAXMSGSIZE, max_bytes)
        bind(socket, endpoint, patience_s=0.0)
        super().__init__(socket)


class Outbox(Socket):
    """The sending end (PUSH, connected) towards whichever generation of a stage lives now.

    Args:
        endpoint_of: the endpoint of a generation.
        generation: reads the living generation, from the ticket table.
    """

    def __init__(self, endpoint_of: Callable[[int], str], generation: Callable[[], int]) -> None:
        self._endpoint_of = endpoint_of
        self._generation = generation
        self._connected = -1
        super().__init__(_push())

    def send(self, parts: Sequence[bytes]) -> int | None:
        """Sends without blocking. The generation it went to, or None where its queue is full."""
        generation = self._generation()
        if generation != self._connected:
            self.close()
            self.socket = _push()
            self.socket.connect(self._endpoint_of(generation))
            self._connected = generation
        return generation if self._try_send(parts) else None


class Commands(Socket):
    """The publisher's end (ROUTER, bound) of the channel on which children take commands."""

    def __init__(self, endpoint: str) -> None:
        socket = context().socket(zmq.ROUTER)
        socket.set(zmq.SNDHWM, INTERNAL_HWM)
        socket.set(zmq.RCVHWM, INTERNAL_HWM)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        socket.set(zmq.ROUTER_HANDOVER, 1)  # a new generation of a child takes its name over
        bind(socket, endpoint, patience_s=0.0)
        super().__init__(socket)

    def send(self, child: str, body: bytes) -> bool:
        """Sends a command to a child; False where it is not connected or does not read."""
        return self._try_send([child.encode(), body])

    def throw_away(self) -> None:
        """Children do not answer: what waits here is a stranger's, and nobody else would ever take it away."""
        for _ in self._requests():
            pass


class CommandLine(Socket):
    """A child's end (DEALER, connected) of the command channel, towards whichever publisher lives now."""

    def __init__(self, name: str, endpoint_of: Callable[[int], str], generation: Callable[[], int]) -> None:
        self._name = name
        self._endpoint_of = endpoint_of
        self._generation = generation
        self._connected = -1
        super().__init__(self._dealer())
        self.follow()

    def follow(self) -> None:
        """Connects to the living publisher, once for each generation."""
        generation = self._generation()
        if generation in (self._connected, 0):
            return
        self.close()
        self.socket = self._dealer()
        self.socket.connect(self._endpoint_of(generation))
        self._connected = generation

    def commands(self) -> Iterator[bytes]:
        """Yields the commands that wait."""
        self.follow()
        for parts in self.drain():
            yield parts[-1]

    def _dealer(self) -> zmq.Socket[bytes]:
        socket = context().socket(zmq.DEALER)
        socket.set(zmq.IDENTITY, self._name.encode())
        socket.set(zmq.LINGER, 0)
        return socket


def _push() -> zmq.Socket[bytes]:
    socket = context().socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, INTERNAL_HWM)
    socket.set(zmq.LINGER, 0)
    return socket
