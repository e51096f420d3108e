"""The capture of one camera: reads frames, decides which to inspect, and has them accepted. One process a camera."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from inspectd.errors import LoginRefused, SourceError
from inspectd.log import get_logger
from inspectd.records import CameraState, Frame, Reason, TriggerKind
from inspectd.sources.base import EndOfSource, FrameSource
from inspectd.sources.decoding import keep_large_blocks
from inspectd.sources.gates import Gates, UsualSize
from inspectd.sources.open import open_source
from inspectd.sources.presence import Part, Parts, Taken
from inspectd.sources.timing import Backoff
from inspectd.sources.triggers import Continuous, External, Request
from inspectd.stages.acceptance import Acceptance
from inspectd.stages.lifecycle import Life
from inspectd.transport.pipes import CommandLine, stage_endpoint
from inspectd.transport.ring import Ring
from inspectd.transport.tickets import ROWS

READ_S = 0.05
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
        self._born_ns = time.monotonic_ns()
        self._table = life.table
        index = self._table.cameras.index(camera)
        self._view = self._table.camera(index)
        self._ring = Ring.attach(self._table.ring_name(index))
        settings = life.charge.settings
        self._camera = settings.cameras[camera]
        self._recipe = life.charge.recipes[camera]
        self._acceptance = Acceptance(life, camera, self._view, self._ring)
        self._continuous = Continuous(every_nth=self._camera.trigger.every_nth, max_fps=self._camera.trigger.max_fps)
        self._parts: Parts | None = None
        self._gates = Gates(self._camera, slot_bytes=self._ring.slot_bytes, inspected=self._last_inspected())
        self._usual_size = UsualSize(self._ring.usual_wh_px)
        self._external = External(self._left_requests())
        self._trigger_ids = self._left_trigger_ids()
        self._backoff = Backoff()
        self._missed_before = 0
        self._opened = self._loss_untold = False
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
        if not self._acceptance.simulated:  # what a camera showed while nobody looked may have been their frame
            self._fail_all(Reason.CAMERA_LOST)
        while not self._acceptance.stopping:
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
        if self._acceptance.fast:
            self._flush()  # the frames of a part are through already
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
        while not self._acceptance.stopping:
            if source.is_there:
                self._view.state = CameraState.READY
            self._life.beat()
            self._take_requests()
            if source.live and not (self._opened or source.is_there):
                self._fail_all(Reason.CAMERA_LOST)  # what it shows before its first frame is here, nobody sees
            self._fail_missed()
            if not self._may_read(source):
                time.sleep(READ_S / 2)
                continue
            frame = source.read(READ_S)
            self._count_missed(source)
            self._fail_overdue(time.monotonic_ns())
            if frame is not None:
                frame = self._sized(frame) if source.live else frame
                self._back(frame)
                self._view.frames_read += 1
                self._backoff.reset()
                self._hold()
                self._fail_overdue(time.monotonic_ns())  # a hold may be long
                if self._consider(frame):
                    source.acknowledge()

    def _may_read(self, source: FrameSource) -> bool:
        """A recording waits until the daemon accepts; a live camera is drained all the while."""
        if not source.simulated:
            return True
        return self._table.accepting and not (self._acceptance.fast and self._view.paused)

    def _hold(self) -> None:
        """A source that waits was read a moment before the pause: it keeps its frame for afterwards."""
        while self._acceptance.fast and not self._acceptance.accepting and not self._acceptance.stopping:
            self._life.beat()
            self._take_requests()
            self._fail_overdue(time.monotonic_ns())
            time.sleep(READ_S / 2)

    def _count_missed(self, source: FrameSource) -> None:
        missed, self._missed_before = source.frames_missed - self._missed_before, source.frames_missed
        if missed and self._acceptance.accepting:
            self._view.frames_skipped += missed

    def _lose(self, error: SourceError) -> None:
        """The source is gone: says so once, answers what waits for a frame, and waits before the next try."""
        if self._view.state is not CameraState.LOST:
            get_logger().warning("camera_lost", error=str(error))
            self._view.state = CameraState.LOST
            self._loss_untold = self._acceptance.kind is not TriggerKind.EXTERNAL
        until_s = time.monotonic() + self._backoff.next_s(refused=isinstance(error, LoginRefused))
        while not self._acceptance.stopping and time.monotonic() < until_s:
            self._life.beat()
            self._take_requests()
            self._fail_all(Reason.CAMERA_LOST)
            self._tell_loss()
            time.sleep(READ_S)

    def _tell_loss(self) -> None:
        """One error for a loss, also for one from before the daemon accepted anything: parts may pass unseen."""
        if self._loss_untold and self._acceptance.accepting:
            self._loss_untold = False
            self._acceptance.accept_error(Reason.CAMERA_LOST)

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
        self._flush()
        self._fail_all(Reason.CAMERA_LOST)
        self._view.state = CameraState.ENDED
        get_logger().info("camera_ended", last_seq=self._view.high_water)
        while not self._acceptance.stopping:
            self._life.beat()
            self._take_requests()
            self._fail_all(Reason.CAMERA_LOST)
            time.sleep(READ_S)

    def _last_inspected(self) -> Frame | None:
        """The frame that was accepted last, where its slot still holds it: a new generation must know a repeat."""
        last = self._view.high_water
        rows = (self._view.row(seq) for seq in range(last, max(0, last - ROWS), -1))
        row = next((row for row in rows if row is not None and row.slot >= 0), None)
        if row is None:
            return None
        pixels_bgr = self._ring.read(row.slot, row.slot_generation, row.height_px, row.width_px)
        if pixels_bgr is None:
            return None
        return Frame(
            index=row.frame_index,
            pixels_bgr=pixels_bgr,
            captured_ns=row.captured_ns,
            captured_utc_ns=row.captured_utc_ns,
            frozen=row.gate is Reason.FRAME_FROZEN,
        )

    def _sized(self, frame: Frame) -> Frame:
        """The frame of a live camera, as damaged where it has not the size of this session."""
        frame = self._usual_size.check(frame)
        if self._usual_size.size_wh_px is not None:
            self._ring.usual_wh_px = self._usual_size.size_wh_px
        return frame

    # -- frames -----------------------------------------------------------------------------------------------------

    def _consider(self, frame: Frame) -> bool:
        """Decides whether a frame is one to inspect, and has it accepted if so. Whether it is dealt with."""
        frame = self._gates.feed(frame)
        if frame.damage is not None:
            self._view.frames_damaged += 1
        requests = self._external.feed(frame) if self._acceptance.kind is TriggerKind.EXTERNAL else []
        for request in requests:  # in a pause too: what was accepted before it gets its frame
            self._give(request, frame)
        if not self._acceptance.accepting:
            return bool(requests)
        if self._acceptance.kind is TriggerKind.PRESENCE:
            self._watch_for_parts(frame)
        elif self._acceptance.kind is TriggerKind.CONTINUOUS and self._wants(frame):
            return self._inspect(Part(frames=(frame,)))
        return True

    def _wants(self, frame: Frame) -> bool:
        return self._continuous.wants(frame) or frame.damage is not None

    def _watch_for_parts(self, frame: Frame) -> None:
        """One inspection for each part, and errors while no part could be seen: one may have passed."""
        if self._parts is None:
            self._parts = self._begin_presence()
        for part in self._parts.feed(frame, blind=frame.frozen):
            self._inspect(part)

    def _flush(self) -> None:
        """No frame follows: the parts in the zone are inspected as they were seen."""
        for part in self._parts.flush() if self._parts is not None else ():
            self._inspect(part)

    def _begin_presence(self) -> Parts:
        """A generation that replaces another does not take again what that one took.

        While nobody looked a part may have passed: of a live camera that is one error, unless this generation has told
        a loss already. A recording has waited.
        """
        last, recorded = self._view.row(self._view.high_water), self._acceptance.simulated
        replaces = self._life.charge.generation > 1 and not recorded
        told = last is not None and last.gate is Reason.CAMERA_LOST and last.accepted_ns >= self._born_ns
        if replaces and not told:
            self._acceptance.accept_error(Reason.CAMERA_LOST)
        return Parts(self._camera.trigger, self._recipe, taken=self._taken_before(), recorded=recorded)

    def _taken_before(self) -> list[Taken]:
        """The parts that earlier generations took lately: they may still lie in the zone."""
        last = self._view.high_water
        rows = (self._view.row(seq) for seq in range(max(1, last - MOST_IN_ZONE + 1), last + 1))
        return [
            Taken(sighting=row.sighting, frame_index=row.frame_index, captured_ns=row.captured_ns)
            for row in rows
            if row is not None and row.sighting is not None
        ]

    def _inspect(self, part: Part) -> bool:
        return self._acceptance.accept_part(part, self._gates.refuse(part.best))

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
            gate = Reason.NOT_READY if not self._acceptance.accepting else None
            seq = self._acceptance.accept_trigger(
                command["trigger_id"], command["part_id"], arrived_ns=arrived_ns, deadline_ns=deadline_ns, gate=gate
            )
            if seq is not None:
                self._remember(command["trigger_id"])
            if seq is not None and gate is None:
                request = Request(seq=seq, arrived_ns=arrived_ns, deadline_ns=deadline_ns)
                frame = self._external.ask(request)
                if frame is not None:
                    self._give(request, frame)

    def _give(self, request: Request, frame: Frame) -> None:
        """Gives a trigger its frame, or the reason why a gate refuses it."""
        self._acceptance.fill(request, frame, self._gates.refuse(frame))

    def _fail_overdue(self, now_ns: int) -> None:
        """Triggers whose frame did not come in time."""
        reserve_ns = round(2e6 * self._life.charge.settings.publisher.publish_reserve_ms)
        self._acceptance.decide(self._external.overdue(now_ns, reserve_ns), Reason.CAMERA_LOST)

    def _fail_missed(self) -> None:
        """Triggers whose frame is lost: they came too late for it, it never came here, or none comes any more."""
        for request, reason in self._external.missed():
            self._acceptance.decide([request], reason)

    def _fail_all(self, reason: Reason) -> None:
        """Triggers that no frame will come for."""
        self._external.give_up(time.monotonic_ns(), reason)
        self._fail_missed()
