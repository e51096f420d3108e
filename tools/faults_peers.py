"""Rows: bad peers on every socket: who does not read, who comes and goes, who sends rubbish."""

from __future__ import annotations

import json
import os
import random
import socket as unix
import time
from pathlib import Path

import psutil
import zmq
from faults_line import Line
from faults_trial import Trial, percentile

AnySocket = zmq.Socket[bytes]
AnyContext = zmq.Context[AnySocket]

VISITS, VISITS_SHORT = 10_000, 400
MESSAGES, MESSAGES_SHORT = 1_000_000, 12_000
GROWTH_MB, GROWTH_DESCRIPTORS = 40.0, 8
ANSWER_S = 0.010


def stopped_subscriber(trial: Trial) -> None:
    """Subscribers that never read again cost the others nothing."""
    with trial.daemon() as line, zmq.Context() as context:
        publisher = _Publisher(line)
        stopped = []
        for _ in range(trial.times):
            trial.pause()
            socket = context.socket(zmq.SUB)
            socket.set(zmq.RCVHWM, 1)
            socket.set(zmq.RCVBUF, 4096)
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SUBSCRIBE, b"")
            socket.connect(line.daemon.verdicts)
            stopped.append(socket)
            trial.injected += 1
            time.sleep(1.0)
        trial.must(not line.silences(), f"heartbeats were missing: {line.silences()}")
        publisher.must_not_have_grown()
        for socket in stopped:
            socket.close(0)


def visits(trial: Trial) -> None:
    """Subscribers come and go."""
    count = trial.asked or (VISITS if trial.long else VISITS_SHORT)
    with trial.daemon() as line:
        publisher = _Publisher(line)
        for _ in range(count):
            with zmq.Context() as context, context.socket(zmq.SUB) as socket:
                socket.set(zmq.LINGER, 0)
                socket.set(zmq.SUBSCRIBE, trial.rng.choice([b"", b"verdict/", b"heartbeat/", b"preview/cam1/", b"x"]))
                socket.connect(line.daemon.verdicts)
                if trial.rng.random() < 0.5:
                    socket.poll(5)
            trial.injected += 1
        trial.must(not line.silences(), f"heartbeats were missing: {line.silences()}")
        time.sleep(1.0)
        publisher.must_not_have_grown()


def fuzz(trial: Trial) -> None:
    """Malformed, truncated, huge and hostile messages on every socket, inside and outside."""
    count = trial.asked or (MESSAGES if trial.long else MESSAGES_SHORT)
    replies_ms: list[float] = []
    with trial.daemon() as line, zmq.Context() as context:
        endpoints = _endpoints(line)
        pids = line.daemon.pids(line.witness)
        publisher = _Publisher(line)
        polite = _dealer(context, line.daemon.control)
        while trial.injected < count:
            for name, endpoint in endpoints.items():
                trial.injected += _rubbish(trial.rng, context, name, endpoint, 60)
            replies_ms += [_ask_ms(polite) for _ in range(4)]
        polite.close(0)
        now = line.daemon.pids(line.witness)
        trial.must(now == pids, f"a process was replaced: {sorted(k for k in pids if now.get(k) != pids[k])}")
        trial.must(not line.silences(), f"heartbeats were missing: {line.silences()}")
        line.judged_since(time.time())
        time.sleep(1.0)
        publisher.must_not_have_grown()
    p50, p99, worst = (percentile(replies_ms, share) for share in (0.5, 0.99, 1.0))
    trial.notes.append(
        f"{len(endpoints)} sockets; a reply meanwhile takes p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {worst:.1f} ms"
    )
    if p99 > 1000 * ANSWER_S:
        trial.missed.append(f"p99 of a reply {p99:.0f} ms > {1000 * ANSWER_S:g} ms")


def _endpoints(line: Line) -> dict[str, str]:
    """The two public sockets, and every one inside that somebody listens on."""
    inside = {
        path.name: f"ipc://{path}" for path in sorted(Path(line.daemon.sockets, "run").iterdir()) if _listens(path)
    }
    return {"verdicts": line.daemon.verdicts, "control": line.daemon.control} | inside


