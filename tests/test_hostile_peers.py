"""Whatever strangers send, on whichever socket: no crash, no growth, and verdicts go on in order."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq
from daemons import Daemon, Subscriber, file_camera, running, shared
from test_telemetry import a_free_port, get

SOUND = [
    {"id": "1", "op": "status"},
    {"id": "1", "op": "history", "camera": "cam1", "since_seq": 0},
    {"id": "1", "op": "mask", "camera": "cam1", "seq": 1},
    {"id": "1", "op": "trigger", "camera": "cam1", "trigger_id": "t"},
    {"id": "1", "op": "resume", "camera": "cam1"},
    {"id": "1", "op": "recipe", "camera": "cam1", "recipe": "part"},
]
ODD = [None, True, -1, 2**70, 1e308, "", "x" * 5000, "\ud800", "cam1\0", [], {}, [[[[]]]], "../../etc/passwd"]


class Scene:
    """One live daemon, its subscriber and its publisher's process."""

    def __init__(self, daemon: Daemon, subscriber: Subscriber, port: int) -> None:
        self.daemon, self.subscriber, self.port = daemon, subscriber, port
        self.publisher = psutil.Process(self.pid())

    def pid(self) -> int:
        (pid,) = [each["pid"] for each in self.daemon.ask("status")["processes"] if each["name"] == "publisher"]
        return int(pid)

    def goes_on(self) -> None:
        """New verdicts come, in order, none twice and none missing, and the publisher is the same."""
        count = len(self.subscriber.seen.verdicts)
        seen = self.subscriber.until(lambda seen: len(seen.verdicts) > count + 3)
        seqs = seen.seqs("cam1")
        assert seqs == list(range(1, len(seqs) + 1))
        assert self.pid() == self.publisher.pid

    def connected(self, endpoint: str) -> socket.socket:
        """A raw connection."""
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(endpoint.removeprefix("ipc://"))
        raw.settimeout(5)
        return raw


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Ten frames a second, most of them rejected, with previews and metrics."""
    port = a_free_port()
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    camera = file_camera(video, pace="realtime", trigger="max_fps = 10", loop=True)
    daemon = Daemon(folder=tmp_path_factory.mktemp("d"), cameras={"cam1": camera}, metrics=f"127.0.0.1:{port}")
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: len(seen.verdicts) > 3)
        yield Scene(daemon, subscriber, port)


def zmtp(kind: bytes) -> bytes:
    """The greeting and the handshake of a ZeroMQ peer."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    value = b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    ready = b"\x05READY" + value
    return greeting + b"\x04" + bytes([len(ready)]) + ready


def settled(value: Callable[[], float], limit: float) -> bool:
    """Whether a value falls below a limit in time."""
    deadline_s = time.monotonic() + 30
    while value() > limit and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return value() <= limit


def is_cut_off(raw: socket.socket, part: bytes) -> bool:
    """Whether the other end hangs up before it has taken 3.6 GB."""
    try:
        for _ in range(60_000):
            raw.sendall(part)
    except OSError:
        return True
    return False


def mutated(dice: random.Random) -> bytes:
    """A request to which something happened."""
    request = dict(dice.choice(SOUND))
    body = json.dumps(request)
    match dice.randrange(5):
        case 0:
            request[dice.choice([*request, "more"])] = dice.choice(ODD)
            return json.dumps(request).encode()
        case 1:
            del request[dice.choice(list(request))]
            return json.dumps(request).encode()
        case 2:
            return body[: dice.randrange(len(body))].encode()
        case 3:
            at = dice.randrange(len(body))
            return body[:at].encode() + dice.randbytes(dice.randrange(1, 9)) + body[at + 1 :].encode()
        case _:
            return dice.choice(
                [dice.randbytes(dice.randrange(300)), b"[" * 5000, b'{"id":' * 2000, b"NaN", b"0" * 60_000]
            )


