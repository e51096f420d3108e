"""When frames are due, stale or to be tried for again: pure decisions over given times."""

from __future__ import annotations

import random

import pytest

from inspectd.sources.timing import Backoff, Freshness, Pacer

MS = 1_000_000


def test_pacer_follows_variable_pts() -> None:
    """Each frame is due as long after the last one as its PTS says."""
    pacer = Pacer(0.04)
    assert [pacer.due_ns(pts, 7 * MS) for pts in (2.0, 2.04, 2.5, 2.51)] == [7 * MS, 47 * MS, 507 * MS, 517 * MS]


@pytest.mark.parametrize("pts", [None, -1.0, 500.0])
def test_pacer_counts_a_period_where_pts_is_of_no_use(pts: float | None) -> None:
    """Missing PTS, steps backwards and jumps of the clock cost one period, never a long wait."""
    pacer = Pacer(0.04)
    pacer.due_ns(3.0, 0)
    assert pacer.due_ns(pts, 0) == 40 * MS


def test_pacer_keeps_the_schedule_after_a_late_reader() -> None:
    """Lateness of one frame does not shift the next: a camera does not wait."""
    pacer = Pacer(0.04)
    pacer.due_ns(0.0, 0)
    assert pacer.due_ns(0.04, 90 * MS) == 40 * MS


@pytest.mark.parametrize(("late_ms", "lost"), [(0, False), (99, False), (101, True)])
def test_frame_is_lost_once_a_camera_would_have_overwritten_it(late_ms: int, lost: bool) -> None:
    """A camera's few buffers forgive 100 ms, no more."""
    assert Pacer(0.04).is_lost(0, late_ms * MS) is lost


def test_slow_recording_forgives_two_periods() -> None:
    """At two frames a second the next frame is far: the late one is still the newest."""
    pacer = Pacer(0.5)
    assert not pacer.is_lost(0, 900 * MS)
    assert pacer.is_lost(0, 1100 * MS)


def test_steady_stream_is_fresh() -> None:
    """Packets that arrive at their own pace are fresh, whatever the jitter, once the first has come."""
    freshness = Freshness()
    rng = random.Random(1)
    told = [freshness.is_fresh(0.04 * n + rng.uniform(0, 0.03), 0.04 * n) for n in range(200)]
    assert not told[0]
    assert all(told[5:])


def test_greeting_of_a_server_is_stale() -> None:
    """A server that begins with what it has stored, or a slow opening, gives a backlog like any gap."""
    freshness = Freshness()
    told = [freshness.is_fresh(9.0 + 0.002 * n, 0.04 * n) for n in range(12)]
    assert not any(told)
    assert freshness.is_fresh(9.062, 0.48)


def test_first_packet_after_a_gap_and_its_backlog_are_stale() -> None:
    """What waited in a stalled server comes in a burst and is not handed out; then the stream is fresh again."""
    freshness = Freshness()
    assert [freshness.is_fresh(0.04 * n, 0.04 * n - 0.04) for n in range(2)] == [False, True]
    burst = [freshness.is_fresh(1.2 + 0.001 * n, 0.04 + 0.04 * n) for n in range(25)]
    assert not any(burst)
    assert freshness.is_fresh(1.2 + 0.024 + 0.04, 1.04)
    assert freshness.is_fresh(1.2 + 0.024 + 0.08, 1.08)


def test_slow_camera_has_no_gaps() -> None:
    """A camera of one frame a second pauses as long as its own PTS says: nothing is stale."""
    freshness = Freshness()
    assert [freshness.is_fresh(float(n), float(n)) for n in range(10)] == [False] + [True] * 9


def test_backlog_without_pts_ends_by_itself() -> None:
    """Without PTS the pace is unknown: after a gap packets count as a backlog until the time for one is over."""
    freshness = Freshness()
    freshness.is_fresh(0.0, None)
    stale = [not freshness.is_fresh(5.0 + 0.04 * n, None) for n in range(100)]
    assert all(stale[:45])
    assert not any(stale[55:])


def test_backoff_grows_to_its_limit_and_starts_again() -> None:
    """The pause doubles with jitter up to `most_s`, for ever, and is short again after frames have flowed."""
    backoff = Backoff(first_s=0.1, most_s=1.5, rng=random.Random(3))
    pauses = [backoff.next_s() for _ in range(2000)]
    assert 0.05 <= pauses[0] <= 0.1
    assert all(0.75 <= pause <= 1.5 for pause in pauses[5:])
    assert len({round(pause, 6) for pause in pauses[5:]}) > 1000
    assert 30 <= backoff.next_s(refused=True) <= 60
    backoff.reset()
    assert backoff.next_s() <= 0.1
