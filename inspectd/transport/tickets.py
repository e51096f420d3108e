"""The ticket table: the truth about what was accepted, in shared memory. Whoever dies, it is still there.

To accept a frame, capture writes its row and then raises the camera's `high_water`: that store is the moment of
acceptance. A row beyond the mark is never read, and the next generation of capture overwrites it. Each word has one
writer at a time: capture its camera's rows, state and counters; the worker `result_*` of a row; the publisher
`answered_through` and `paused`; the supervisor the header; each child its own heartbeat. No locks: nothing a killed
process held can stop another. The order of stores is argued in `ring.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inspectd.errors import TransportError
from inspectd.records import CameraState, Reason, TriggerKind
from inspectd.transport.memory import Segment

MAGIC = 0x494E_5350_5449_434B
VERSION = 1
ROWS = 1024
TEXT_BYTES = 128

HEAD = np.dtype(
    [
        ("magic", "<u8"),
        ("version", "<u8"),
        ("cameras", "<u8"),
        ("children", "<u8"),
        ("rows", "<u8"),
        ("session", "S32"),
        ("started_ns", "<i8"),
        ("worker_generation", "<u8"),
        ("ready_generation", "<u8"),
        ("publisher_generation", "<u8"),
        ("accepting", "<u8"),
        ("stopping", "<u8"),
    ]
)
CHILD = np.dtype(
    [
        ("name", "S48"),
        ("pid", "<i8"),
        ("generation", "<u8"),
        ("restarts", "<u8"),
        ("beat_ns", "<i8"),
        ("beat_limit_ns", "<i8"),
    ]
)
CAMERA = np.dtype(
    [
        ("name", "S32"),
        ("high_water", "<u8"),
        ("answered_through", "<u8"),
        ("state", "<u8"),
        ("paused", "<u8"),
        ("capture_generation", "<u8"),
        ("frames_read", "<u8"),
        ("frames_skipped", "<u8"),
        ("frames_damaged", "<u8"),
        ("wakeups_dropped", "<u8"),
        ("results_dropped", "<u8"),
    ]
)
ROW = np.dtype(
    [
        ("seq", "<u8"),
        ("trigger_kind", "<u8"),
        ("trigger_id_bytes", "<u8"),
        ("trigger_id", "S128"),
        ("part_id_bytes", "<u8"),
        ("part_id", "S128"),
        ("accepted_ns", "<i8"),
        ("deadline_ns", "<i8"),
        ("slot", "<i8"),
        ("slot_generation", "<u8"),
        ("frame_index", "<i8"),
        ("width_px", "<i8"),
        ("height_px", "<i8"),
        ("pts_s", "<f8"),
        ("captured_ns", "<i8"),
        ("captured_utc_ns", "<i8"),
        ("capture_ms", "<f8"),
        ("gate", "<u8"),
        ("simulated", "<u8"),
        ("result_publisher", "<u8"),
        ("result_ns", "<i8"),
    ]
)
_STATES = tuple(CameraState)
_KINDS = tuple(TriggerKind)
_GATES: tuple[Reason | None, ...] = (None, *Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """What capture knows of a frame or trigger that it is about to accept.

    `accepted_ns` is what the deadline counts from; `deadline_ns` is absolute, 0 for none. `slot` is -1 where there are
    no pixels: a trigger whose frame is still to come, or a row that `gate` has decided already.
    """

    trigger_kind: TriggerKind
    accepted_ns: int
    deadline_ns: int
    simulated: bool
    trigger_id: str | None = None
    part_id: str | None = None
    slot: int = -1
    slot_generation: int = 0
    frame_index: int = -1
    width_px: int = 0
    height_px: int = 0
    pts_s: float | None = None
    captured_ns: int = 0
    captured_utc_ns: int = 0
    capture_ms: float = 0.0
    gate: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(NewRow):
    """An accepted frame or trigger. `result_publisher` is the publisher that a result was sent to, 0 for none yet."""

    seq: int
    result_publisher: int = 0
    result_ns: int = 0


FILLED = (
    "frame_index",
    "width_px",
    "height_px",
    "captured_ns",
    "captured_utc_ns",
    "capture_ms",
    "slot_generation",
)


class _Word:
    """One aligned 8-byte word of a structured record, read and written whole."""

    def __set_name__(self, owner: type[_Record], name: str) -> None:
        self._name = name

    def __get__(self, record: _Record, owner: type[_Record]) -> int:
        return int(record.words[self._name])

    def __set__(self, record: _Record, value: int) -> None:
        record.words[self._name] = value


class _Record:
    def __init__(self, words: Any) -> None:
        self.words = words


class ChildView(_Record):
    """One process of the daemon."""

    pid = _Word()
    generation = _Word()
    restarts = _Word()
    beat_ns = _Word()
    beat_limit_ns = _Word()

    @property
    def name(self) -> str:
        """`publisher`, `worker` or `capture-CAMERA`."""
        return str(self.words["name"].decode())

    def beat(self, now_ns: int) -> None:
        """The work loop has turned."""
        self.beat_ns = now_ns

    def limit(self, limit_ns: int) -> None:
        """From now on a silence of so long is a death."""
        self.beat_limit_ns = limit_ns

    def born(self, pid: int, generation: int) -> None:
        """A process fills this place."""
        self.pid, self.generation = pid, generation
        self.restarts = max(0, generation - 1)


class CameraView(_Record):
    """One camera: its mark of acceptance, its counters and its rows."""

    high_water = _Word()
    answered_through = _Word()
    capture_generation = _Word()
    paused = _Word()
    frames_read = _Word()
    frames_skipped = _Word()
    frames_damaged = _Word()
    wakeups_dropped = _Word()
    results_dropped = _Word()

    def __init__(self, words: Any, rows: Any) -> None:
        super().__init__(words)
        self._rows = rows

    @property
    def state(self) -> CameraState:
        """What the camera does."""
        return _STATES[int(self.words["state"])]

    @state.setter
    def state(self, state: CameraState) -> None:
        self.words["state"] = _STATES.index(state)

    def accept(self, row: NewRow, after_step: Callable[[str], None] = lambda _: None) -> int | None:
        """Accepts a frame or trigger.

        Args:
            after_step: told of each step, so that a test can kill between any two.

        Returns:
            its seq; None where the table is full of unanswered rows: then nothing was accepted.

        Raises:
            ValueError: an id is longer than 128 bytes in UTF-8.
        """
        seq = self.high_water + 1
        if seq - self.answered_through > len(self._rows):
            return None
        place = self._rows[seq % len(self._rows)]
        place["seq"] = 0
        after_step("opened")
        self._write(place, row)
        after_step("written")
        place["seq"] = seq
        after_step("named")
        self.high_water = seq
        after_step("accepted")
        return seq

    def row(self, seq: int) -> Row | None:
        """The row of an accepted seq; None where it was never accepted or has been overwritten."""
        place = self._rows[seq % len(self._rows)]
        if not 0 < seq <= self.high_water or int(place["seq"]) != seq:
            return None
        row = _read(place, seq)
        return row if int(place["seq"]) == seq else None

    def unanswered(self) -> Iterator[Row]:
        """Yields the accepted rows that have no verdict, in order."""
        for seq in range(self.answered_through + 1, self.high_water + 1):
            row = self.row(seq)
            if row is not None:
                yield row

    def fill(self, seq: int, row: NewRow) -> None:
        """Gives an accepted trigger its frame; the store of `slot` is the moment from which the worker sees it."""
        place = self._rows[seq % len(self._rows)]
        for name in FILLED:
            place[name] = getattr(row, name)
        place["pts_s"] = math.nan if row.pts_s is None else row.pts_s
        place["slot"] = row.slot

    def decide(self, seq: int, gate: Reason) -> None:
        """Decides an accepted trigger as an error."""
        self._rows[seq % len(self._rows)]["gate"] = _GATES.index(gate)

    def mark_result(self, seq: int, publisher_generation: int, now_ns: int) -> None:
        """The worker has sent a result for a row, to that publisher."""
        place = self._rows[seq % len(self._rows)]
        place["result_ns"] = now_ns
        place["result_publisher"] = publisher_generation

    def _write(self, place: Any, row: NewRow) -> None:
        for name in FILLED:
            place[name] = getattr(row, name)
        for name in ("accepted_ns", "deadline_ns", "slot", "simulated"):
            place[name] = getattr(row, name)
        for name, text in (("trigger_id", row.trigger_id), ("part_id", row.part_id)):
            encoded = b"" if text is None else text.encode()
            if len(encoded) > TEXT_BYTES:
                raise ValueError(f"{name}: {len(encoded)} bytes in UTF-8, at most {TEXT_BYTES} are allowed")
            place[name], place[f"{name}_bytes"] = encoded, 0 if text is None else len(encoded) + 1
        place["trigger_kind"] = _KINDS.index(row.trigger_kind)
        place["pts_s"] = math.nan if row.pts_s is None else row.pts_s
        place["gate"] = _GATES.index(row.gate)
        place["result_publisher"], place["result_ns"] = 0, 0


class Table:
    """The table of one daemon."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.name = segment.name
        if len(segment.bytes) < HEAD.itemsize:
            raise TransportError(f"{segment.name}: not a ticket table")
        self._head = segment.bytes[: HEAD.itemsize].view(HEAD)[0]
        if int(self._head["magic"]) != MAGIC or int(self._head["version"]) != VERSION:
            raise TransportError(f"{segment.name}: not a ticket table of this version")
        cameras, children, rows = (int(self._head[key]) for key in ("cameras", "children", "rows"))
        if len(segment.bytes) != _size(cameras, children, rows):
            raise TransportError(f"{segment.name}: not a whole ticket table")
        at = HEAD.itemsize
        self._children = segment.bytes[at : at + children * CHILD.itemsize].view(CHILD)
        at += children * CHILD.itemsize
        self._cameras = segment.bytes[at : at + cameras * CAMERA.itemsize].view(CAMERA)
        at += cameras * CAMERA.itemsize
        self._rows = segment.bytes[at:].view(ROW).reshape(cameras, rows)
        self.session = self._head["session"].decode()
        self.cameras = tuple(str(name.decode()) for name in self._cameras["name"])
        self.started_ns = int(self._head["started_ns"])

    @classmethod
    def create(
        cls,
        name: str,
        *,
        session: str,
        cameras: Sequence[str],
        children: Sequence[str],
        started_ns: int,
        rows: int = ROWS,
    ) -> Table:
        """Makes the table's segment.

        Raises:
            TransportError: shared memory cannot be had.
        """
        segment = Segment.create(name, _size(len(cameras), len(children), rows))
        head = segment.bytes[: HEAD.itemsize].view(HEAD)
        head["version"], head["session"], head["started_ns"] = VERSION, session.encode(), started_ns
        head["cameras"], head["children"], head["rows"] = len(cameras), len(children), rows
        head["magic"] = MAGIC
        table = cls(segment)
        table._cameras["name"] = [camera.encode() for camera in cameras]
        table._children["name"] = [child.encode() for child in children]
        return cls(segment)

    @classmethod
    def attach(cls, name: str) -> Table:
        """Maps a table that exists.

        Raises:
            TransportError: there is none, or it is of another version.
        """
        return cls(Segment.attach(name))

    def camera(self, index: int) -> CameraView:
        """The view of one camera."""
        return CameraView(self._cameras[index], self._rows[index])

    def child(self, index: int) -> ChildView:
        """The view of one process."""
        return ChildView(self._children[index])

    def children(self) -> list[ChildView]:
        """The views of all processes."""
        return [self.child(index) for index in range(len(self._children))]

    def ring_name(self, camera: int) -> str:
        """The name of a camera's ring."""
        return f"{self.name.removesuffix('-table')}-ring-{self.cameras[camera]}"

    def worker_is_ready(self, generation: int) -> None:
        """A generation of the worker is warm."""
        self._head["ready_generation"] = generation

    @property
    def worker_ready(self) -> bool:
        """Whether the living generation of the worker is warm."""
        return self.worker_generation > 0 and int(self._head["ready_generation"]) == self.worker_generation

    @property
    def worker_generation(self) -> int:
        """The living generation of the worker; raised by the supervisor when one has died."""
        return int(self._head["worker_generation"])

    @worker_generation.setter
    def worker_generation(self, generation: int) -> None:
        self._head["worker_generation"] = generation

    @property
    def publisher_generation(self) -> int:
        """The living generation of the publisher."""
        return int(self._head["publisher_generation"])

    @publisher_generation.setter
    def publisher_generation(self, generation: int) -> None:
        self._head["publisher_generation"] = generation

    @property
    def accepting(self) -> bool:
        """Whether frames are accepted: from the first warm worker on."""
        return bool(self._head["accepting"])

    @accepting.setter
    def accepting(self, accepting: bool) -> None:
        self._head["accepting"] = accepting

    @property
    def stopping(self) -> bool:
        """Whether the daemon drains."""
        return bool(self._head["stopping"])

    @stopping.setter
    def stopping(self, stopping: bool) -> None:
        self._head["stopping"] = stopping

    def close(self) -> None:
        """Lets go of the mapping."""
        self._segment.close()