def _listens(path: Path) -> bool:
    """Whether its generation lives: dead ones leave their sockets until the next start."""
    with unix.socket(unix.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _rubbish(rng: random.Random, context: AnyContext, name: str, endpoint: str, count: int) -> int:
    """Sends some messages, each malformed in a way of its own, to one socket; how many it took."""
    if rng.random() < 0.2:
        return _raw_bytes(rng, endpoint)
    kinds = {"verdicts": zmq.XSUB, "control": zmq.DEALER, "wake": zmq.PUSH, "results": zmq.PUSH, "commands": zmq.DEALER}
    socket = context.socket(kinds[name.rpartition(".")[2]])
    socket.set(zmq.LINGER, 50)
    socket.connect(endpoint)
    sent = 0
    for _ in range(count):
        parts = [_part(rng) for _ in range(rng.choice([1, 1, 1, 2, 3, 9]))]
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError:
            time.sleep(0.002)
            continue
        sent += 1
        if socket.type == zmq.DEALER and sent % 8 == 0:
            while socket.poll(0):
                socket.recv_multipart()
    socket.close()
    return sent


def _part(rng: random.Random) -> bytes:
    """One hostile frame: bytes, bent JSON, numbers that are none, deep nests, lies of the right shape."""
    request = {"id": "x", "op": rng.choice(["status", "history", "mask", "trigger", "pause ", "reload"])}
    whole = json.dumps(request).encode()
    lie = {"camera": 0, "seq": 1, "worker_generation": 1, "decision": "pass", "score": 0, "size_wh_px": [1, 1]}
    bent = request | {"camera": "cam1", "seq": 2**70, "since_seq": -1, "trigger_id": "\ud800"}
    hostile = (
        b"",
        rng.randbytes(rng.randrange(64)),
        rng.randbytes(rng.choice([1024, 65_536, 70_000])),
        b"[" * 20_000,
        json.dumps(bent).encode(),
        b'{"id": "x", "op": "status", "n": NaN, "n": 1e999}',
        json.dumps({"id": ["x"], "op": None}).encode(),
        json.dumps(lie).encode(),
        rng.choice([b"\x01", b"\x00"]) + rng.choice([b"preview/", b"verdict/cam1/", b"\xff" * 40]),
        whole[: rng.randrange(len(whole))],
    )
    return hostile[rng.randrange(len(hostile))]


def _raw_bytes(rng: random.Random, endpoint: str) -> int:
    """Bytes that are no ZMTP, and connections that say nothing."""
    with unix.socket(unix.AF_UNIX) as raw:
        raw.settimeout(0.5)
        try:
            raw.connect(endpoint.removeprefix("ipc://"))
            raw.send(rng.choice([b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03", os.urandom(300), b"\0"]))
        except OSError:
            return 0
    return 1


def _dealer(context: AnyContext, endpoint: str) -> AnySocket:
    socket = context.socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket


def _ask_ms(socket: AnySocket) -> float:
    """How long the daemon takes to refuse a bad request."""
    started_s = time.perf_counter()
    socket.send(b'{"id": "polite", "op": "nothing"}')
    if not socket.poll(5000):
        return 5000.0
    socket.recv_multipart()
    return (time.perf_counter() - started_s) * 1000


class _Publisher:
    """What the publisher holds before and after: it is the one whom peers can burden."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._before = self._held()

    def must_not_have_grown(self) -> None:
        """Compares."""
        (mb, files), (before_mb, before_files) = self._held(), self._before
        trial = self._line.trial
        trial.must(mb - before_mb <= GROWTH_MB, f"the publisher grew by {mb - before_mb:.0f} MB")
        trial.must(files - before_files <= GROWTH_DESCRIPTORS, f"{files - before_files} descriptors stayed open")
        trial.notes.append(f"publisher {before_mb:.0f} -> {mb:.0f} MB, {before_files} -> {files} descriptors")

    def _held(self) -> tuple[float, int]:
        process = psutil.Process(self._line.daemon.pids(self._line.witness)["publisher"])
        held = process.memory_info()
        return (held.rss - held.shared) / 1e6, process.num_fds()
