"""Events are what changed in the ticket table between two looks. Pure: looks in, events out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from inspectd.records import CameraState
from inspectd.transport.wire import EventKind

SKIPPED_EVERY_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraLook:
    """One camera as the table shows it at one moment."""

    name: str
    state: CameraState
    accepted_through: int
    answered_through: int
    frames_skipped: int
    frames_damaged: int
    capture_generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The daemon as the table shows it at one moment."""

    worker_generation: int
    journal_healthy: bool
    cameras: tuple[CameraLook, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened; `details` are `last_seq` and `count`."""

    kind: EventKind
    camera: str | None
    details: dict[str, int]


class Told(Protocol):
    """What was told of one camera. It outlives the publisher: what happens while there is none is told by the next."""

    state: CameraState
    frames_skipped: int
    frames_damaged: int
    capture_generation: int


class ToldOfDaemon(Protocol):
    """The same of the daemon as a whole."""

    worker_generation: int
    journal_failed: int


class EventWatch:
    """Holds each look against what was told before.

    Args:
        daemon: as the last publisher left it.
        told: the same by the camera's name.
    """

    def __init__(self, daemon: ToldOfDaemon, told: Mapping[str, Told]) -> None:
        self._daemon = daemon
        self._ended: set[str] = set()
        self._told = told
        self._told_ns = 0

    def changes(self, look: Look, now_ns: int) -> list[Event]:
        """What happened since the last look, in a fixed order."""
        events = self._daemon_changes(look)
        counts_due = now_ns - self._told_ns >= SKIPPED_EVERY_NS
        for camera in look.cameras:
            if counts_due:
                events += self._count_changes(camera)
            events += self._camera_changes(camera)
        if counts_due:
            self._told_ns = now_ns
        return events

    def _daemon_changes(self, look: Look) -> list[Event]:
        events, told = [], self._daemon
        generation, had_failed = told.worker_generation, bool(told.journal_failed)
        told.worker_generation, told.journal_failed = look.worker_generation, not look.journal_healthy
        if look.worker_generation != generation > 0:
            events.append(_event(EventKind.WORKER_RESTARTED, None))
        if look.journal_healthy == had_failed:
            kind = EventKind.JOURNAL_BACK if look.journal_healthy else EventKind.JOURNAL_FAILED
            events.append(_event(kind, None))
        return events

    def _camera_changes(self, after: CameraLook) -> list[Event]:
        events, told = [], self._told[after.name]
        before, generation = told.state, told.capture_generation
        if after.capture_generation != generation:
            told.capture_generation = after.capture_generation
            if generation > 0:
                events.append(_event(EventKind.CAPTURE_RESTARTED, after.name))
        if after.state is not before:
            told.state = after.state
            if after.state is CameraState.LOST:
                events.append(_event(EventKind.CAMERA_LOST, after.name, last_seq=after.accepted_through))
            elif before is CameraState.LOST and after.state is CameraState.READY:
                events.append(_event(EventKind.CAMERA_BACK, after.name, last_seq=after.accepted_through))
        if after.state is not CameraState.ENDED:
            self._ended.discard(after.name)
        elif after.name not in self._ended and after.answered_through == after.accepted_through:
            self._ended.add(after.name)
            events += self._count_changes(after)
            events.append(_event(EventKind.CAMERA_ENDED, after.name, last_seq=after.answered_through))
        return events

    def _count_changes(self, camera: CameraLook) -> list[Event]:
        events, told = [], self._told[camera.name]
        if camera.frames_skipped > told.frames_skipped:
            count = camera.frames_skipped - told.frames_skipped
            events.append(_event(EventKind.FRAMES_SKIPPED, camera.name, count=count))
            told.frames_skipped = camera.frames_skipped
        if camera.frames_damaged > told.frames_damaged:
            count = camera.frames_damaged - told.frames_damaged
            events.append(_event(EventKind.FRAMES_DAMAGED, camera.name, count=count))
            told.frames_damaged = camera.frames_damaged
        return events


def _event(kind: EventKind, camera: str | None, **details: int) -> Event:
    return Event(kind=kind, camera=camera, details=details)
