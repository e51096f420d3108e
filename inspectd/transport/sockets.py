"""What all sockets of the daemon share: how they are bound, waited for, and read where a stranger may have written.

ZeroMQ is used here and in three neighbours alone: `pipes` lie between the daemon's processes, `endpoints` are what the
outside connects to, `clients` are the other side of these. Each says how much may wait, and what happens when it is
full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as unix
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import zmq

from inspectd.errors import ConfigError, EndpointHeld, InspectdError, TransportError

REBIND_S = 0.05
MAX_REQUEST_BYTES = 64 * 1024
MAX_PARTS = 4
"""A request has three parts at most; what a message has beyond these is thrown away as it comes."""
PARTS_A_TURN = 1000
SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket."""
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT)
"""Why a right endpoint may not be bound just now."""


class Socket:
    """What all sockets share: an owner, an end and a place in `wait`."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self._parts: list[bytes] = []
        self._source = -1
        """The descriptor of the connection that the last part came by."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, linger_ms: int = 0) -> None:
        """Closes the socket; what is unsent is given up after `linger_ms`."""
        self.socket.close(linger=linger_ms)

    def drain(self, limit: int = 1000) -> Iterator[list[bytes]]:
        """Yields the messages that wait, at most `limit`, without blocking."""
        for _ in range(limit):
            try:
                yield self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _requests(self) -> Iterator[list[bytes]]:
        """Yields what a stranger sent, message by message, reading a bounded number of parts a turn.

        A message may have any number of them: it is never held as a whole.
        """
        for _ in range(PARTS_A_TURN):
            try:
                frame = self.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._source = _source_of(frame)
            if len(self._parts) <= MAX_PARTS:
                self._parts.append(frame.bytes)
            if not frame.more:
                parts, self._parts = self._parts, []
                yield parts

    def _try_send(self, parts: Sequence[bytes]) -> bool:
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:  # a ROUTER's peer has gone
                return False
            raise
        return True


class Bell:
    """Wakes a loop that waits from another thread of its process."""

    def __init__(self) -> None:
        self.socket = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self.socket)  # with the last thread that may ring it

    def ring(self) -> None:
        """May be called by any thread, at any time."""
        with contextlib.suppress(BlockingIOError):  # it rings already
            os.eventfd_write(self.socket, 1)

    def hush(self) -> None:
        """It has been heard."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.socket)


def wait(sockets: Sequence[Socket | Bell], timeout_s: float) -> None:
    """Blocks until one of the sockets has something to read, or the time is over."""
    poller = zmq.Poller()
    for each in sockets:
        poller.register(each.socket, zmq.POLLIN)
    with contextlib.suppress(InterruptedError):
        poller.poll(max(0, round(timeout_s * 1000)))


def finish_sockets() -> None:
    """Waits until every closed socket has sent what its linger allows; the process uses no socket after this."""
    context().term()


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's own: `finish_sockets` ends it."""
    return zmq.Context.instance()


def use_ipv6(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Lets a socket have an IPv6 address, written in brackets; all others are left as libzmq has them, IPv4."""
    socket.set(zmq.IPV6, endpoint.startswith("tcp://["))


def bind(
    socket: zmq.Socket[Any],
    endpoint: str,
    patience_s: float,
    on_wait: Callable[[], None] | None = None,
    key: str | None = None,
) -> None:
    """Binds a socket, or closes it where that cannot be; `on_wait` is called between two tries.

    Args:
        key: the setting that the endpoint was chosen by.

    Raises:
        EndpointHeld: another program holds the endpoint, and held it for all of `patience_s`.
        ConfigError: it can never be bound, and has a key.
        TransportError: it cannot be bound.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            _bind_once(socket, endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                socket.close()
                raise _unbindable(endpoint, error.errno or 0, key) from error
            if time.monotonic() >= deadline_s:
                socket.close()
                raise EndpointHeld(
                    f"{endpoint}: held by another program (tried {patience_s:g} s); stop it or choose another"
                ) from error
        else:
            return
        if on_wait is not None:
            on_wait()
        time.sleep(REBIND_S)


def _bind_once(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Binds, but never over a living program or what is no socket: libzmq would unlink it and take its name."""
    if endpoint.startswith("ipc:///"):
        path = Path(endpoint.removeprefix("ipc://"))
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise zmq.ZMQError(errno.ENAMETOOLONG)
        if os.path.lexists(path) and not path.is_socket():
            raise zmq.ZMQError(errno.EEXIST)
        if listens(path):
            raise zmq.ZMQError(zmq.EADDRINUSE)
    socket.bind(endpoint)


def _unbindable(endpoint: str, code: int, key: str | None) -> InspectdError:
    reason = f"{endpoint}: cannot be bound: {zmq.strerror(code)}"
    return TransportError(reason) if key is None or code in _SHORTAGES else ConfigError(f"{key}: {reason}")


def listens(path: Path) -> bool:
    """Whether a living program has bound the unix socket."""
    with unix.socket(unix.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _source_of(frame: zmq.Frame) -> int:
    """The descriptor of the connection that a frame came by; -1 where libzmq does not say."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:  # what libzmq makes up when a peer goes came from nowhere
        return -1
