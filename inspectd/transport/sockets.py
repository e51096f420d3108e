"""The only place of ZeroMQ: who binds, who connects, how much may wait, and what happens when it is full.

Inside the daemon a send never blocks and delivery is never assumed: `Outbox.send` answers None where the peer's queue
is full, and the caller counts it. Each generation of a child has sockets of its own (`stage_endpoint`), so that nothing
a dead one left is read by the living.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket as unix
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import zmq

from inspectd.errors import EndpointHeld, TransportError
from inspectd.transport.wire import PREVIEW_ROOT, preview_topic

BIND_PATIENCE_S = 5.0
REBIND_S = 0.05
MAX_REQUEST_BYTES = 64 * 1024
MAX_SUBSCRIPTION_BYTES = 1024
"""More than any topic, or any step of a CURVE handshake; libzmq keeps a node of a tree for each byte."""
PUBLIC_HWM = 1000
CONTROL_HWM = 128
"""Replies that may wait for one client: a `history` has megabytes, and a client that never reads must not hold many."""
INTERNAL_HWM = 4096
MAX_PARTS = 4
"""A request has three parts at most; what a message has beyond these is thrown away as it comes."""
PARTS_A_TURN = 1000
MAX_WAKE_BYTES = 64
MAX_RESULT_BYTES = 256 << 20
"""A picture of the largest frame, uncompressed."""
LINGER_STOP_MS = 1000
LINGER_REOPEN_MS = 100
"""Enough for what peers that read still have to get."""
MAX_REFUSED = 100
"""So many refused subscriptions of one peer are a flood: libzmq remembers each as long as he stays, and takes seconds
to forget a hundred thousand. So he must go."""
SUBSCRIPTIONS_HWM = 10
"""libzmq takes all subscriptions that wait for it in one call: a few, so that no call takes long."""
_STAGE_SOCKET = re.compile(r"[a-z]+-\d+\.[a-z]+")


def stage_endpoint(sockets_dir: Path, stage: str, generation: int, what: str) -> str:
    """The ipc endpoint of one generation of a stage, such as `ipc:///run/inspectd/worker-3.wake`."""
    return f"ipc://{sockets_dir}/{stage}-{generation}.{what}"


def sweep_stage_endpoints(sockets_dir: Path) -> None:
    """Unlinks the sockets that dead stages left; whatever else lies in the folder, or lives, is not touched.

    Raises:
        OSError: a socket cannot be unlinked.
    """
    for path in sockets_dir.iterdir():
        if _STAGE_SOCKET.fullmatch(path.name) and path.is_socket() and not _listens(path):
            path.unlink()


class _Socket:
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


class Inbox(_Socket):
    """The receiving end (PULL, bound) of results or wake-ups inside the daemon."""

    def __init__(self, endpoint: str, *, max_bytes: int = MAX_WAKE_BYTES) -> None:
        socket = _context().socket(zmq.PULL)
        socket.set(zmq.RCVHWM, INTERNAL_HWM)
        socket.set(zmq.MAXMSGSIZE, max_bytes)
        _bind(socket, endpoint, patience_s=0.0)
        super().__init__(socket)


class Outbox(_Socket):
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


class _PublicSocket(_Socket):
    """One that strangers connect to. It can be opened anew, which ends every connection and what it holds."""

    def __init__(
        self, kind: int, endpoint: str, options: Mapping[int, int], on_wait: Callable[[], None] | None
    ) -> None:
        self._kind, self._endpoint, self._options, self._on_wait = kind, endpoint, options, on_wait
        super().__init__(self._opened())

    def reopen(self) -> None:
        """Drops all peers, with whatever they sent or did not read; those of good will come back by themselves.

        Raises:
            EndpointHeld: another program has taken the endpoint meanwhile.
        """
        self.close(LINGER_REOPEN_MS)
        self._parts = []
        self.socket = self._opened()

    def _opened(self) -> zmq.Socket[bytes]:
        socket = _context().socket(self._kind)
        _harden(socket)
        for option, value in self._options.items():
            socket.set(option, value)
        _bind(socket, self._endpoint, BIND_PATIENCE_S, self._on_wait)
        self._endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        return socket


class VerdictSocket(_PublicSocket):
    """The public XPUB: admits the empty subscription and prefixes of its topics, nothing else.

    Args:
        topics: every topic that a message can have; so the subscriptions of all peers are so many at most.

    Raises:
        EndpointHeld: the endpoint is held by another program after five seconds.
    """

    def __init__(self, endpoint: str, topics: Iterable[bytes], on_wait: Callable[[], None] | None = None) -> None:
        options: dict[int, int] = {
            zmq.XPUB_MANUAL: 1,
            zmq.MAXMSGSIZE: MAX_SUBSCRIPTION_BYTES,
            zmq.RCVHWM: SUBSCRIPTIONS_HWM,
        }
        super().__init__(zmq.XPUB, endpoint, options, on_wait)
        self._admitted = frozenset(topic[:end] for topic in topics for end in range(len(topic) + 1))
        self._previews: Counter[bytes] = Counter()
        self._refused: Counter[int] = Counter()
        self.flooded = False
        """Whether somebody subscribed to whatever came to his mind."""

    def reopen(self) -> None:
        """See `_PublicSocket.reopen`."""
        self._previews.clear()
        self._refused.clear()
        self.flooded = False
        super().reopen()

    def send(self, topic: bytes, body: bytes, mask: bytes | None = None) -> None:
        """Publishes one message. A subscriber whose queue is full loses it (PUB semantics): hence `seq`."""
        self._try_send([topic, body] if mask is None else [topic, body, mask])

    def serve_subscriptions(self) -> list[bytes]:
        """Answers waiting subscription requests; the admitted new ones."""
        admitted = []
        for parts in self._requests():
            request = parts[0]
            if request[:1] == b"\1" and request[1:] in self._admitted:
                self.socket.set(zmq.SUBSCRIBE, request[1:])
                self._count_viewer(request[1:], 1)
                admitted.append(request[1:])
            elif request[:1] == b"\0" and request[1:] in self._admitted:
                self.socket.set(zmq.UNSUBSCRIBE, request[1:])
                self._count_viewer(request[1:], -1)
            else:
                self._refuse(self._source)
        return admitted

    def _refuse(self, source: int) -> None:
        """A peer who goes on and on is disconnected; one of good will comes back by himself."""
        self._refused[source] += 1
        if self._refused[source] > MAX_REFUSED:
            self.flooded = True
            _hang_up(source, self._endpoint)
            self._refused.clear()  # descriptors are used again

    def _count_viewer(self, prefix: bytes, by: int) -> None:
        """Whoever takes back what he never asked for leaves no trace and takes nobody else's away for long."""
        if prefix.startswith(PREVIEW_ROOT):
            self._previews[prefix] = max(0, self._previews[prefix] + by)
            if not self._previews[prefix]:
                del self._previews[prefix]

    def wants_preview(self, camera: str) -> bool:
        """Whether somebody asked for this camera's pictures by name; who subscribes to everything has not."""
        topic = preview_topic(camera)
        return any(
            count > 0 and prefix.startswith(PREVIEW_ROOT) and topic.startswith(prefix)
            for prefix, count in self._previews.items()
        )


