"""The two sockets that the outside connects to (contract §2): no stranger may cost the daemon more than himself.

`VerdictSocket` admits subscriptions to topics that there are, `ControlSocket` takes requests of a bounded size. Whoever
does not read loses his own messages; whoever floods is cut off.
"""

from __future__ import annotations

import contextlib
import os
import socket as unix
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import zmq

from inspectd.transport.sockets import MAX_REQUEST_BYTES, Socket, bind, context, use_ipv6
from inspectd.transport.wire import PREVIEW_ROOT, preview_topic

BIND_PATIENCE_S = 5.0
MAX_SUBSCRIPTION_BYTES = 1024
"""More than any topic, or any step of a CURVE handshake; libzmq keeps a node of a tree for each byte."""
PUBLIC_HWM = 1000
CONTROL_HWM = 128
"""Replies that may wait for one client: a `history` has megabytes, and a client that never reads must not hold many."""
LINGER_STOP_MS = 1000
LINGER_REOPEN_MS = 100
"""Enough for what peers that read still have to get."""
MAX_REFUSED = 100
"""So many refused subscriptions of one peer are a flood: libzmq remembers each as long as he stays, and takes seconds
to forget a hundred thousand. So he must go."""
SUBSCRIPTIONS_HWM = 10
"""libzmq takes all subscriptions that wait for it in one call: a few, so that no call takes long."""


class _PublicSocket(Socket):
    """One that strangers connect to. It can be opened anew, which ends every connection and what it holds.

    Attributes:
        key: the setting that says where.
    """

    key: ClassVar[str]

    def __init__(
        self, kind: int, endpoint: str, options: Mapping[int, int], on_wait: Callable[[], None] | None
    ) -> None:
        self._kind, self._endpoint, self._options, self._on_wait = kind, endpoint, options, on_wait
        super().__init__(self._opened())

    def reopen(self) -> None:
        """Drops all peers, with whatever they sent or did not read; those of good will come back by themselves.

        Raises:
            EndpointHeld: another program has taken the endpoint meanwhile.
            ConfigError: it can never be bound any more.
        """
        self.close(LINGER_REOPEN_MS)
        self._parts = []
        self.socket = self._opened()

    def _opened(self) -> zmq.Socket[bytes]:
        socket = context().socket(self._kind)
        _harden(socket)
        use_ipv6(socket, self._endpoint)
        for option, value in self._options.items():
            socket.set(option, value)
        bind(socket, self._endpoint, BIND_PATIENCE_S, self._on_wait, self.key)
        self._endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        return socket


class VerdictSocket(_PublicSocket):
    """The public XPUB: admits the empty subscription and prefixes of its topics, nothing else.

    Args:
        topics: every topic that a message can have; so the subscriptions of all peers are so many at most.

    Raises:
        EndpointHeld: the endpoint is held by another program after five seconds.
        ConfigError: it can never be bound.
    """

    key = "endpoints.verdicts"

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
        if prefix and (prefix.startswith(PREVIEW_ROOT) or PREVIEW_ROOT.startswith(prefix)):
            self._previews[prefix] = max(0, self._previews[prefix] + by)
            if not self._previews[prefix]:
                del self._previews[prefix]

    def wants_preview(self, camera: str) -> bool:
        """Whether somebody asked for this camera's pictures by name; who subscribes to everything has not."""
        topic = preview_topic(camera)
        return any(topic.startswith(prefix) for prefix in self._previews)


class ControlSocket(_PublicSocket):
    """The public ROUTER: requests of at most 64 KiB, from DEALER or REQ peers.

    Raises:
        EndpointHeld: the endpoint is held by another program after five seconds.
        ConfigError: it can never be bound.
    """

    key = "endpoints.control"

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


def _hang_up(descriptor: int, endpoint: str) -> None:
    """Ends a connection of an endpoint, which libzmq then notices; not one that the descriptor means by now."""
    with contextlib.suppress(OSError), unix.socket(fileno=os.dup(descriptor)) as peer:
        name = peer.getsockname()
        if endpoint in (f"ipc://{name}", f"tcp://{name[0]}:{name[1]}", f"tcp://[{name[0]}]:{name[1]}"):
            peer.shutdown(unix.SHUT_RDWR)