def _read(place: Any, seq: int) -> Row:
    gate, kind = int(place["gate"]), int(place["trigger_kind"])
    pts_s = float(place["pts_s"])
    return Row(
        seq=seq,
        trigger_kind=_KINDS[kind] if kind < len(_KINDS) else TriggerKind.CONTINUOUS,
        trigger_id=_text(place, "trigger_id"),
        part_id=_text(place, "part_id"),
        accepted_ns=int(place["accepted_ns"]),
        deadline_ns=int(place["deadline_ns"]),
        slot=int(place["slot"]),
        slot_generation=int(place["slot_generation"]),
        frame_index=int(place["frame_index"]),
        width_px=int(place["width_px"]),
        height_px=int(place["height_px"]),
        pts_s=pts_s if math.isfinite(pts_s) else None,
        captured_ns=int(place["captured_ns"]),
        captured_utc_ns=int(place["captured_utc_ns"]),
        capture_ms=float(place["capture_ms"]),
        gate=_GATES[gate] if gate < len(_GATES) else Reason.INTERNAL,
        simulated=bool(place["simulated"]),
        result_publisher=int(place["result_publisher"]),
        result_ns=int(place["result_ns"]),
    )


def _text(place: Any, name: str) -> str | None:
    count = int(place[f"{name}_bytes"])
    return None if count == 0 else bytes(place[name])[: count - 1].decode("utf-8", "replace")


def _size(cameras: int, children: int, rows: int) -> int:
    return HEAD.itemsize + children * CHILD.itemsize + cameras * (CAMERA.itemsize + rows * ROW.itemsize)
