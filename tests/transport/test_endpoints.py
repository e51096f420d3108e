"""The public sockets, real: hostile peers cost the others nothing, and a held endpoint is named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from victims import started, subscribe_to_everything

from inspectd.errors import ConfigError, EndpointHeld
from inspectd.stages.figures import resident_bytes
from inspectd.transport import endpoints
from inspectd.transport.clients import Requester, Subscription
from inspectd.transport.endpoints import ControlSocket, VerdictSocket
from inspectd.transport.sockets import MAX_PARTS, MAX_REQUEST_BYTES, wait
from inspectd.transport.wire import topics

TOPICS = topics([f"cam{number}" for number in range(60)])


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def peer() -> Iterator[Callable[[int], zmq.Socket]]:
    """Makes sockets of a peer's own, and closes them in the end."""
    made: list[zmq.Socket] = []
    with zmq.Context() as context:

        def make(kind: int) -> zmq.Socket:
            made.append(context.socket(kind))
            return made[-1]

        yield make
        for each in made:
            each.close(linger=0)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def served(verdicts: VerdictSocket, count: int) -> list[bytes]:
    """The first subscriptions that are admitted."""
    admitted: list[bytes] = []
    deadline_s = time.monotonic() + 20
    while len(admitted) < count and time.monotonic() < deadline_s:
        wait([verdicts], 0.05)
        admitted += verdicts.serve_subscriptions()
    return admitted


def test_only_topics_of_the_contract_are_admitted(endpoint: str, peer: Callable[[int], zmq.Socket]) -> None:
    """A subscription to anything else is ignored: its owner hears nothing, the others hear all."""
    with VerdictSocket(endpoint, TOPICS) as verdicts, Subscription(endpoint, (b"heartbeat/",)) as good:
        bad = peer(zmq.SUB)
        bad.connect(endpoint)
        bad.subscribe(b"secrets/")
        assert served(verdicts, 1) == [b"heartbeat/"]
        verdicts.send(b"secrets/", b"{}")
        verdicts.send(b"heartbeat/", b"{}")
        assert good.receive(20) == [b"heartbeat/", b"{}"]
        assert not bad.poll(200)


@pytest.mark.parametrize(
    ("prefix", "wanted"), [(b"preview/cam1/", [True, False]), (b"preview/", [True, True]), (b"preview", [True, True])]
)
def test_previews_are_wanted_only_by_name(endpoint: str, prefix: bytes, wanted: list[bool]) -> None:
    """Who subscribes to everything has not asked for pictures; who has asked and left wants them no more."""
    with VerdictSocket(endpoint, TOPICS) as verdicts:
        with Subscription(endpoint), Subscription(endpoint, (prefix,)):
            served(verdicts, 2)
            assert [verdicts.wants_preview(camera) for camera in ("cam1", "cam2")] == wanted
        deadline_s = time.monotonic() + 20
        while verdicts.wants_preview("cam1"):
            assert time.monotonic() < deadline_s
            wait([verdicts], 0.05)
            verdicts.serve_subscriptions()


def test_subscriber_that_stops_reading_costs_nobody(endpoint: str, peer: Callable[[int], zmq.Socket]) -> None:
    """Publishing never blocks on a subscriber whose queue is full, and a reading one gets everything."""
    with VerdictSocket(endpoint, TOPICS) as verdicts, Subscription(endpoint) as reader:
        stuck = peer(zmq.SUB)
        stuck.set(zmq.RCVHWM, 1)
        stuck.connect(endpoint)
        stuck.subscribe(b"")
        served(verdicts, 2)
        for index in range(5000):
            verdicts.send(b"event/x/", str(index).encode() + b" " * 2000)
            message = reader.receive(20)
            assert message is not None
            assert message[1].split()[0] == str(index).encode()


