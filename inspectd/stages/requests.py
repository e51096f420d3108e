"""Carries out the requests of contract §5 in the publisher, which has journal, table and the way to the captures."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from inspectd import control
from inspectd.control import ErrorCode, RequestError
from inspectd.errors import JournalError
from inspectd.log import get_logger
from inspectd.records import DaemonState, TriggerKind
from inspectd.stages.figures import Tally, process_figures, quantiles
from inspectd.stages.station_rules import Match
from inspectd.transport.sockets import Bell
from inspectd.transport.tickets import ROWS

if TYPE_CHECKING:
    from inspectd.journal.verdicts import Entry, Journal
    from inspectd.stages.answers import Frozen
    from inspectd.stages.lifecycle import Life
    from inspectd.stages.reading import JournalReader
    from inspectd.stages.stations import Station
    from inspectd.telemetry import Metrics
    from inspectd.transport.endpoints import ControlSocket
    from inspectd.transport.pipes import Commands
    from inspectd.transport.rows import Row
    from inspectd.transport.tickets import CameraView

T = TypeVar("T")
TRIGGER_PATIENCE_NS = 1_000_000_000
SERVE_NS = 5_000_000
"""Requests may take so much of a turn: whoever asks without a pause waits, the verdicts do not."""
TRIGGER_READ_S = 0.05
"""A journal that does not know a trigger in that time does not know it: what is new must not wait (contract I4)."""
READ_LIMIT_NS = 1_000_000_000
"""Who waits to read is told after so long a silence of the disk."""
MAX_WAITING = 1000
MAX_HISTORY_BYTES = 2 << 20
"""A thousand verdicts without many regions; who gets fewer than he asked for asks again from the last one."""
MAX_NOTED = 100
MAX_KNOWN = 10_000
"""Trigger ids whose seq is kept at hand; older ones are in the journal."""


@dataclass(slots=True)
class _Waiter:
    """A client that waits for a trigger to be accepted and, if asked so, for its verdict."""

    envelope: list[bytes]
    request_id: str
    wants_verdict: bool
    since_ns: int
    seq: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """A client whose reply is being read, and how it is made of what is found."""

    envelope: list[bytes]
    request_id: str
    found: Future[Any]
    reply: Callable[[Any], tuple[bytes, ...]]
    asked_ns: int


class Requests:
    """The publisher's side of `control`.

    Args:
        triggers: reads which triggers were accepted, so that these wait behind no client's history.
        reader: reads what clients ask for; it rings the bell when something was read, and `serve` sends it.
        state: the daemon's state at present.
        find_picture: where the evidence of a session, camera and seq lies in its folder, None where there is none.
        stations: the stations, by name.
    """

    def __init__(
        self,
        *,
        life: Life,
        triggers: JournalReader,
        reader: JournalReader,
        bell: Bell,
        socket: ControlSocket,
        commands: Commands,
        metrics: Metrics,
        state: Callable[[], DaemonState],
        find_picture: Callable[[str, str, int], str | None],
        stations: Mapping[str, Station],
    ) -> None:
        self._life = life
        self._table = life.table
        self._triggers = triggers
        self._reader = reader
        self._bell = bell
        self._reading: list[_Reading] = []
        self._read_ns = 0
        self._socket = socket
        self._commands = commands
        self._metrics = metrics
        self._state = state
        self._find_picture = find_picture
        self._stations = stations
        self._waiting: dict[tuple[str, str], list[_Waiter]] = {}
        self._seqs: dict[tuple[str, str], int] = {}
        self._answered_before = {name: self._view(name).answered_through for name in self._table.cameras}
        self._journal_is_read = True
        self._noted: deque[tuple[int, list[bytes], control.Request]] = deque()
        self._knows_all = not any(self._answered_before.values())
        """Whether `_seqs` holds every trigger of the session: this publisher is its first, and none was forgotten."""
        self._tallies = {name: Tally(after_seq=seq) for name, seq in self._answered_before.items()}

    def serve(self, now_ns: int) -> None:
        """Answers what waits on the socket, for a short time a turn, and clients whose trigger no capture took."""
        self._reply_read()
        until_ns = time.monotonic_ns() + SERVE_NS
        while self._noted and time.monotonic_ns() < until_ns:
            self._answer(*self._noted.popleft())
        for each in self._parsed(until_ns) if not self._noted else ():
            self._answer(*each)
        self._refuse_untaken(now_ns)
        for name, tally in self._tallies.items():
            tally.look(now_ns, *self._counts(name))

    def note(self) -> None:
        """Takes in what waits on the socket, for the next turn: a trigger counts from when it came.

        What is no request is refused at once: nobody waits for a disk to be told so.
        """
        until_ns = time.monotonic_ns() + SERVE_NS
        while len(self._noted) < MAX_NOTED and (each := next(self._parsed(until_ns), None)) is not None:
            self._noted.append(each)

    def _parsed(self, until_ns: int) -> Iterator[tuple[int, list[bytes], control.Request]]:
        """What waits on the socket, and when it was taken; what is no request is refused on the way."""
        for envelope, body in self._socket.requests():
            try:
                yield time.monotonic_ns(), envelope, control.parse(body)
            except RequestError as error:
                self._refuse(envelope, error)
            if time.monotonic_ns() > until_ns:
                return

    def _answer(self, came_ns: int, envelope: list[bytes], request: control.Request) -> None:
        self._reply(envelope, lambda: self._carry_out(request, envelope, came_ns))

    def _reply(self, envelope: list[bytes], work: Callable[[], tuple[bytes, ...]]) -> None:
        """Sends what the work gives, if it gives anything yet."""
        try:
            reply = work()
        except RequestError as error:
            self._refuse(envelope, error)
        else:
            if reply:
                self._socket.reply(envelope, *reply)

    def _refuse(self, envelope: list[bytes], error: RequestError) -> None:
        self._metrics.bad_requests.inc()
        self._socket.reply(envelope, control.refused(error))

    def row_accepted(self, camera: str, row: Row) -> None:
        """Tells the clients whose trigger this is its `seq`. The row is the truth, whatever became of its capture."""
        if row.trigger_id is None:
            return
        key = (camera, row.trigger_id)
        self._remember(key, row.seq)
        for waiter in self._waiting.get(key, []):
            waiter.seq = row.seq
            if not waiter.wants_verdict:
                self._socket.reply(waiter.envelope, control.accepted(waiter.request_id, seq=row.seq))
        self._keep_waiting(key, [waiter for waiter in self._waiting.get(key, []) if waiter.wants_verdict])

    def answered(self, frozen: Frozen) -> None:
        """Gives a verdict to the clients that wait for it, and counts it for `status`."""
        verdict = frozen.verdict
        self._tallies[verdict.camera].count(verdict)
        if verdict.trigger.id is None:
            return
        key = (verdict.camera, verdict.trigger.id)
        for waiter in self._waiting.pop(key, []):
            body = json.loads(frozen.body)
            self._socket.reply(waiter.envelope, control.accepted(waiter.request_id, seq=verdict.seq, verdict=body))

    # -- one method a request ---------------------------------------------------------------------------------------

    def _carry_out(self, request: control.Request, envelope: list[bytes], now_ns: int) -> tuple[bytes, ...]:
        if not isinstance(request, control.Status | control.Reload) and request.camera not in self._table.cameras:
            names = ", ".join(self._table.cameras)
            message = f"camera: no camera {request.camera!r}; there are {names}"
            raise RequestError(ErrorCode.UNKNOWN_CAMERA, message, request.id)
        match request:
            case control.Status():
                return (control.accepted(request.id, **self._status(now_ns)),)
            case control.History():
                return self._history(request, envelope)
            case control.MaskRequest():
                return self._mask(request, envelope)
            case control.TriggerRequest():
                return self._trigger(request, envelope, now_ns)
            case control.Pause() | control.Resume():
                for camera in self._cameras_of(request.camera):
                    self._view(camera).paused = isinstance(request, control.Pause)
                return (control.accepted(request.id),)
            case control.Reload() | control.RecipeRequest():
                message = f"op: {request.op} needs a restart of the daemon in this version"
                raise RequestError(ErrorCode.UNAVAILABLE, message, request.id)

    def _history(self, request: control.History, envelope: list[bytes]) -> tuple[bytes, ...]:
        session = request.session or self._table.session

        def reply(found: list[tuple[int, bytes]]) -> tuple[bytes, ...]:
            places = {seq: self._find_picture(session, request.camera, seq) for seq, _ in found}
            pictures = {str(seq): place for seq, place in places.items() if place is not None}
            return (control.verdicts(request.id, [body for _, body in found], pictures),)

        return self._read(
            envelope,
            request.id,
            lambda journal: journal.bodies(
                request.camera, request.since_seq, session=session, limit=request.limit, max_bytes=MAX_HISTORY_BYTES
            ),
            reply,
        )

    def _mask(self, request: control.MaskRequest, envelope: list[bytes]) -> tuple[bytes, ...]:
        session = request.session or self._table.session

        def reply(png: bytes | None) -> tuple[bytes, ...]:
            if png is None:
                message = f"seq: no mask for {request.camera} {request.seq} in session {session}"
                raise RequestError(ErrorCode.NOT_FOUND, message, request.id)
            return control.accepted(request.id, seq=request.seq), png

        return self._read(
            envelope, request.id, lambda journal: journal.mask(session, request.camera, request.seq), reply
        )

    def _trigger(self, request: control.TriggerRequest, envelope: list[bytes], now_ns: int) -> tuple[bytes, ...]:
        cameras = self._life.charge.settings.cameras
        kind = TriggerKind(cameras[self._cameras_of(request.camera)[0]].trigger.kind)
        if kind is not TriggerKind.EXTERNAL:
            message = f'camera: {request.camera} has trigger.kind = "{kind}"; only "external" takes requests'
            raise RequestError(ErrorCode.BAD_REQUEST, message, request.id)
        if self._table.stopping:
            raise RequestError(ErrorCode.UNAVAILABLE, "trigger: the daemon stops", request.id)
        station = self._stations.get(request.camera)
        if station is not None and station.rule.match is Match.PART_ID and request.part_id is None:
            message = f'part_id: missing; {request.camera} has match = "part_id"'
            raise RequestError(ErrorCode.BAD_REQUEST, message, request.id)
        key = (request.camera, request.trigger_id)
        seq = self._seq_of(*key)
        if seq is not None and (not request.wait or seq <= self._view(request.camera).answered_through):
            return self._known_trigger(request, envelope, seq)
        if sum(map(len, self._waiting.values())) >= MAX_WAITING:
            raise RequestError(ErrorCode.UNAVAILABLE, f"trigger: {MAX_WAITING} requests wait already", request.id)
        first = seq is None and key not in self._waiting
        waiter = _Waiter(envelope, request.id, request.wait, now_ns, seq)
        self._waiting.setdefault(key, []).append(waiter)
        if first and not self._send_trigger(request, now_ns):
            self._keep_waiting(key, [])
            raise RequestError(ErrorCode.UNAVAILABLE, f"camera: {request.camera} takes no triggers now", request.id)
        return ()

    def _send_trigger(self, request: control.TriggerRequest, now_ns: int) -> bool:
        """Sends a trigger on its way. One for a station is accepted here, first; then it goes to every camera of it."""
        command, station = _trigger_command(request, now_ns), self._stations.get(request.camera)
        if station is None:
            return self._commands.send(f"capture-{request.camera}", command)
        if not self._table.accepting or self._table.stopping:
            return False
        if station.request(request.trigger_id, request.part_id, now_ns, request.deadline_ms) is None:
            return False
        for camera in station.rule.cameras:
            self._commands.send(f"capture-{camera}", command)  # one that does not take it is missing at the deadline
        return True

    def _cameras_of(self, name: str) -> tuple[str, ...]:
        """The cameras that a request is about: one, or those of a station."""
        return self._stations[name].rule.cameras if name in self._stations else (name,)

    def _seq_of(self, camera: str, trigger_id: str) -> int | None:
        """The seq that a trigger was given before, None where it is new."""
        self._recall(camera)
        key = (camera, trigger_id)
        unknown = key not in self._seqs and not self._knows_all
        if unknown and (seq := self._journaled_seq(camera, trigger_id)) is not None:
            self._remember(key, seq)
        return self._seqs.get(key)

    def _recall(self, camera: str) -> None:
        """Once: what an earlier publisher answered, as far as the table still knows it; the journal may be lost."""
        view, through = self._view(camera), self._answered_before.pop(camera, 0)
        for seq in range(max(1, view.high_water - ROWS + 1), through + 1):
            row = view.row(seq)
            if row is not None and row.trigger_id is not None:
                self._remember((camera, row.trigger_id), seq)

    def _journaled_seq(self, camera: str, trigger_id: str) -> int | None:
        """None too where the journal cannot be read: what is new must not wait for it (contract I4)."""
        try:
            seq = self._triggers.read(
                lambda journal: journal.seq_of_trigger(self._table.session, camera, trigger_id), TRIGGER_READ_S
            )
        except JournalError as error:
            self._say_unreadable(error)
            return None
        self._journal_is_read = True
        return seq

    def _remember(self, key: tuple[str, str], seq: int) -> None:
        self._seqs[key] = seq
        while len(self._seqs) > MAX_KNOWN:
            del self._seqs[next(iter(self._seqs))]
            self._knows_all = False

    def _known_trigger(self, request: control.TriggerRequest, envelope: list[bytes], seq: int) -> tuple[bytes, ...]:
        """The reply to a trigger id that was accepted before: the same seq, never a second inspection."""
        if not request.wait:
            return (control.accepted(request.id, seq=seq),)

        def reply(entries: list[Entry]) -> tuple[bytes, ...]:
            if not entries or entries[0].seq != seq:
                raise RequestError(ErrorCode.NOT_FOUND, f"trigger_id: verdict {seq} is not journaled yet", request.id)
            return (control.accepted(request.id, seq=seq, verdict=json.loads(entries[0].body)),)

        return self._read(
            envelope,
            request.id,
            lambda journal: journal.since(request.camera, seq - 1, session=self._table.session, limit=1),
            reply,
        )

    def _refuse_untaken(self, now_ns: int) -> None:
        for key, waiters in list(self._waiting.items()):
            gone = [each for each in waiters if each.seq is None and now_ns - each.since_ns > TRIGGER_PATIENCE_NS]
            for waiter in gone:
                error = RequestError(
                    ErrorCode.UNAVAILABLE, f"camera: {key[0]} did not take the trigger", waiter.request_id
                )
                self._socket.reply(waiter.envelope, control.refused(error))
            if gone:
                self._keep_waiting(key, [each for each in waiters if each not in gone])

    def _keep_waiting(self, key: tuple[str, str], waiters: list[_Waiter]) -> None:
        if waiters:
            self._waiting[key] = waiters
        else:
            self._waiting.pop(key, None)

    def _read(
        self,
        envelope: list[bytes],
        request_id: str,
        query: Callable[[Journal], T],
        reply: Callable[[T], tuple[bytes, ...]],
    ) -> tuple[bytes, ...]:
        """Has the journal read for a client. Nothing is to be replied here: `_reply_read` does, in a later turn.

        Raises:
            RequestError: too many wait already.
        """
        try:
            found = self._reader.ask(query)
        except JournalError as error:
            raise self._unreadable(request_id, error) from error
        self._reading.append(_Reading(envelope, request_id, found, reply, time.monotonic_ns()))
        found.add_done_callback(lambda _: self._bell.ring())
        return ()

    def _reply_read(self) -> None:
        """Replies to the clients for whom the journal was read, and to all who wait where it has long been silent."""
        now_ns = time.monotonic_ns()
        ripe = [each for each in self._reading if each.found.done()]
        if ripe:
            self._read_ns = now_ns
        ripe += [each for each in self._reading if now_ns - max(self._read_ns, each.asked_ns) >= READ_LIMIT_NS]
        self._reading = [each for each in self._reading if each not in ripe]
        for each in ripe:
            self._reply(each.envelope, partial(self._reply_of, each))

    def _reply_of(self, each: _Reading) -> tuple[bytes, ...]:
        try:
            found = self._reader.result(each.found, 0)
        except JournalError as error:
            raise self._unreadable(each.request_id, error) from error
        self._journal_is_read = True
        return each.reply(found)

    def _unreadable(self, request_id: str, error: JournalError) -> RequestError:
        self._say_unreadable(error)
        return RequestError(ErrorCode.UNAVAILABLE, f"journal: {error}", request_id)

    def _say_unreadable(self, error: JournalError) -> None:
        """Once, until it is read again."""
        if self._journal_is_read:
            get_logger().error("journal_unreadable", error=str(error))
        self._journal_is_read = False

    def _view(self, camera: str) -> CameraView:
        return self._table.camera(self._table.cameras.index(camera))

    def _status(self, now_ns: int) -> dict[str, Any]:
        return {
            "session": self._table.session,
            "state": self._state(),
            "uptime_s": round((now_ns - self._table.started_ns) / 1e9, 3),
            "journal": {"commit_ms": quantiles(self._metrics.commits_ms)},
            "processes": [process_figures(child, now_ns) for child in self._table.children()],
            "cameras": {name: self._camera_status(name, now_ns) for name in self._table.cameras},
        }

    def _counts(self, name: str) -> tuple[int, int]:
        """How many frames were read and verdicts given in this session."""
        view = self._view(name)
        return view.frames_read, view.answered_through

    def _camera_status(self, name: str, now_ns: int) -> dict[str, Any]:
        """`decisions` and `latency_ms` are of what this publisher answered: all after `decisions_after_seq`."""
        view, tally = self._view(name), self._tallies[name]
        return {
            "state": view.state,
            "paused": bool(view.paused),
            "recipe": ", ".join(dict.fromkeys(self._life.charge.recipes[each].name for each in self._cameras_of(name))),
            "last_seq": view.answered_through,
            "waiting": view.high_water - view.answered_through,
            "frames_read": view.frames_read,
            "frames_skipped": view.frames_skipped,
            "frames_damaged": view.frames_damaged,
            "rates_per_s": tally.rates(now_ns, *self._counts(name)),
            "decisions": dict(tally.decisions),
            "decisions_after_seq": tally.after_seq,
            "latency_ms": quantiles(tally.totals_ms),
        }


def _trigger_command(request: control.TriggerRequest, now_ns: int) -> bytes:
    fields = request.model_dump(include={"op", "trigger_id", "part_id", "deadline_ms"})
    return json.dumps(fields | {"arrived_ns": now_ns}).encode()
