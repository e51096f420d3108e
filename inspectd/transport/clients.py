"""The other side of the public endpoints: who subscribes to verdicts, and who asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from inspectd.errors import TransportError
from inspectd.transport.sockets import Socket, context, use_ipv6


class Subscription(Socket):
    """A subscriber of `verdicts`, for `watch` and `demo`.

    Args:
        endpoint: the publisher's.
        topics: prefixes of topics; `b""` for all.
    """

    def __init__(self, endpoint: str, topics: Sequence[bytes] = (b"",)) -> None:
        socket = context().socket(zmq.SUB)
        socket.set(zmq.RCVHWM, 0)
        for topic in topics:
            socket.set(zmq.SUBSCRIBE, topic)
        _connect(socket, endpoint)
        super().__init__(socket)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next message, None where none comes in time."""
        return self.socket.recv_multipart() if self.socket.poll(int(timeout_s * 1000)) else None


class Requester(Socket):
    """A client of `control`: one request at a time."""

    def __init__(self, endpoint: str) -> None:
        socket = context().socket(zmq.DEALER)
        _connect(socket, endpoint)
        super().__init__(socket)

    def ask(self, body: bytes, timeout_s: float) -> list[bytes] | None:
        """Sends a request and waits for its reply, None where none comes in time."""
        self.socket.send(body)
        return self.socket.recv_multipart() if self.socket.poll(int(timeout_s * 1000)) else None


def _connect(socket: zmq.Socket[Any], endpoint: str) -> None:
    socket.set(zmq.LINGER, 0)
    use_ipv6(socket, endpoint)
    socket.set(zmq.HEARTBEAT_IVL, 2000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 6000)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise TransportError(f"{endpoint}: not an endpoint: {error.strerror}") from error