class ControlSocket(_PublicSocket):
    """The public ROUTER: requests of at most 64 KiB, from DEALER or REQ peers.

    Raises:
        EndpointHeld: the endpoint is held by another program after five seconds.
    """

    def __init__(self, endpoint: str, on_wait: Callable[[], None] | None = None) -> None:
        super().__init__(zmq.ROUTER, endpoint, {zmq.SNDHWM: CONTROL_HWM, zmq.ROUTER_MANDATORY: 1}, on_wait)

    def requests(self) -> Iterator[tuple[list[bytes], bytes]]:
        """Yields `(envelope, body)` of each waiting request; a frame too many makes the body empty (a bad request)."""
        for parts in self._requests():
            head, rest = parts[:1], parts[1:]
            if rest[:1] == [b""]:
                head, rest = [*head, b""], rest[1:]
            yield head, rest[0] if len(rest) == 1 else b""

    def reply(self, envelope: list[bytes], *parts: bytes) -> bool:
        """Answers one request; False where the peer has gone or does not read."""
        return self._try_send([*envelope, *parts])


class Commands(_Socket):
    """The publisher's end (ROUTER, bound) of the channel on which children take commands."""

    def __init__(self, endpoint: str) -> None:
        socket = _context().socket(zmq.ROUTER)
        socket.set(zmq.SNDHWM, INTERNAL_HWM)
        socket.set(zmq.RCVHWM, INTERNAL_HWM)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        socket.set(zmq.ROUTER_HANDOVER, 1)  # a new generation of a child takes its name over
        _bind(socket, endpoint, patience_s=0.0)
        super().__init__(socket)

    def send(self, child: str, body: bytes) -> bool:
        """Sends a command to a child; False where it is not connected or does not read."""
        return self._try_send([child.encode(), body])

    def throw_away(self) -> None:
        """Children do not answer: what waits here is a stranger's, and nobody else would ever take it away."""
        for _ in self._requests():
            pass


