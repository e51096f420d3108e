"""Events are what changed in the table between two looks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from inspectd.records import CameraState
from inspectd.stages.events import CameraLook, EventWatch, Look

CAMERA = CameraLook(
    name="cam1",
    state=CameraState.READY,
    accepted_through=5,
    answered_through=5,
    frames_skipped=0,
    frames_damaged=0,
    capture_generation=1,
)
LOOK = Look(worker_generation=1, journal_healthy=True, cameras=(CAMERA,))
LATER_NS = 2_000_000_000


@dataclass
class Told:
    """The words of the table."""

    state: CameraState = CameraState.READY
    frames_skipped: int = 0
    frames_damaged: int = 0
    capture_generation: int = 1


@dataclass
class ToldOfDaemon:
    """The words of the table on the daemon as a whole."""

    worker_generation: int = 1
    journal_failed: int = 0


def a_watch(told: Told | None = None, daemon: ToldOfDaemon | None = None) -> EventWatch:
    return EventWatch(daemon or ToldOfDaemon(), {"cam1": told or Told()})


def changes(watch: EventWatch, now_ns: int = LATER_NS, look: Look = LOOK, **camera: object) -> list[tuple[str, dict]]:
    seen = replace(look, cameras=(replace(CAMERA, **camera),))
    return [(event.kind.value, event.details) for event in watch.changes(seen, now_ns)]


def test_nothing_new_is_no_event() -> None:
    """The same look twice says nothing."""
    assert changes(a_watch()) == []


def test_lost_and_back() -> None:
    """A camera is told to be lost once, and back once."""
    watch = a_watch()
    assert changes(watch, state=CameraState.LOST) == [("camera_lost", {"last_seq": 5})]
    assert changes(watch, state=CameraState.LOST) == []
    assert changes(watch) == [("camera_back", {"last_seq": 5})]


def test_end_is_told_after_the_last_answer() -> None:
    """`camera_ended` waits until everything accepted is answered, and comes once."""
    watch = a_watch()
    assert changes(watch, state=CameraState.ENDED, accepted_through=6) == []
    done = changes(watch, state=CameraState.ENDED, accepted_through=6, answered_through=6)
    assert done == [("camera_ended", {"last_seq": 6})]
    assert changes(watch, state=CameraState.ENDED, accepted_through=6, answered_through=6) == []


def test_skipped_frames_are_summed_up() -> None:
    """Skips are told at most once a second, each of them once."""
    watch = a_watch()
    assert changes(watch, frames_skipped=3) == [("frames_skipped", {"count": 3})]
    assert changes(watch, LATER_NS + 1, frames_skipped=4) == []
    assert changes(watch, 2 * LATER_NS, frames_skipped=9) == [("frames_skipped", {"count": 6})]


def test_what_nobody_told_is_told_by_the_next_publisher() -> None:
    """What was skipped, lost and started again between two publishers; what the first one told stays told."""
    told = Told()
    assert changes(a_watch(told), frames_skipped=3, frames_damaged=1)
    watch = a_watch(told)
    seen = {"frames_skipped": 5, "frames_damaged": 1, "state": CameraState.LOST, "capture_generation": 2}
    assert changes(watch, **seen) == [
        ("frames_skipped", {"count": 2}),
        ("capture_restarted", {}),
        ("camera_lost", {"last_seq": 5}),
    ]
    assert changes(watch, 2 * LATER_NS, **seen) == []


def test_a_camera_that_starts_is_no_event() -> None:
    """Nothing was told yet: from nothing to its first process and frame nothing has happened that is worth a word."""
    assert changes(a_watch(Told(CameraState.STARTING, capture_generation=0), ToldOfDaemon(worker_generation=0))) == []


def test_restarts_and_the_journal() -> None:
    """A new generation of a process and a journal that fails are events."""
    watch = a_watch()
    broken = replace(LOOK, worker_generation=2, journal_healthy=False)
    told = changes(watch, look=broken, capture_generation=2)
    assert told == [("worker_restarted", {}), ("journal_failed", {}), ("capture_restarted", {})]
    assert changes(watch, look=broken, capture_generation=2) == []
    assert changes(watch, look=replace(broken, journal_healthy=True), capture_generation=2) == [("journal_back", {})]


def test_what_became_of_worker_and_journal_without_a_publisher_is_told() -> None:
    """A worker that was replaced, and a disk that is well again, between two publishers; once."""
    daemon = ToldOfDaemon()
    assert changes(a_watch(daemon=daemon), look=replace(LOOK, journal_healthy=False)) == [("journal_failed", {})]
    healed = replace(LOOK, worker_generation=2)
    assert changes(a_watch(daemon=daemon), look=healed) == [("worker_restarted", {}), ("journal_back", {})]
    assert changes(a_watch(daemon=daemon), look=healed) == []
