"""The ticket table: the truth about what was accepted, in shared memory. Whoever dies, it is still there.

To accept a frame, capture writes its row and then raises the camera's `high_water`: that store is the moment of
acceptance. A row beyond the mark is never read, and the next generation of capture overwrites it. Each word has one
writer at a time: capture its camera's rows, state and counters; the worker `results_dropped` and a row's `result_*`;
the publisher `sent_through`, `answered_through`, `paused`, `preview_wanted` and what it told, and all of a station,
which has no capture; the supervisor the header; each child its heartbeat. No locks: nothing a killed process held can
stop another. `memory.py` says why words are whole and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from inspectd.errors import TransportError
from inspectd.records import CameraState, Reason
from inspectd.transport.memory import WORD_BYTES, Segment, fence
from inspectd.transport.rows import (
    AT,
    ROW_WORDS,
    NewRow,
    Row,
    Words,
    fill,
    gate_code,
    join,
    load,
    store,
    unreadable,
)

MAGIC = 0x494E_5350_5449_434B
VERSION = 7
ROWS = 1024
HEAD_WORDS = 16
CHILD_WORDS = 16
CAMERA_WORDS = 16
"""Two cache lines each, so that nobody's heartbeat costs his neighbour.

`MAGIC` stands for these places, for the names in them and for the marks `high_water` and `answered_through`; `VERSION`
for all else. So a daemon can answer what one of another version left, though it cannot read its rows.
"""
TOLD_WORDS = 8
SESSION_WORDS = slice(12, 16)
CHILD_NAME_WORDS = slice(8, 14)
CAMERA_NAME_WORDS = slice(12, 16)
_STATES = tuple(CameraState)


class _Word:
    """An aligned 8-byte word at a fixed place in a record: one load, one store."""

    def __init__(self, at: int) -> None:
        self._at = at

    def __get__(self, record: _Record, owner: type[_Record]) -> int:
        return int(record.words[self._at])

    def __set__(self, record: _Record, value: int) -> None:
        record.words[self._at] = value


class _StateWord:
    """A camera's state in such a word; a number that is none reads as lost."""

    def __init__(self, at: int) -> None:
        self._at = at

    def __get__(self, record: _Record, owner: type[_Record]) -> CameraState:
        code = int(record.words[self._at])
        return _STATES[code] if 0 <= code < len(_STATES) else CameraState.LOST

    def __set__(self, record: _Record, state: CameraState) -> None:
        record.words[self._at] = _STATES.index(state)


class _Record:
    def __init__(self, words: Words) -> None:
        self.words = words


class _Head(_Record):
    magic = _Word(0)
    version = _Word(1)
    cameras = _Word(2)
    children = _Word(3)
    rows = _Word(4)
    started_ns = _Word(5)
    worker_generation = _Word(6)
    ready_generation = _Word(7)
    publisher_generation = _Word(8)
    accepting = _Word(9)
    stopping = _Word(10)


class ChildView(_Record):
    """One process of the daemon.

    Attributes:
        name: `publisher`, `worker` or `capture-CAMERA`.
    """

    pid = _Word(0)
    generation = _Word(1)
    restarts = _Word(2)
    beat_ns = _Word(3)
    beat_limit_ns = _Word(4)

    def __init__(self, words: Words) -> None:
        super().__init__(words)
        self.name = _name(words, CHILD_NAME_WORDS)

    def beat(self, now_ns: int) -> None:
        """The work loop has turned."""
        self.beat_ns = now_ns

    def limit(self, limit_ns: int) -> None:
        """From now on a silence of so long is a death."""
        self.beat_limit_ns = limit_ns

    def age_s(self, now_ns: int) -> float:
        """Seconds since the last heartbeat."""
        return (now_ns - self.beat_ns) / 1e9

    def born(self, pid: int, generation: int) -> None:
        """A process fills this place."""
        self.pid, self.generation = pid, generation
        self.restarts = max(0, generation - 1)


