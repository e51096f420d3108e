"""External triggers on a real camera of numbered frames: which frame was behind each, and when it was exposed.

What the camera pushed and when is known from its own log; what the worker saw is read from the ring. So nothing that
the daemon says of itself is taken for granted.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from daemons import Daemon, Subscriber
from rtsp_servers import RtspServer

from inspectd.records import PixelsU8
from inspectd.transport.ring import Ring
from inspectd.transport.tickets import Table

BLOCK_PX = 32
BITS = 16
PAUSES_S = (0.04, 0.18)
DEADLINE_MS = 3000.0
LAG_MS = 5.0
JITTER_NS = 1_000_000
"""How exact a time of exposure is on loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """At that trigger the camera stops for so long: it is frozen, or killed and started again."""

    at: int
    for_s: float
    kills: bool


@dataclass(slots=True)
class Outcome:
    """One trigger. `number` is what its frame spells, None where none was seen."""

    id: str
    sent_ns: int
    came_ns: int = 0
    verdict: dict[str, Any] | None = None
    number: int | None = None


@dataclass
class Run:
    """What came of all triggers, and what the camera pushed: `(number, ns)`."""

    outcomes: list[Outcome]
    pushes: list[tuple[int, int]]
    frames: int
    disturbed_ns: list[tuple[int, int]] = field(default_factory=list)

    def pushed_ns(self, outcome: Outcome) -> int:
        """When the frame behind a trigger was exposed: the latest push of that number before its verdict."""
        assert outcome.verdict is not None
        came = [ns for number, ns in self.pushes if number % self.frames == outcome.number and ns < outcome.came_ns]
        return came[-1]

    @property
    def served(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.number is not None]

    def stale(self) -> list[Outcome]:
        """Triggers whose frame was exposed before they were sent."""
        return [each for each in self.served if self.pushed_ns(each) < each.sent_ns - JITTER_NS]

    def skipped(self) -> list[Outcome]:
        """Triggers that could have had an earlier frame, but for times when the camera stood still or began."""
        return [each for each in self.served if self._earlier(each) and not self._is_disturbed(each)]

    def backwards(self) -> list[Outcome]:
        """Triggers whose frame is older than that of an earlier trigger."""
        pairs = zip(self.served, self.served[1:], strict=False)
        return [later for earlier, later in pairs if self.pushed_ns(later) < self.pushed_ns(earlier)]

    def _earlier(self, outcome: Outcome) -> bool:
        from_ns = outcome.sent_ns + round((LAG_MS + 20) * 1e6)  # the way of the request, on a busy machine
        return any(from_ns < ns < self.pushed_ns(outcome) for _, ns in self.pushes)

    def _is_disturbed(self, outcome: Outcome) -> bool:
        return any(
            begun - 1_000_000_000 < outcome.sent_ns < ended + 3_000_000_000 for begun, ended in self.disturbed_ns
        )


def number_of(pixels_bgr: PixelsU8) -> int:
    """The number that a frame of `make_numbered_clip.py` spells in its top row."""
    centres = pixels_bgr[BLOCK_PX // 2, BLOCK_PX // 2 : BITS * BLOCK_PX : BLOCK_PX].mean(axis=1)
    return sum(int(centre > 127) << bit for bit, centre in enumerate(centres))


def camera_tables(url: str) -> str:
    """The tables of the camera in the configuration."""
    return (
        f'source = {{ kind = "rtsp", url = "{url}", max_size_wh_px = [640, 360], silence_s = 1.0, '
        f'exposure_lag_ms = {LAG_MS}, frozen_after_s = 30 }}\ntrigger = {{ kind = "external" }}\n'
    )


class Triggers:
    """A client that sends triggers at random moments and looks at the frame behind each verdict."""

    def __init__(self, daemon: Daemon, subscriber: Subscriber, server: RtspServer, camera: str) -> None:
        self._subscriber, self._server, self._camera = subscriber, server, camera
        (name,) = [each for each in daemon.segments() if each.endswith("-table")]
        table = Table.attach(name)
        index = table.cameras.index(camera)
        self._view, self._ring = table.camera(index), Ring.attach(table.ring_name(index))
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.connect(daemon.control)
        self._outcomes: dict[str, Outcome] = {}
        self._looked = 0

    def run(self, count: int, disturbances: Sequence[Disturbance], frames: int, patience_s: float = 60.0) -> Run:
        """Sends all triggers and waits for their verdicts."""
        rng = random.Random(5)
        left = {each.at: each for each in disturbances}
        disturbed_ns: list[tuple[int, int]] = []
        resumes: list[tuple[float, Callable[[], None]]] = []
        for number in range(count):
            if number in left:
                resumes.append(self._disturb(left[number], disturbed_ns))
            self._send(f"t{number}", f"part{number}")
            self._pause(rng.uniform(*PAUSES_S), resumes)
        for at_s, resume in resumes:
            self._look(max(0.0, at_s - time.monotonic()))
            resume()
        until_s = time.monotonic() + patience_s
        while any(each.verdict is None for each in self._outcomes.values()) and time.monotonic() < until_s:
            self._look(0.02)
        self._socket.close()
        self._context.term()
        return Run([*self._outcomes.values()], self._server.pushes(), frames, disturbed_ns)

    def _disturb(self, how: Disturbance, told: list[tuple[int, int]]) -> tuple[float, Callable[[], None]]:
        begun_ns = time.monotonic_ns()
        (self._server.kill if how.kills else self._server.stall)()

        def resume() -> None:
            (self._server.start if how.kills else self._server.resume)()
            told.append((begun_ns, time.monotonic_ns()))

        return time.monotonic() + how.for_s, resume

    def _send(self, trigger_id: str, part_id: str) -> None:
        fields = {"camera": self._camera, "trigger_id": trigger_id, "part_id": part_id, "deadline_ms": DEADLINE_MS}
        self._outcomes[trigger_id] = Outcome(trigger_id, time.monotonic_ns())
        self._socket.send(json.dumps({"id": trigger_id, "op": "trigger"} | fields).encode())

    def _pause(self, pause_s: float, resumes: list[tuple[float, Callable[[], None]]]) -> None:
        until_s = time.monotonic() + pause_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._look(min(0.01, left_s))
            for each in [each for each in resumes if time.monotonic() >= each[0]]:
                each[1]()
                resumes.remove(each)

    def _look(self, timeout_s: float) -> None:
        self._subscriber.read(timeout_s)
        while self._socket.poll(0):
            reply = json.loads(self._socket.recv())
            assert reply["ok"], reply
        verdicts = self._subscriber.seen.verdicts
        for verdict in verdicts[self._looked :]:
            outcome = self._outcomes[verdict["trigger"]["id"]]
            assert outcome.verdict is None, "a second verdict for one trigger"
            outcome.verdict, outcome.came_ns = verdict, time.monotonic_ns()
            outcome.number = self._number(verdict["seq"])
        self._looked = len(verdicts)

    def _number(self, seq: int) -> int | None:
        """The number in the slot of a row, where it is still there."""
        row = self._view.row(seq)
        if row is None or row.slot < 0:
            return None
        pixels = self._ring.view(row.slot, row.slot_generation, row.height_px, row.width_px)
        number = None if pixels is None else number_of(np.array(pixels[:BLOCK_PX]))
        return number if self._ring.still(row.slot, row.slot_generation) else None


def make_clip(maker: Path, clip: Path, frames: int, run: Callable[..., object], python: str) -> Path:
    """A numbered clip by the shared tool."""
    run([python, str(maker), "640", "360", str(frames), str(clip)], check=True)
    return clip
