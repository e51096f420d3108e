"""The capture of one camera: reads frames, decides which to inspect, and accepts them. One process a camera.

To accept a frame: its pixels go into a slot of the ring, its row into the ticket table, then the high-water mark is
raised. That store is the moment of acceptance; the wake-ups that follow carry nothing and may be lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from inspectd.errors import SourceError
from inspectd.log import get_logger
from inspectd.records import CameraState, Frame, PixelsU8, Reason, TriggerKind
from inspectd.settings import DropSource, FileSource, FolderSource
from inspectd.sources.base import EndOfSource, FrameSource
from inspectd.sources.decoding import keep_large_blocks
from inspectd.sources.gates import Gates
from inspectd.sources.open import open_source
from inspectd.sources.presence import Part, Parts, Taken
from inspectd.sources.timing import Backoff
from inspectd.sources.triggers import Continuous, External, Request
from inspectd.stages.lifecycle import Life
from inspectd.transport.pipes import CommandLine, Outbox, stage_endpoint
from inspectd.transport.ring import Ring
from inspectd.transport.rows import NewRow, Shot
from inspectd.transport.tickets import ROWS

READ_S = 0.05
FULL_S = 0.002
UNPRESSED_NS = 200_000_000
"""Within this time the publisher has turned at least once, woken or not."""
SILENT_LIMIT_NS = 2_000_000_000
MOST_IN_ZONE = 32
"""Parts that can lie in a zone at the same time: so many are told to a new generation."""


def work(life: Life) -> None:
    """One camera's process."""
    keep_large_blocks()
    Capture(life, life.charge.camera).run()