class CameraView(_Record):
    """One camera: its mark of acceptance, its counters and its rows."""

    high_water = _Word(0)
    answered_through = _Word(1)
    state = _StateWord(2)
    paused = _Word(3)
    capture_generation = _Word(4)
    frames_read = _Word(5)
    frames_skipped = _Word(6)
    frames_damaged = _Word(7)
    wakeups_dropped = _Word(8)
    results_dropped = _Word(9)
    preview_wanted = _Word(10)
    sent_through = _Word(11)
    """Raised before a verdict is handed to the socket, `answered_through` after: of what lies beyond this mark nothing
    was ever sent, and what lies between the two, at most one, may have been."""

    def __init__(self, words: Words, rows: Words, count: int) -> None:
        super().__init__(words)
        self._rows = rows
        self._count = count

    def accept(self, row: NewRow, after_step: Callable[[str], None] = lambda _: None) -> int | None:
        """Accepts a frame or trigger.

        Args:
            after_step: told of each store, so that a test can kill between any two.

        Returns:
            its seq; None where the table is full of unanswered rows: then nothing was accepted.

        Raises:
            ValueError: an id is longer than 512 bytes in UTF-8 (128 characters always fit), or there are too many
                shots; nothing was accepted.
        """
        seq = self.high_water + 1
        if seq - self.answered_through > self._count:
            return None
        place = self._place(seq)
        place[AT["seq"]] = 0  # whoever reads the answered row that was here finds out
        fence()
        after_step("opened")
        store(place, row, after_step)
        fence()
        place[AT["seq"]] = seq
        after_step("named")
        fence()
        self.high_water = seq
        after_step("accepted")
        return seq

    def row(self, seq: int) -> Row | None:
        """The row of an accepted seq; None where it was never accepted, has been overwritten, or cannot be read."""
        return load(self._place(seq), seq) if self._rows and 0 < seq <= self.high_water else None

    def unanswered(self) -> Iterator[Row]:
        """Yields the accepted rows that have no verdict, in order and without a gap.

        One that cannot be read (memory that no process of ours wrote, or of another version) comes decided as an
        internal error, for it too must be answered.
        """
        first, last = self.answered_through + 1, self.high_water
        for seq in range(first, min(last, first + self._count - 1) + 1):
            yield self.row(seq) or unreadable(seq)

    def fill(self, seq: int, row: NewRow) -> bool:
        """Gives an accepted trigger its frame. False where its row has been used again: it was answered long ago."""
        place = self._place(seq)
        if place[AT["seq"]] != seq:
            return False
        fill(place, row)
        return True

    def decide(self, seq: int, gate: Reason) -> bool:
        """Decides an accepted trigger as an error. False where its row has been used again."""
        place = self._place(seq)
        if place[AT["seq"]] != seq:
            return False
        place[AT["gate"]] = gate_code(gate)
        return True

    def join(self, seq: int, member: int, member_seq: int) -> None:
        """A station's row takes in the row of one more of its cameras. Only the publisher calls this."""
        join(self._place(seq), member, member_seq)

    def mark_result(self, seq: int, publisher_generation: int, now_ns: int) -> None:
        """The worker has sent a result for a row, to that publisher.

        Capture may use the row again at this moment; so the mark names the seq that it is about, last.
        """
        place = self._place(seq)
        place[AT["result_seq"]] = 0
        fence()
        place[AT["result_ns"]] = now_ns
        place[AT["result_publisher"]] = publisher_generation
        fence()
        place[AT["result_seq"]] = seq

    def _place(self, seq: int) -> Words:
        at = seq % self._count * ROW_WORDS
        return self._rows[at : at + ROW_WORDS]


class Told(_Record):
    """What events have said of one camera: a publisher that replaces another one goes on from there."""

    state = _StateWord(0)
    frames_skipped = _Word(1)
    frames_damaged = _Word(2)
    capture_generation = _Word(3)


class ToldOfDaemon(_Record):
    """What events have said of the daemon as a whole."""

    worker_generation = _Word(0)
    journal_failed = _Word(1)


