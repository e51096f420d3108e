"""Acceptance: how a frame or a trigger becomes a row, which from then on must be answered.

The pixels of a frame go into a slot of the ring, its row into the ticket table, then the high-water mark is raised.
That store is the moment of acceptance; the wake-ups that follow carry nothing and may be lost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from inspectd.records import Frame, Reason, TriggerKind
from inspectd.source_settings import DropSource, FileSource, FolderSource
from inspectd.sources.presence import Part
from inspectd.sources.triggers import Request
from inspectd.stages.lifecycle import Life
from inspectd.transport.pipes import Outbox, stage_endpoint
from inspectd.transport.ring import Ring
from inspectd.transport.rows import NewRow, Shot
from inspectd.transport.tickets import CameraView

FULL_S = 0.002
UNPRESSED_NS = 200_000_000
"""Within this time the publisher has turned at least once, woken or not."""


class Acceptance:
    """Accepts for one camera, in the process of its capture.

    Attributes:
        kind: why there are rows.
        simulated: whether frames come from files.
        fast: whether the source waits for a place to be free, and keeps no deadline.
    """

    def __init__(self, life: Life, camera: str, view: CameraView, ring: Ring) -> None:
        self._life, self._table, self._view, self._ring = life, life.table, view, ring
        settings = life.charge.settings
        source, trigger = settings.cameras[camera].source, settings.cameras[camera].trigger
        self.kind = TriggerKind(trigger.kind)
        self.simulated = isinstance(source, FileSource | FolderSource | DropSource)
        self.fast = getattr(source, "pace", None) == "fast"
        self._skips = trigger.when_full == "skip" and self.kind is TriggerKind.CONTINUOUS
        self._deadline_ms = life.charge.recipes[camera].deadline_ms

        def outbox(stage: str, generation: str) -> Outbox:
            return Outbox(
                lambda number: stage_endpoint(settings.sockets_dir, stage, number, "wake"),
                lambda: getattr(self._table, generation),
            )

        self._wakes = (outbox("worker", "worker_generation"), outbox("publisher", "publisher_generation"))

    @property
    def accepting(self) -> bool:
        """Whether frames are accepted now; a trigger is answered with an error where they are not."""
        return bool(self._table.accepting) and not self._table.stopping and not self._view.paused

    @property
    def stopping(self) -> bool:
        """Whether this process is to end."""
        return self._life.stopping or bool(self._table.stopping)

    def accept_part(self, part: Part, gate: Reason | None) -> bool:
        """Accepts a part with its pixels, or as an error where a gate says so or the ring is full.

        Returns:
            whether it is dealt with: accepted, or skipped and counted. A frame that waits for its place when this
            process is told to end is not; of a part, earlier frames are through, so it is answered.
        """
        slots = [] if gate is Reason.FRAME_CORRUPT else self._slots(len(part.frames))
        if not slots and gate is None:
            if self.fast and self.kind is TriggerKind.CONTINUOUS:
                return False
            if self._skips:
                self._view.frames_skipped += 1
                return True
            gate = Reason.OVERLOAD
        return self._accept(self._row(part, gate=gate), part.frames, slots) is not None or not self.fast

    def accept_error(self, reason: Reason) -> None:
        """Accepts something that no frame belongs to, already decided."""
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + round(self._deadline_ms * 1e6)
        row = NewRow(
            trigger_kind=self.kind,
            accepted_ns=now_ns,
            deadline_ns=deadline_ns,
            gate=reason,
            simulated=self.simulated,
        )
        self._accept(row)

    def accept_trigger(
        self, trigger_id: str, part_id: str | None, *, arrived_ns: int, deadline_ns: int, gate: Reason | None
    ) -> int | None:
        """Accepts a trigger before its frame is there. Its seq; None where the table is full."""
        row = NewRow(
            trigger_kind=self.kind,
            trigger_id=trigger_id,
            part_id=part_id,
            accepted_ns=arrived_ns,
            deadline_ns=deadline_ns,
            gate=gate,
            simulated=self.simulated,
        )
        return self._accept(row)

    def fill(self, request: Request, frame: Frame, gate: Reason | None) -> None:
        """Gives an accepted trigger its frame, or the reason why a gate refuses it."""
        slots = [] if gate is not None else self._slots(1)
        if not slots:
            self._view.decide(request.seq, gate or Reason.OVERLOAD)
        else:
            generation = self._ring.write(slots[0], frame.pixels_bgr, request.seq)
            row = self._row(Part(frames=(frame,)), gate=None)
            self._view.fill(request.seq, replace(row, slot=slots[0], slot_generation=generation))
        self._wake()

    def decide(self, requests: Sequence[Request], reason: Reason) -> None:
        """Decides accepted triggers that have no frame as errors."""
        for request in requests:
            self._view.decide(request.seq, reason)
        if requests:
            self._wake()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _slots(self, count: int) -> list[int]:
        """Free slots for the frames of one part; a recording that is read as fast as possible waits for them."""
        slots = self._ring.claim(self._view.answered_through, count)
        while not slots and self.fast and not self.stopping:
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
        deadline_ns = 0 if self.fast else accepted_ns + round(self._deadline_ms * 1e6)
        return NewRow(
            trigger_kind=self.kind,
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
            simulated=self.simulated,
            shots=tuple(_shot(each, now_ns) for each in others),
            sighting=part.sighting,
        )

    def _accept(self, row: NewRow, frames: Sequence[Frame] = (), slots: Sequence[int] = ()) -> int | None:
        """The acceptance itself. None where the table is full: nothing was accepted, which a live source counts."""
        if slots:
            (slot, generation), *others = (self._written(*each) for each in zip(slots, frames, strict=True))
            shots = tuple(
                replace(shot, slot=at, slot_generation=written)
                for shot, (at, written) in zip(row.shots, others, strict=True)
            )
            row = replace(row, slot=slot, slot_generation=generation, shots=shots)
        seq = self._view.accept(row)
        while seq is None and self.fast and not self.stopping:
            self._life.beat()
            time.sleep(FULL_S)
            seq = self._view.accept(row)
        if seq is not None:
            self._wake(publisher=_presses(row))
        elif not self.fast:
            self._view.frames_skipped += 1
        return seq

    def _written(self, slot: int, frame: Frame) -> tuple[int, int]:
        """Puts a frame of the next row into a slot; gives the slot and its generation."""
        return slot, self._ring.write(slot, frame.pixels_bgr, self._view.high_water + 1)

    def _wake(self, *, publisher: bool = True) -> None:
        worker, answerer = self._wakes
        for outbox in (worker, answerer) if publisher else (worker,):
            if outbox.send([b""]) is None:
                self._view.wakeups_dropped += 1


def _presses(row: NewRow) -> bool:
    """Whether the publisher should look at a row now; else it learns of it with its result, or at its next turn."""
    near = 0 < row.deadline_ns < time.monotonic_ns() + UNPRESSED_NS
    return row.gate is not None or row.slot < 0 or near


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