def test_both_sides_speak_ipv6() -> None:
    """On the loopback address that only IPv6 has; a flood is cut off there too."""
    with socket.socket(socket.AF_INET6) as free:
        try:
            free.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        where = f"tcp://[::1]:{free.getsockname()[1]}"
    with ControlSocket(where) as control, Requester(where) as client:
        client.socket.send(b"{}")
        wait([control], 10)
        ((envelope, body),) = soon(control)
        control.reply(envelope, body)
        assert client.socket.poll(10_000)
    with VerdictSocket(where, [b"heartbeat/"]) as verdicts, Subscription(where, [b"none %d" % n for n in range(200)]):
        until_s = time.monotonic() + 10
        while not verdicts.flooded and time.monotonic() < until_s:
            wait([verdicts], 0.1)
            verdicts.serve_subscriptions()
        assert verdicts.flooded


def test_endpoint_held_by_another_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds of trying the error names the endpoint."""
    monkeypatch.setattr(endpoints, "BIND_PATIENCE_S", 0.2)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        endpoint = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(EndpointHeld, match=endpoint):
            VerdictSocket(endpoint, TOPICS)


def test_endpoint_that_cannot_be_is_named(tmp_path: Path) -> None:
    """A socket in a folder that is not there is one line that names it, and the key that says so."""
    with pytest.raises(ConfigError, match=r"endpoints.control: ipc:.*/nowhere/s: cannot be bound"):
        ControlSocket(f"ipc://{tmp_path}/nowhere/s")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_socket_is_not_replaced_by_one(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A file or folder in the endpoint's place is named, and stays."""
    make(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"endpoints.control: ipc:.*/mine: cannot be bound: File exists"):
        ControlSocket(f"ipc://{tmp_path}/mine")
    assert (tmp_path / "mine").exists()


def test_hostile_bytes_leave_the_control_socket_serving(peer: Callable[[int], zmq.Socket]) -> None:
    """Garbage, half a handshake and huge messages are dropped; a sound request is answered, no descriptor stays."""
    with ControlSocket("tcp://127.0.0.1:*") as control:
        address = control.socket.get_string(zmq.LAST_ENDPOINT)
        host, port = address.removeprefix("tcp://").split(":")
        before = descriptors()
        for index in range(200):
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(os.urandom(index) if index % 2 else b"\xff" + bytes(8) + b"\x7f\x03")
        big = peer(zmq.DEALER)
        big.connect(address)
        big.send(bytes(MAX_REQUEST_BYTES + 1))
        sound = peer(zmq.DEALER)
        sound.connect(address)
        sound.send(b"{}")
        deadline_s = time.monotonic() + 20
        got: list[bytes] = []
        while b"{}" not in got and time.monotonic() < deadline_s:
            wait([control], 0.05)
            for envelope, body in control.requests():
                got.append(body)
                control.reply(envelope, b"answer")
        assert b"{}" in got  # garbage may read as a message of an old ZMTP: then it is a bad request
        assert sound.recv() == b"answer"
        while descriptors() > before + 20:
            assert time.monotonic() < deadline_s
            wait([control], 0.05)


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_a_socket_that_is_opened_anew_is_found_again(
    kind: str, endpoint: str, peer: Callable[[int], zmq.Socket]
) -> None:
    """Clients and subscribers of the one before are served by the new one, without doing anything."""
    with ControlSocket(endpoint if kind == "ipc" else "tcp://127.0.0.1:*") as control:
        address = control.socket.get_string(zmq.LAST_ENDPOINT)
        client = peer(zmq.DEALER)
        client.connect(address)
        for number in range(5):
            deadline_s = time.monotonic() + 20
            while b"%d" % number not in (heard := [body for _, body in soon(control, 0.2)]):
                assert time.monotonic() < deadline_s
                assert set(heard) <= {b"%d" % (number - 1)}
                client.send(b"%d" % number)  # again: one that goes out while the old connection dies is lost with it
            control.reopen()
    with VerdictSocket(endpoint + "v", TOPICS) as verdicts, Subscription(endpoint + "v", (b"preview/cam1/",)) as viewer:
        for _ in range(3):
            deadline_s = time.monotonic() + 20
            while not verdicts.wants_preview("cam1"):
                assert time.monotonic() < deadline_s
                viewer.receive(0.02)  # only a subscriber that looks subscribes again
                verdicts.serve_subscriptions()
            verdicts.send(b"preview/cam1/", b"{}")
            assert viewer.receive(20) == [b"preview/cam1/", b"{}"]
            verdicts.reopen()
            assert not verdicts.wants_preview("cam1")