class Table:
    """The table of one daemon.

    Attributes:
        session: the daemon's session.
        cameras: the names of its cameras.
        started_ns: when it started.
        readable: whether it is of this version.
    """

    def __init__(self, segment: Segment, *, any_version: bool = False) -> None:
        self._segment = segment
        self.name = segment.name
        words = segment.words
        if len(words) < HEAD_WORDS:
            raise TransportError(f"{segment.name}: not a ticket table")
        self._head = _Head(words[:HEAD_WORDS])
        self.readable = self._head.version == VERSION
        if self._head.magic != MAGIC or not (self.readable or any_version):
            raise TransportError(f"{segment.name}: not a ticket table of this version")
        counts = self._head.cameras, self._head.children, self._head.rows
        if min(counts) < 1 or (len(words) != _size(*counts) if self.readable else len(words) < _size(*counts[:2], 0)):
            raise TransportError(f"{segment.name}: not a whole ticket table")
        self._children = [ChildView(place) for place in _child_places(words, counts[1])]
        self._cameras = [
            CameraView(place, rows if self.readable else words[:0], counts[2])
            for place, rows in _camera_places(words, *counts)
        ]
        told = _told_places(words, counts[0]) if self.readable else []
        self._told = [Told(place) for place in told[:-1]]
        self._told_of_daemon = [ToldOfDaemon(place) for place in told[-1:]]
        self.session = _name(words, SESSION_WORDS)
        self.cameras = tuple(_name(view.words, CAMERA_NAME_WORDS) for view in self._cameras)
        self.started_ns = self._head.started_ns

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
        """Makes the table's segment. What is killed in the middle leaves no table: its mark is written last.

        Raises:
            TransportError: shared memory cannot be had.
            ValueError: a name is longer than its place.
        """
        counts = len(cameras), len(children), rows
        segment = Segment.create(name, _size(*counts) * WORD_BYTES)
        head = _Head(segment.words[:HEAD_WORDS])
        head.version, head.started_ns = VERSION, started_ns
        head.cameras, head.children, head.rows = counts
        _put_name(segment.words, SESSION_WORDS, session)
        for place, child in zip(_child_places(segment.words, counts[1]), children, strict=True):
            _put_name(place, CHILD_NAME_WORDS, child)
        for (place, _), camera in zip(_camera_places(segment.words, *counts), cameras, strict=True):
            _put_name(place, CAMERA_NAME_WORDS, camera)
        fence()
        head.magic = MAGIC
        return cls(segment)

    @classmethod
    def attach(cls, name: str, *, any_version: bool = False) -> Table:
        """Maps a table that exists.

        Args:
            any_version: take one of another version too; it is not `readable`, and all of its rows read as None.

        Raises:
            TransportError: there is none, or it is of another version.
        """
        return cls(Segment.attach(name), any_version=any_version)

    def camera(self, index: int) -> CameraView:
        """The view of one camera."""
        return self._cameras[index]

    def told(self, index: int) -> Told:
        """What was told of one camera."""
        return self._told[index]

    @property
    def told_of_daemon(self) -> ToldOfDaemon:
        """What was told of the daemon as a whole."""
        return self._told_of_daemon[0]

    def child(self, index: int) -> ChildView:
        """The view of one process."""
        return self._children[index]

    def children(self) -> list[ChildView]:
        """The views of all processes."""
        return list(self._children)

    @property
    def spill_name(self) -> str:
        """The name of the segment with what was sent before it was journaled."""
        return f"{self.name.removesuffix('-table')}-spill"

    def ring_name(self, camera: int) -> str:
        """The name of a camera's ring."""
        return f"{self.name.removesuffix('-table')}-ring-{self.cameras[camera]}"

    def worker_is_ready(self, generation: int) -> None:
        """A generation of the worker is warm."""
        self._head.ready_generation = generation

    @property
    def worker_ready(self) -> bool:
        """Whether the living generation of the worker is warm."""
        return self.worker_generation > 0 and self._head.ready_generation == self.worker_generation

    @property
    def worker_generation(self) -> int:
        """The living generation of the worker; raised by the supervisor when one has died."""
        return self._head.worker_generation

    @worker_generation.setter
    def worker_generation(self, generation: int) -> None:
        self._head.worker_generation = generation

    @property
    def publisher_generation(self) -> int:
        """The living generation of the publisher."""
        return self._head.publisher_generation

    @publisher_generation.setter
    def publisher_generation(self, generation: int) -> None:
        self._head.publisher_generation = generation

    @property
    def accepting(self) -> bool:
        """Whether frames are accepted: from the first warm worker on."""
        return bool(self._head.accepting)

    @accepting.setter
    def accepting(self, accepting: bool) -> None:
        self._head.accepting = accepting

    @property
    def stopping(self) -> bool:
        """Whether the daemon drains."""
        return bool(self._head.stopping)

    @stopping.setter
    def stopping(self, stopping: bool) -> None:
        self._head.stopping = stopping

    def close(self) -> None:
        """Lets go of the mapping, once no view of it is in use any more."""
        self._children, self._cameras, self._told, self._told_of_daemon = [], [], [], []
        self._segment.close()


def _size(cameras: int, children: int, rows: int) -> int:
    """The words of a table."""
    return (
        HEAD_WORDS + children * CHILD_WORDS + cameras * (CAMERA_WORDS + rows * ROW_WORDS) + (cameras + 1) * TOLD_WORDS
    )


def _child_places(words: Words, children: int) -> list[Words]:
    return [words[at : at + CHILD_WORDS] for at in range(HEAD_WORDS, HEAD_WORDS + children * CHILD_WORDS, CHILD_WORDS)]


def _camera_places(words: Words, cameras: int, children: int, rows: int) -> list[tuple[Words, Words]]:
    """The places of each camera and of its rows."""
    first = HEAD_WORDS + children * CHILD_WORDS
    first_rows, size = first + cameras * CAMERA_WORDS, rows * ROW_WORDS
    return [
        (
            words[first + index * CAMERA_WORDS : first + (index + 1) * CAMERA_WORDS],
            words[first_rows + index * size : first_rows + (index + 1) * size],
        )
        for index in range(cameras)
    ]


def _told_places(words: Words, cameras: int) -> list[Words]:
    """They stand at the end, behind all places that another version may have, too; the daemon's is the last."""
    first = len(words) - (cameras + 1) * TOLD_WORDS
    return [words[first + index * TOLD_WORDS : first + (index + 1) * TOLD_WORDS] for index in range(cameras + 1)]


def _put_name(words: Words, place: slice, name: str) -> None:
    target = words[place]
    encoded = name.encode("ascii")
    if len(encoded) > target.nbytes:
        raise ValueError(f"name {name!r}: at most {target.nbytes} bytes are allowed")
    target[:] = memoryview(encoded.ljust(target.nbytes, b"\0")).cast("q")


def _name(words: Words, place: slice) -> str:
    return words[place].tobytes().rstrip(b"\0").decode("ascii", "replace")