class CommandLine(_Socket):
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
        socket = _context().socket(zmq.DEALER)
        socket.set(zmq.IDENTITY, self._name.encode())
        socket.set(zmq.LINGER, 0)
        return socket


class Subscription(_Socket):
    """A subscriber of `verdicts`, for `watch` and `demo`.

    Args:
        endpoint: the publisher's.
        topics: prefixes of topics; `b""` for all.
    """

    def __init__(self, endpoint: str, topics: Sequence[bytes] = (b"",)) -> None:
        socket = _context().socket(zmq.SUB)
        socket.set(zmq.RCVHWM, 0)
        for topic in topics:
            socket.set(zmq.SUBSCRIBE, topic)
        _connect(socket, endpoint)
        super().__init__(socket)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next message, None where none comes in time."""
        return self.socket.recv_multipart() if self.socket.poll(int(timeout_s * 1000)) else None


class Requester(_Socket):
    """A client of `control`: one request at a time."""

    def __init__(self, endpoint: str) -> None:
        socket = _context().socket(zmq.DEALER)
        _connect(socket, endpoint)
        super().__init__(socket)

    def ask(self, body: bytes, timeout_s: float) -> list[bytes] | None:
        """Sends a request and waits for its reply, None where none comes in time."""
        self.socket.send(body)
        return self.socket.recv_multipart() if self.socket.poll(int(timeout_s * 1000)) else None


def wait(sockets: Sequence[_Socket], timeout_s: float) -> None:
    """Blocks until one of the sockets has something to read, or the time is over."""
    poller = zmq.Poller()
    for each in sockets:
        poller.register(each.socket, zmq.POLLIN)
    with contextlib.suppress(InterruptedError):
        poller.poll(max(0, round(timeout_s * 1000)))


def finish_sockets() -> None:
    """Waits until every closed socket has sent what its linger allows; the process uses no socket after this."""
    _context().term()


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    return zmq.Context.instance()


def _push() -> zmq.Socket[bytes]:
    socket = _context().socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, INTERNAL_HWM)
    socket.set(zmq.LINGER, 0)
    return socket


def _harden(socket: zmq.Socket[Any]) -> None:
    """Limits that keep a bad or dead peer from costing more than itself (contract §2).

    A peer's ZMTP heartbeats are answered; none are sent, for libzmq aborts the whole process when one falls due on a
    connection that has gone with its queue full (its issue 4364). The kernel finds the dead peers.
    """
    socket.set(zmq.SNDHWM, PUBLIC_HWM)
    socket.set(zmq.RCVHWM, PUBLIC_HWM)
    socket.set(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 2)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 2)
    socket.set(zmq.TCP_MAXRT, 6000)
    socket.set(zmq.HANDSHAKE_IVL, 3000)
    socket.set(zmq.LINGER, 0)


def _bind(socket: zmq.Socket[Any], endpoint: str, patience_s: float, on_wait: Callable[[], None] | None = None) -> None:
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            _bind_once(socket, endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                socket.close()
                raise TransportError(f"{endpoint}: cannot be bound: {error.strerror}") from error
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
    """Binds, but never over a living program: libzmq would unlink its ipc socket and silently take the name."""
    if endpoint.startswith("ipc:///") and _listens(Path(endpoint.removeprefix("ipc://"))):
        raise zmq.ZMQError(zmq.EADDRINUSE)
    socket.bind(endpoint)


def _source_of(frame: zmq.Frame) -> int:
    """The descriptor of the connection that a frame came by; -1 where libzmq does not say."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:  # what libzmq makes up when a peer goes came from nowhere
        return -1


def _hang_up(descriptor: int, endpoint: str) -> None:
    """Ends a connection of an endpoint, which libzmq then notices; not one that the descriptor means by now."""
    with contextlib.suppress(OSError), unix.socket(fileno=os.dup(descriptor)) as peer:
        name = peer.getsockname()
        if endpoint in (f"ipc://{name}", f"tcp://{name[0]}:{name[1]}"):
            peer.shutdown(unix.SHUT_RDWR)


def _listens(path: Path) -> bool:
    """Whether a living program has bound the unix socket."""
    with unix.socket(unix.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _connect(socket: zmq.Socket[Any], endpoint: str) -> None:
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.HEARTBEAT_IVL, 2000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 6000)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise TransportError(f"{endpoint}: not an endpoint: {error.strerror}") from error