def soon(control: ControlSocket, within_s: float = 20) -> list[tuple[list[bytes], bytes]]:
    """The next requests."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        wait([control], 0.05)
        if found := list(control.requests()):
            return found
    return []


def test_a_message_of_many_parts_is_read_in_turns(peer: Callable[[int], zmq.Socket]) -> None:
    """However many there are, a turn reads a bounded number, keeps few, and the request is a bad one."""
    with ControlSocket("tcp://127.0.0.1:*") as control:
        client = peer(zmq.DEALER)
        client.connect(control.socket.get_string(zmq.LAST_ENDPOINT))
        client.send_multipart([b"x"] * 50_000)
        turns, got = 0, []
        deadline_s = time.monotonic() + 20
        while not got and time.monotonic() < deadline_s:
            wait([control], 0.05)
            got = list(control.requests())
            turns += 1
            assert len(control._parts) <= MAX_PARTS + 1
        assert [body for _, body in got] == [b""]
        assert turns >= 50


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_a_flood_of_subscriptions_delays_nobody(tmp_path: Path, peer: Callable[[int], zmq.Socket], kind: str) -> None:
    """A hundred thousand different ones: no call takes long, the peer is cut off, memory stays, others hear all."""
    with VerdictSocket(f"ipc://{tmp_path}/v" if kind == "ipc" else "tcp://127.0.0.1:*", TOPICS) as verdicts:
        endpoint = verdicts.socket.get_string(zmq.LAST_ENDPOINT)
        polite = peer(zmq.SUB)
        polite.set(zmq.SUBSCRIBE, b"heartbeat/")
        polite.connect(endpoint)
        served(verdicts, 1)
        before_bytes, longest_s, sent = resident_bytes(), 0.0, 0
        flood = started(subscribe_to_everything, endpoint, 100_000)
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s or not verdicts.flooded:
            wait([verdicts], 0.01)
            begun_s = time.monotonic()
            verdicts.serve_subscriptions()
            verdicts.send(b"heartbeat/", b"%d" % sent)
            longest_s = max(longest_s, time.monotonic() - begun_s)
            sent += 1
            while polite.poll(0):
                polite.recv_multipart()
                sent -= 1
        flood.kill()
        flood.join()
        assert longest_s < 0.5
        assert resident_bytes() - before_bytes < 50e6
        while sent and polite.poll(1000):
            polite.recv_multipart()
            sent -= 1
        assert sent == 0


SLOW_SERVER = """
import sys, time
from inspectd.transport.endpoints import ControlSocket
with ControlSocket(sys.argv[1]) as control:
    print("bound", flush=True)
    until_s = time.monotonic() + 3.5
    while time.monotonic() < until_s:
        next(control.requests(), None)
        time.sleep(0.01)
"""


def test_a_peer_that_goes_with_its_queue_full_aborts_nobody(endpoint: str, peer: Callable[[int], zmq.Socket]) -> None:
    """Thousands of requests, and the client is gone: libzmq's own heartbeats would end the whole process."""
    server = subprocess.Popen([sys.executable, "-c", SLOW_SERVER, endpoint], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == b"bound\n"
    client = peer(zmq.DEALER)
    client.set(zmq.SNDHWM, 0)
    client.connect(endpoint)
    for _ in range(20_000):
        client.send(bytes(200))
    time.sleep(0.3)
    client.close(linger=0)
    assert server.wait(30) == 0


def test_viewers_that_come_and_go_leave_no_trace(endpoint: str, peer: Callable[[int], zmq.Socket]) -> None:
    """Subscriptions that were taken back do not grow the publisher, whatever their names."""
    with VerdictSocket(endpoint, TOPICS) as verdicts:
        viewer = peer(zmq.SUB)
        viewer.connect(endpoint)
        for number in range(50):
            viewer.subscribe(b"preview/cam%d/" % number)
        assert len(served(verdicts, 50)) == 50
        assert verdicts.wants_preview("cam7")
        for number in range(50):
            viewer.unsubscribe(b"preview/cam%d/" % number)
        viewer.subscribe(b"heartbeat/")
        assert served(verdicts, 1) == [b"heartbeat/"]
        assert not verdicts._previews
