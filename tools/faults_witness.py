"""Who watches from outside: knows the public contract and nothing of inspectd, by plain ZeroMQ and JSON."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import zmq

SILENCE_S = 0.6
"""No heartbeat for so long means: reject (contract §3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One verdict as it was published, and when it came; `at_s` is None for one that only `history` told."""

    at_s: float | None
    session: str
    camera: str
    seq: int
    decision: str
    reason: str
    index: int | None
    pts_s: float | None
    score: float | None
    trigger_id: str | None
    total_ms: float | None
    deadline_ms: float | None
    captured_utc_s: float | None
    journaled: bool
    digest: bytes

    @property
    def judged(self) -> bool:
        """Whether the model spoke."""
        return self.decision != "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat."""

    at_s: float
    session: str
    state: str
    last_seq: dict[str, int]
    camera_state: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event."""

    at_s: float
    kind: str
    camera: str | None


class Witness:
    """A subscriber in a thread of its own, there before the daemon and after it."""

    def __init__(self, verdicts: str, control: str) -> None:
        self.verdicts: list[Seen] = []
        self.beats: list[Beat] = []
        self.events: list[Told] = []
        self.oddities: list[str] = []
        self._control = control
        self._context = zmq.Context()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(verdicts,), daemon=True)
        self._thread.start()

    def ask(self, op: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any] | None:
        """One request on `control`; None where no reply comes in time."""
        with self._context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.connect(self._control)
            socket.send(json.dumps({"id": "faults", "op": op} | fields).encode())
            if not socket.poll(int(timeout_s * 1000)):
                return None
            reply: dict[str, Any] = json.loads(socket.recv_multipart()[0])
            return reply

    def history(self, session: str, camera: str, since: int = 0) -> Iterator[Seen]:
        """What the journal holds of a session's camera after a seq, in order.

        Raises:
            TimeoutError: the daemon does not answer, or refuses.
        """
        while True:
            reply = self.ask("history", session=session, camera=camera, since_seq=since, limit=500)
            if reply is None or not reply["ok"]:
                raise TimeoutError(f"history {camera} since {since}: {reply}")
            for body in reply["verdicts"]:
                since = body["seq"]
                yield seen_of(body, None)
            if len(reply["verdicts"]) < 500:
                return

    def until(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        """Whether something was seen before the time was over."""
        deadline_s = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.005)
        return True

    def silences(self) -> list[tuple[float, float]]:
        """When the heartbeat was missing for longer than a line may bear, from the last one before to the next."""
        times = [beat.at_s for beat in list(self.beats)]
        return [(a, b) for a, b in pairwise(times) if b - a > SILENCE_S]

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()
        self._context.term()

    def _listen(self, endpoint: str) -> None:
        socket = self._context.socket(zmq.SUB)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RECONNECT_IVL, 10)
        socket.set(zmq.SUBSCRIBE, b"")
        socket.connect(endpoint)
        with socket:
            while not self._closing.is_set():
                if socket.poll(50):
                    self._take(socket.recv_multipart(), time.monotonic())

    def _take(self, parts: list[bytes], at_s: float) -> None:
        try:
            topic, body = parts[0].decode("ascii"), json.loads(parts[1], parse_constant=_refuse)
            match topic.split("/"):
                case ["verdict", camera, decision, ""] if (camera, decision) == (body["camera"], body["decision"]):
                    self.verdicts.append(seen_of(body, at_s))
                case ["heartbeat", ""]:
                    self.beats.append(_beat(body, at_s))
                case ["event", kind, ""]:
                    self.events.append(Told(at_s=at_s, kind=kind, camera=body["camera"]))
                case ["preview", camera, ""] if camera == body["camera"]:
                    pass  # somebody else asked for pictures
                case _:
                    self.oddities.append(f"topic {topic}")
        except (ValueError, KeyError, IndexError) as error:
            self.oddities.append(f"{parts[0]!r}: {error!r}")


def seen_of(body: dict[str, Any], at_s: float | None) -> Seen:
    """A verdict's body as a record."""
    frame, captured = body["frame"] or {}, body["captured_utc"]
    return Seen(
        at_s=at_s,
        session=body["session"],
        camera=body["camera"],
        seq=body["seq"],
        decision=body["decision"],
        reason=body["reason"],
        index=frame.get("index"),
        pts_s=frame.get("pts_s"),
        score=body["score"],
        trigger_id=body["trigger"]["id"],
        total_ms=body["latency_ms"]["total"],
        deadline_ms=body["deadline_ms"],
        captured_utc_s=None if captured is None else datetime.fromisoformat(captured).timestamp(),
        journaled=body["journaled"],
        digest=hashlib.sha1(json.dumps(body, sort_keys=True).encode(), usedforsecurity=False).digest(),
    )


def _beat(body: dict[str, Any], at_s: float) -> Beat:
    cameras = body["cameras"]
    return Beat(
        at_s=at_s,
        session=body["session"],
        state=body["state"],
        last_seq={name: each["last_seq"] for name, each in cameras.items()},
        camera_state={name: each["state"] for name, each in cameras.items()},
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