def test_every_request_is_answered_soon_whatever_it_is(scene: Scene) -> None:
    """Ten thousand broken ones: each gets a reply that says no, most within 10 ms, and nothing grows."""
    dice, waits_s = random.Random(1), []
    memory = scene.publisher.memory_info().rss
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.set(zmq.LINGER, 0)
        client.connect(scene.daemon.control)
        for number in range(10_000):
            sent_s = time.monotonic()
            client.send(mutated(dice))
            assert client.poll(20_000)
            reply = json.loads(next(filter(None, client.recv_multipart())))
            waits_s.append(time.monotonic() - sent_s)
            assert reply["ok"] or "error" in reply
            if number % 500 == 0:
                scene.subscriber.read(0)
    assert sorted(waits_s)[len(waits_s) * 9 // 10] < 0.01
    scene.goes_on()
    assert scene.publisher.memory_info().rss - memory < 60e6


def test_messages_of_many_parts_are_thrown_away(scene: Scene) -> None:
    """Hundreds of thousands of parts, as a request and as a subscription, delay nobody else's."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as client, context.socket(zmq.XSUB) as viewer:
        for each, endpoint in ((client, scene.daemon.control), (viewer, scene.daemon.verdicts)):
            each.set(zmq.LINGER, 0)
            each.connect(endpoint)
            each.send_multipart([b"x"] * 200_000)
        assert client.poll(20_000)
        assert json.loads(client.recv_multipart()[0])["error"]["code"] == "bad_request"
    scene.goes_on()


def test_a_message_without_an_end_is_cut_off(scene: Scene) -> None:
    """A peer that sends parts for ever is dropped before its memory is anybody's trouble; others come back."""
    memory = scene.publisher.memory_info().rss
    part = b"\x03" + struct.pack(">Q", 60_000) + bytes(60_000)
    with scene.connected(scene.daemon.control) as raw:
        raw.sendall(zmtp(b"DEALER"))
        assert is_cut_off(raw, part)
    assert settled(lambda: scene.publisher.memory_info().rss - memory, 100e6)
    scene.goes_on()


@pytest.mark.parametrize("where", ["control", "verdicts", "results", "wake", "commands"])
def test_garbage_on_a_socket_stops_nothing(scene: Scene, where: str) -> None:
    """Random bytes, broken handshakes, frames of impossible lengths, on the sockets between the processes too."""
    dice = random.Random(where)
    inside = next(scene.daemon.runtime.glob(f"publisher-*.{where}"), None)
    endpoint = getattr(scene.daemon, where) if inside is None else f"ipc://{inside}"
    frames = [b"\x00\xff", b"\x02" + struct.pack(">Q", 2**63), b"\x01\x00" * 50, b"\x04\x05READY", b"\x07\x01x"]
    for number in range(400):
        with scene.connected(endpoint) as raw:
            start = dice.choice([b"", zmtp(dice.choice([b"DEALER", b"SUB", b"PUSH", b"XSUB", b"REQ", b"junk"]))])
            rest = dice.choice([dice.randbytes(dice.randrange(500)), dice.choice(frames), b""])
            raw.sendall((start + rest)[: dice.randrange(1, 700)] if number % 2 else start + rest)
    scene.goes_on()


def test_what_comes_on_the_way_of_commands_is_thrown_away(scene: Scene) -> None:
    """Nobody there waits for a word: thousands of strangers' messages are neither kept nor looked at twice."""
    (place,) = scene.daemon.runtime.glob("publisher-*.commands")
    memory = scene.publisher.memory_info().rss
    with zmq.Context() as context:
        for _ in range(60):
            with context.socket(zmq.DEALER) as stranger:
                stranger.set(zmq.LINGER, 1000)
                stranger.connect(f"ipc://{place}")
                for _ in range(100):
                    stranger.send_multipart([b"x" * 5000, b"", b"x"])
    scene.goes_on()
    assert settled(lambda: scene.publisher.memory_info().rss - memory, 10e6)
    busy_s = sum(scene.publisher.cpu_times()[:2])
    time.sleep(1)
    assert sum(scene.publisher.cpu_times()[:2]) - busy_s < 0.6


def test_results_that_no_worker_sent_are_refused(scene: Scene) -> None:
    """A peer on the inner socket that speaks like a worker, but nonsense: each is a line in the log and no verdict."""
    dice = random.Random(3)
    (place,) = scene.daemon.runtime.glob("publisher-*.results")
    sound = {"camera": 0, "seq": 1, "worker_generation": 1, "what": "preview", "size_wh_px": [1, 1], "shed": 0}
    with zmq.Context() as context, context.socket(zmq.PUSH) as worker:
        worker.set(zmq.LINGER, 1000)
        worker.connect(f"ipc://{place}")
        for _ in range(2000):
            head = json.dumps(sound | {dice.choice(list(sound)): dice.choice(ODD)}).encode()
            parts = dice.choice([[head], [b"", head], [b"", head, b"jpeg"], [b""], [b"", b"{"], [dice.randbytes(50)]])
            worker.send_multipart(parts)
    scene.goes_on()


def test_a_flood_of_subscriptions_costs_nobody_a_verdict(scene: Scene) -> None:
    """A viewer that subscribes to whatever comes to its mind, a hundred thousand times."""
    memory = scene.publisher.memory_info().rss
    with zmq.Context() as context, context.socket(zmq.XSUB) as viewer:
        viewer.set(zmq.LINGER, 0)
        viewer.set(zmq.SNDHWM, 0)
        viewer.connect(scene.daemon.verdicts)
        for number in range(100_000):
            viewer.send(b"\1preview/cam%d" % number + b"x" * 80)
            if number % 1000 == 0:
                scene.subscriber.read(0)
        scene.goes_on()
    assert settled(lambda: scene.publisher.memory_info().rss - memory, 100e6)
    scene.goes_on()


def test_thousands_that_come_and_go_leave_no_descriptor(scene: Scene) -> None:
    """On each endpoint, with and without a word."""
    before = scene.publisher.num_fds()
    for number in range(700):
        for endpoint in (scene.daemon.verdicts, scene.daemon.control):
            with scene.connected(endpoint) as raw:
                raw.sendall(zmtp(b"SUB")[: number % 100])
        socket.create_connection(("127.0.0.1", scene.port)).close()
    assert settled(scene.publisher.num_fds, before + 5)
    scene.goes_on()


def test_slow_and_rude_http_clients_cost_nobody_a_probe(scene: Scene) -> None:
    """Connections that are held open, half requests, garbage and endless lines: the next probe is answered."""
    before = scene.publisher.num_threads()
    words = [
        b"",
        b"GET /metr",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000,
        b"\x16\x03\x01\x02",
        b"POST /metrics HTTP/1.1\r\n\r\n",
    ]
    held = [socket.create_connection(("127.0.0.1", scene.port)) for _ in range(100)]
    for number, each in enumerate(held):
        try:
            each.sendall(words[number % len(words)])
        except OSError:
            continue
    assert settled(scene.publisher.num_threads, before + 20)
    assert get(scene.port, "/healthz") == (200, "ok\n")
    for each in held:
        each.close()
    assert settled(scene.publisher.num_threads, before + 2)
    scene.goes_on()


def test_long_histories_that_nobody_reads_are_bounded(scene: Scene) -> None:
    """A client that asks and asks, and never takes an answer, holds a bounded amount."""
    memory = scene.publisher.memory_info().rss
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.set(zmq.LINGER, 0)
        client.set(zmq.RCVHWM, 1)
        client.set(zmq.RCVBUF, 4096)
        client.connect(scene.daemon.control)
        for number in range(2000):
            client.send(json.dumps({"id": str(number), "op": "history", "camera": "cam1", "since_seq": 0}).encode())
        scene.goes_on()
        assert scene.publisher.memory_info().rss - memory < 400e6
    scene.goes_on()
    assert Path(f"/proc/{scene.publisher.pid}").exists()