class Capture:
    """One generation of one camera's capture. `opens` opens its source: a benchmark has one of its own."""

    def __init__(self, life: Life, camera: str, opens: Callable[..., FrameSource] = open_source) -> None:
        self._life, self._opens = life, opens
        self._table = life.table
        index = self._table.cameras.index(camera)
        self._view = self._table.camera(index)
        self._ring = Ring.attach(self._table.ring_name(index))
        settings = life.charge.settings
        self._camera = settings.cameras[camera]
        self._recipe = life.charge.recipes[camera]
        self._kind = TriggerKind(self._camera.trigger.kind)
        self._simulated = isinstance(self._camera.source, FileSource | FolderSource | DropSource)
        self._fast = getattr(self._camera.source, "pace", None) == "fast"
        self._continuous = Continuous(every_nth=self._camera.trigger.every_nth, max_fps=self._camera.trigger.max_fps)
        self._parts: Parts | None = None
        self._gates = Gates(self._camera, slot_bytes=self._ring.slot_bytes, inspected=self._last_inspected())
        self._external = External(self._left_requests())
        self._gated: tuple[Frame | None, Reason | None] = None, None
        self._trigger_ids = self._left_trigger_ids()
        self._backoff = Backoff()
        self._missed_before = 0
        self._opened = self._loss_untold = False

        def outbox(stage: str, generation: str) -> Outbox:
            return Outbox(
                lambda number: stage_endpoint(settings.sockets_dir, stage, number, "wake"),
                lambda: getattr(self._table, generation),
            )

        self._wakes = (outbox("worker", "worker_generation"), outbox("publisher", "publisher_generation"))
        self._commands = CommandLine(
            f"capture-{camera}",
            lambda number: stage_endpoint(settings.sockets_dir, "publisher", number, "commands"),
            lambda: self._table.publisher_generation,
        )

    def run(self) -> None:
        """Opens the source, reads it until it ends, and opens it again whenever it is lost, until told to stop."""
        self._view.capture_generation = self._life.charge.generation
        self._life.settle()
        self._life.heart.limit(SILENT_LIMIT_NS)
        self._ring.reclaim(self._view.high_water)
        start_index = self._resume_index()
        while not self._stopping():
            try:
                source = self._open(start_index)
            except SourceError as error:
                self._lose(error)
                continue
            try:
                self._read(source)
            except EndOfSource:
                self._end()
                return
            except SourceError as error:
                self._lose(error)
            finally:
                start_index = source.next_index
                source.close()
        self._fail_all(Reason.INTERNAL)  # nobody has to wait for the end of the drain

    # -- the source -----------------------------------------------------------------------------------------------

    def _resume_index(self) -> int:
        """Where a new generation goes on: behind the last frame that was accepted."""
        for seq in range(self._view.high_water, 0, -1):
            row = self._view.row(seq)
            if row is None:
                break
            if row.frame_index >= 0:
                return max([row.frame_index, *(shot.frame_index for shot in row.shots)]) + 1
        return 0

    def _open(self, start_index: int) -> FrameSource:
        self._opened = False
        source = self._opens(self._camera.source, start_index=start_index)
        self._missed_before = source.frames_missed
        return source

    def _read(self, source: FrameSource) -> None:
        if source.simulated:
            self._view.state = CameraState.READY
        while not self._stopping():
            self._life.beat()
            self._take_requests()
            if not self._may_read(source):
                time.sleep(READ_S / 2)
                continue
            frame = source.read(READ_S)
            self._count_missed(source)
            self._fail_overdue(time.monotonic_ns())
            if frame is not None:
                self._back(frame)
                self._view.frames_read += 1
                self._backoff.reset()
                self._consider(frame)

    def _may_read(self, source: FrameSource) -> bool:
        """A recording waits until the daemon accepts; a live camera is drained all the while."""
        if not source.simulated:
            return True
        return self._table.accepting and not (self._fast and self._view.paused)

    def _lose(self, error: SourceError) -> None:
        """The source is gone: says so once, answers what waits for a frame, and waits before the next try."""
        if self._view.state is not CameraState.LOST:
            get_logger().warning("camera_lost", error=str(error))
            self._view.state = CameraState.LOST
            self._loss_untold = self._kind is not TriggerKind.EXTERNAL
        until_s = time.monotonic() + self._backoff.next_s()
        while not self._stopping() and time.monotonic() < until_s:
            self._life.beat()
            self._take_requests()
            self._fail_all(Reason.CAMERA_LOST)
            self._tell_loss()
            time.sleep(READ_S)

    def _tell_loss(self) -> None:
        """One error for a loss, also for one from before the daemon accepted anything: parts may pass unseen."""
        if self._loss_untold and self._accepting():
            self._loss_untold = False
            self._accept_error(Reason.CAMERA_LOST)

    def _back(self, frame: Frame) -> None:
        """Frames flow, for the first time or again. (That a camera is asked again each second is not worth a line.)"""
        if self._opened:
            return
        self._opened, self._loss_untold = True, False
        self._view.state = CameraState.READY
        height, width = frame.pixels_bgr.shape[:2]
        get_logger().info("source_opened", size_wh_px=(width, height), index=frame.index)

    def _end(self) -> None:
        """The recording is through: its last part is inspected, then only the heart beats."""
        for part in self._parts.flush() if self._parts is not None else ():
            self._inspect(part)
        self._fail_all(Reason.CAMERA_LOST)
        self._view.state = CameraState.ENDED
        get_logger().info("camera_ended", last_seq=self._view.high_water)
        while not self._stopping():
            self._life.beat()
            self._take_requests()
            self._fail_all(Reason.CAMERA_LOST)
            time.sleep(READ_S)

    def _last_inspected(self) -> PixelsU8 | None:
        """The picture that was accepted last, where its slot still holds it: a new generation must know a repeat."""
        row = self._view.row(self._view.high_water)
        if row is None or row.slot < 0:
            return None
        return self._ring.read(row.slot, row.slot_generation, row.height_px, row.width_px)

    # -- frames -----------------------------------------------------------------------------------------------------

    def _consider(self, frame: Frame) -> None:
        """Decides whether a frame is one to inspect."""
        self._gates.feed(frame)
        if frame.damage is not None:
            self._view.frames_damaged += 1
        if not self._accepting():
            return
        if self._kind is TriggerKind.EXTERNAL:
            for request in self._external.feed(frame):
                self._give(request, frame)
            return
        if self._kind is TriggerKind.PRESENCE:
            self._watch_for_parts(frame)
        elif self._continuous.wants(frame) or frame.damage is not None:
            self._inspect(Part(frames=(frame,)))

    def _watch_for_parts(self, frame: Frame) -> None:
        """One inspection for each part, and errors while no part could be seen: one may have passed."""
        if self._parts is None:
            self._parts = self._begin_presence()
        for part in self._parts.feed(frame, blind=self._gates.is_frozen):
            self._inspect(part)

    def _begin_presence(self) -> Parts:
        """A generation that replaces another does not take again what that one took.

        While nobody looked a part may have passed: of a live camera that is one error. A recording has waited.
        """
        last = self._view.row(self._view.high_water)
        replaces = self._life.charge.generation > 1 and not self._simulated
        if replaces and (last is None or last.gate is not Reason.CAMERA_LOST):
            self._accept_error(Reason.CAMERA_LOST)
        return Parts(self._camera.trigger, self._recipe, taken=self._taken_before(), recorded=self._simulated)

    def _taken_before(self) -> list[Taken]:
        """The parts that earlier generations took lately: they may still lie in the zone."""
        last = self._view.high_water
        rows = (self._view.row(seq) for seq in range(max(1, last - MOST_IN_ZONE + 1), last + 1))
        return [
            Taken(sighting=row.sighting, frame_index=row.frame_index, captured_ns=row.captured_ns)
            for row in rows
            if row is not None and row.sighting is not None
        ]

    def _inspect(self, part: Part) -> None:
        """Accepts a part with its pixels, or as an error where a gate says so or the ring is full."""
        gate = self._gates.refuse(part.best)
        slots = [] if gate is Reason.FRAME_CORRUPT else self._slots(len(part.frames))
        if not slots and gate is None:
            if self._camera.trigger.when_full == "skip" and self._kind is TriggerKind.CONTINUOUS:
                self._view.frames_skipped += 1
                return
            gate = Reason.OVERLOAD
        self._accept(self._row(part, gate=gate), part.frames, slots)

    def _slots(self, count: int) -> list[int]:
        """Free slots for the frames of one part; a recording that is read as fast as possible waits for them."""
        slots = self._ring.claim(self._view.answered_through, count)
        while not slots and self._fast and not self._stopping():
            self._life.beat()
            time.sleep(FULL_S)
            slots = self._ring.claim(self._view.answered_through, count)
        return slots

    def _row(self, part: Part, *, gate: Reason | None) -> NewRow:
        """The row of a part; its deadline counts from the first of its frames, so that it holds for each of them."""
        now_ns = time.monotonic_ns()
        frame, *others = part.frames
        height, width = frame.pixels_bgr.shape[:2]
        accepted_ns = min(each.arrived_ns for each in part.frames)
        deadline_ns = 0 if self._fast else accepted_ns + round(self._recipe.deadline_ms * 1e6)
        return NewRow(
            trigger_kind=self._kind,
            accepted_ns=accepted_ns,
            deadline_ns=deadline_ns,
            frame_index=frame.index,
            width_px=width,
            height_px=height,
            pts_s=frame.pts_s,
            captured_ns=frame.captured_ns,
            captured_utc_ns=frame.captured_utc_ns,
            capture_ms=(now_ns - frame.captured_ns) / 1e6,
            time_kind=frame.time_kind,
            gate=gate,
            simulated=self._simulated,
            shots=tuple(_shot(each, now_ns) for each in others),
            sighting=part.sighting,
        )

    def _accept(self, row: NewRow, frames: Sequence[Frame] = (), slots: Sequence[int] = ()) -> int | None:
        """The acceptance itself. None where the table is full: then nothing was accepted, and it is counted."""
        if slots:
            (slot, generation), *others = (self._written(*each) for each in zip(slots, frames, strict=True))
            shots = tuple(
                replace(shot, slot=at, slot_generation=written)
                for shot, (at, written) in zip(row.shots, others, strict=True)
            )
            row = replace(row, slot=slot, slot_generation=generation, shots=shots)
        seq = self._view.accept(row)
        while seq is None and self._fast and not self._stopping():
            self._life.beat()
            time.sleep(FULL_S)
            seq = self._view.accept(row)
        if seq is None:
            self._view.frames_skipped += 1
        else:
            self._wake(publisher=self._presses(row))
        return seq

    def _written(self, slot: int, frame: Frame) -> tuple[int, int]:
        """Puts a frame of the next row into a slot; gives the slot and its generation."""
        return slot, self._ring.write(slot, frame.pixels_bgr, self._view.high_water + 1)

    def _accept_error(self, reason: Reason) -> None:
        """Accepts something that no frame belongs to, already decided."""
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + round(self._recipe.deadline_ms * 1e6)
        row = NewRow(
            trigger_kind=self._kind,
            accepted_ns=now_ns,
            deadline_ns=deadline_ns,
            gate=reason,
            simulated=self._simulated,
        )
        self._accept(row)

    def _presses(self, row: NewRow) -> bool:
        """Whether the publisher should look at a row now; else it learns of it with its result, or at its next turn."""
        near = 0 < row.deadline_ns < time.monotonic_ns() + UNPRESSED_NS
        return row.gate is not None or row.slot < 0 or near

    def _wake(self, *, publisher: bool = True) -> None:
        worker, answerer = self._wakes
        for outbox in (worker, answerer) if publisher else (worker,):
            if outbox.send([b""]) is None:
                self._view.wakeups_dropped += 1

    # -- external triggers --------------------------------------------------------------------------------------------

    def _left_requests(self) -> list[Request]:
        """The triggers that the last generation accepted and has not given a frame."""
        return [
            Request(seq=row.seq, arrived_ns=row.accepted_ns, deadline_ns=row.deadline_ns)
            for row in self._view.unanswered()
            if row.trigger_kind is TriggerKind.EXTERNAL and row.slot < 0 and row.gate is None
        ]

    def _left_trigger_ids(self) -> dict[str, None]:
        """The ids of the triggers that were accepted lately, oldest first, as far as the table still knows them."""
        last = self._view.high_water
        rows = (self._view.row(seq) for seq in range(max(1, last - ROWS + 1), last + 1))
        return {row.trigger_id: None for row in rows if row is not None and row.trigger_id is not None}

    def _remember(self, trigger_id: str) -> None:
        self._trigger_ids[trigger_id] = None
        if len(self._trigger_ids) > ROWS:
            del self._trigger_ids[next(iter(self._trigger_ids))]

    def _take_requests(self) -> None:
        """Accepts the triggers that came: each is a row at once, before its frame is there."""
        for body in self._commands.commands():
            command = json.loads(body)
            if command["trigger_id"] in self._trigger_ids:  # a client that asks again, of another publisher perhaps
                continue
            arrived_ns = command["arrived_ns"]
            deadline_ms = command["deadline_ms"] or self._recipe.deadline_ms
            deadline_ns = arrived_ns + round(deadline_ms * 1e6)
            row = NewRow(
                trigger_kind=self._kind,
                trigger_id=command["trigger_id"],
                part_id=command["part_id"],
                accepted_ns=arrived_ns,
                deadline_ns=deadline_ns,
                gate=Reason.NOT_READY if not self._accepting() else None,
                simulated=self._simulated,
            )
            seq = self._accept(row)
            if seq is not None:
                self._remember(command["trigger_id"])
            if seq is not None and row.gate is None:
                request = Request(seq=seq, arrived_ns=arrived_ns, deadline_ns=deadline_ns)
                frame = self._external.ask(request)
                if frame is not None:
                    self._give(request, frame)

    def _give(self, request: Request, frame: Frame) -> None:
        """Gives a trigger its frame, or the reason why a gate refuses it."""
        if self._gated[0] is not frame:  # once: two triggers may share a frame, that is no repeated picture
            self._gated = frame, self._gates.refuse(frame)
        gate = self._gated[1]
        slots = [] if gate is not None else self._slots(1)
        if not slots:
            self._view.decide(request.seq, gate or Reason.OVERLOAD)
        else:
            generation = self._ring.write(slots[0], frame.pixels_bgr, request.seq)
            row = self._row(Part(frames=(frame,)), gate=None)
            self._view.fill(request.seq, replace(row, slot=slots[0], slot_generation=generation))
        self._wake()

    def _fail_overdue(self, now_ns: int) -> None:
        """Triggers whose frame did not come in time."""
        reserve_ns = round(2e6 * self._life.charge.settings.publisher.publish_reserve_ms)
        self._decide(self._external.overdue(now_ns, reserve_ns), Reason.CAMERA_LOST)

    def _fail_all(self, reason: Reason) -> None:
        """Triggers that no frame will come for."""
        self._decide(self._external.give_up(), reason)

    def _decide(self, requests: Sequence[Request], reason: Reason) -> None:
        for request in requests:
            self._view.decide(request.seq, reason)
        if requests:
            self._wake()

    # -- life ---------------------------------------------------------------------------------------------------------

    def _accepting(self) -> bool:
        return bool(self._table.accepting) and not self._table.stopping and not self._view.paused

    def _stopping(self) -> bool:
        return self._life.stopping or bool(self._table.stopping)

    def _count_missed(self, source: FrameSource) -> None:
        missed, self._missed_before = source.frames_missed - self._missed_before, source.frames_missed
        if missed and self._accepting():
            self._view.frames_skipped += missed


def _shot(frame: Frame, now_ns: int) -> Shot:
    """A further frame of a part, before it has a slot."""
    return Shot(
        slot=-1,
        slot_generation=0,
        frame_index=frame.index,
        width_px=frame.pixels_bgr.shape[1],
        height_px=frame.pixels_bgr.shape[0],
        pts_s=frame.pts_s,
        captured_ns=frame.captured_ns,
        captured_utc_ns=frame.captured_utc_ns,
        capture_ms=(now_ns - frame.captured_ns) / 1e6,
        time_kind=frame.time_kind,
    )
