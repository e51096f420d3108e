"""Which frames are inspected: of a continuous camera by count and by rate, for a trigger by their exposure."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from clips import numbered

from inspectd.records import Frame, Reason
from inspectd.sources.live import Arrival, LiveCamera, Patience
from inspectd.sources.triggers import Continuous, External, Request

PIXELS = numbered(1)


def frame(index: int, at_s: float) -> Frame:
    return Frame(index=index, pixels_bgr=PIXELS, captured_ns=round(at_s * 1e9), captured_utc_ns=0)


def test_every_nth_counts_by_the_source() -> None:
    """A lost frame does not shift the rhythm: multiples of n are taken, not every n-th that came."""
    trigger = Continuous(every_nth=3)
    assert [index for index in (0, 1, 3, 4, 5, 6, 8, 9, 10) if trigger.wants(frame(index, index / 25))] == [0, 3, 6, 9]


@pytest.mark.parametrize(("rate", "most"), [(25, 10), (30, 30), (30, 25), (100, 7), (25, 40)])
def test_max_fps_holds_the_rate_in_spite_of_jitter(rate: int, most: int) -> None:
    """Over ten seconds the mean rate is the smaller of both, to a few percent."""
    trigger, rng = Continuous(max_fps=most), random.Random(rate)
    taken = sum(trigger.wants(frame(n, n / rate + rng.uniform(0, 0.3 / rate))) for n in range(10 * rate))
    assert taken == pytest.approx(10 * min(rate, most), rel=0.03)


def test_max_fps_does_not_catch_up_after_a_pause() -> None:
    """After a silent minute frames come at the rate, not in a burst."""
    trigger = Continuous(max_fps=5)
    assert trigger.wants(frame(0, 0.0))
    taken = [trigger.wants(frame(n, 60 + n / 25)) for n in range(1, 26)]
    assert 5 <= sum(taken) <= 6
    assert not any(left and right for left, right in pairwise(taken))


def request(seq: int, arrived_s: float, deadline_s: float = 100.0) -> Request:
    return Request(seq=seq, arrived_ns=round(arrived_s * 1e9), deadline_ns=round(deadline_s * 1e9))


def test_external_trigger_gets_the_first_frame_exposed_after_it() -> None:
    """Exposure decides, not the order of coming: what was exposed before the trigger is never given to it."""
    external = External()
    assert external.ask(request(1, 1.0)) is None
    assert external.feed(frame(0, 0.9)) == []
    assert external.feed(frame(1, 1.0)) == []
    assert [each.seq for each in external.feed(frame(2, 1.04))] == [1]
    assert external.feed(frame(3, 1.08)) == []


def test_frame_that_overtook_its_trigger_is_not_skipped() -> None:
    """A trigger that was on its way when its frame came gets that very frame, not the next one."""
    external = External()
    for number in range(8):
        assert external.feed(frame(number, 1 + 0.04 * number)) == []
    found = external.ask(request(1, 1.21))
    assert found is not None
    assert found.index == 6  # of 1.24 s


@pytest.mark.parametrize(("rate", "size_wh_px"), [(60, (1920, 1080)), (120, (1280, 960)), (500, (64, 48))])
def test_trigger_that_comes_too_late_for_its_frame_gets_no_other(rate: int, size_wh_px: tuple[int, int]) -> None:
    """However late it comes, it gets the first frame exposed after it, or it is told that this one is gone."""
    external, pixels = External(), np.zeros((*size_wh_px[::-1], 3), np.uint8)
    for number in range(rate):
        external.feed(replace(frame(number, 1 + number / rate), pixels_bgr=pixels))
    given = set()
    for number in range(rate - 1):
        asked = request(number, 1 + (number + 0.5) / rate)
        found = external.ask(asked)
        assert found is None or found.index == number + 1
        assert external.missed() == ([(asked, Reason.OVERLOAD)] if found is None else [])
        given |= set() if found is None else {found.index}
    assert given == set(range(min(given), rate))
    assert len(given) >= 0.13 * rate
    assert external.feed(frame(rate, 2.5)) == []


def test_trigger_whose_frame_was_lost_on_its_way_gets_no_other() -> None:
    """Only one that came before the lost frame misses it: asked in time or late, it gets no later one."""
    external = External()
    external.feed(frame(0, 1.0))
    early, later = request(1, 1.01), request(2, 1.05)
    assert (external.ask(early), external.ask(later)) == (None, None)
    following = replace(frame(2, 1.08), lost_ns=round(1.04e9))
    assert external.feed(following) == [later]
    late = request(3, 1.02)
    assert external.ask(late) is None
    assert external.ask(request(4, 1.04)) is following
    before = external.ask(request(5, 0.99))
    assert before is not None
    assert before.index == 0
    assert external.missed() == [(early, Reason.OVERLOAD), (late, Reason.OVERLOAD)]


def test_frames_that_a_recording_leaves_out_were_never_shown() -> None:
    """It is played as time allows: the next frame that is played is the next one exposed."""
    external = External()
    external.feed(frame(0, 1.0))
    external.ask(request(1, 1.01))
    assert [each.seq for each in external.feed(frame(5, 1.2))] == [1]


class Shown:
    """A camera that shows so many frames, a millisecond each, and then falls silent; some waited somewhere."""

    notes = ()

    def __init__(self, count: int, stale: tuple[int, ...] = ()) -> None:
        self.begun_ns = time.monotonic_ns()
        self._left = iter(range(count))
        self._stale = stale

    def at_ns(self, number: int) -> int:
        return self.begun_ns + number * 1_000_000

    def open(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> Arrival | None:
        number = next(self._left, None)
        if number is None:
            time.sleep(0.01)
            return None
        return Arrival(
            load=lambda: (numbered(number), None),
            captured_ns=self.at_ns(number),
            captured_utc_ns=0,
            fresh=number not in self._stale,
        )


@pytest.mark.parametrize(
    ("count", "stale", "lost"),
    [(2, (), {0: None, 1: None}), (5, (), {3: 2, 4: 2}), (4, (0, 2), {1: 0, 3: 2}), (6, (5,), {3: 2, 4: 2})],
)
def test_live_camera_tells_when_the_frames_were_exposed_that_it_dropped(
    count: int, stale: tuple[int, ...], lost: dict[int, int | None]
) -> None:
    """Each frame knows the last one that was dropped before it: overwritten in the queue, or stale as it came."""
    shown = Shown(count, stale)
    camera = LiveCamera(shown, name="it", size_wh_px=(240, 240), patience=Patience(open_s=5, silence_s=60))
    with closing(camera):
        while camera.next_index < count:
            time.sleep(0.001)
        read = [each for each in (camera.read(0.1) for _ in range(3)) if each is not None]
    told = {each.index: each.lost_ns for each in read}
    assert told == {index: 0 if number is None else shown.at_ns(number) for index, number in lost.items()}


def test_frame_that_nobody_took_for_long_is_lost() -> None:
    """It is dropped as it is read; the next one tells of it."""
    shown = Shown(2)
    shown.begun_ns -= 10**9
    shown.at_ns = lambda number: shown.begun_ns + number * 10**9  # type: ignore[method-assign]
    camera = LiveCamera(shown, name="it", size_wh_px=(240, 240), patience=Patience(open_s=5, silence_s=60))
    with closing(camera):
        read = camera.read(5.0)
    assert read is not None
    assert (read.index, read.lost_ns) == (1, shown.at_ns(0))


def test_trigger_from_before_a_loss_gets_no_frame_from_after_it() -> None:
    """What was exposed until the camera was lost is lost with it, and that is the reason."""
    external, early, later = External(), request(1, 1.5), request(2, 2.5)
    external.feed(frame(7, 1.0))
    external.give_up(round(2e9), Reason.CAMERA_LOST)
    assert (external.ask(early), external.ask(later)) == (None, None)
    assert external.feed(frame(0, 3.0)) == [later]
    assert external.missed() == [(early, Reason.CAMERA_LOST)]
    for number in range(1, 20):
        external.feed(frame(number, 3 + number / 10))
    forgotten = request(3, 3.01)
    assert external.ask(forgotten) is None
    assert external.missed() == [(forgotten, Reason.OVERLOAD)]


def test_triggers_share_the_frame_that_is_the_next_for_each() -> None:
    """Two triggers within one period are two verdicts on one frame."""
    external = External([request(1, 1.0)])
    assert external.ask(request(2, 1.01)) is None
    assert [each.seq for each in external.feed(frame(0, 1.02))] == [1, 2]


def test_triggers_leave_once() -> None:
    """Overdue ones before their deadline by the reserve, all others when they are given up."""
    external = External([request(1, 1.0, deadline_s=2.0), request(2, 1.0, deadline_s=3.0)])
    assert external.overdue(round(1.9e9), 40_000_000) == []
    assert [each.seq for each in external.overdue(round(1.97e9), 40_000_000)] == [1]
    external.give_up(round(2e9), Reason.INTERNAL)
    assert [(each.seq, reason) for each, reason in external.missed()] == [(2, Reason.INTERNAL)]
    assert external.feed(frame(0, 5.0)) == []
