"""When frames were exposed: a backlog is known to be old, and a camera's clock counts only where it can be right."""

from __future__ import annotations

import pytest

from inspectd.records import TimeKind
from inspectd.sources.exposures import ExposureClock

MS = 1_000_000
WALL_NS = 1_700_000_000_000_000_000
TRANSIT_MS = 40
"""How long frames are under way from their exposure to their arrival."""


def clock(lag_ms: float | None = None) -> ExposureClock:
    """A clock that has heard a second of frames, 40 ms apart, in their pace."""
    made = ExposureClock(lag_ns=None if lag_ms is None else round(lag_ms * MS), wall_ns=WALL_NS)
    for number in range(25):
        made.heard(arrival_ns(number), number * 0.04)
    return made


def exposed_ns(number: int) -> int:
    return 10_000 * MS + number * 40 * MS


def arrival_ns(number: int, late_ms: float = 0) -> int:
    return exposed_ns(number) + round((TRANSIT_MS + late_ms) * MS)


def test_frame_in_its_pace_was_exposed_a_lag_before_its_arrival() -> None:
    """Without RTCP the arrival less the configured lag counts; an unknown lag is none."""
    for lag_ms, before_ms in ((TRANSIT_MS, TRANSIT_MS), (None, 0)):
        told = clock(lag_ms).exposure(arrival_ns(25), 25 * 0.04)
        assert (told.kind, told.waited_ns) == (TimeKind.ARRIVAL, pytest.approx(0, abs=MS))
        assert told.captured_ns == pytest.approx(arrival_ns(25) - before_ms * MS, abs=MS)


def test_backlog_is_as_old_as_its_frames() -> None:
    """Frames that waited and come in one burst keep the times of their exposures, however small the gap was."""
    made = clock(TRANSIT_MS)
    burst_ns = arrival_ns(32)
    for number in range(25, 33):
        at_ns = burst_ns + number * 1000
        made.heard(at_ns, number * 0.04)
        told = made.exposure(at_ns, number * 0.04)
        assert told.captured_ns == pytest.approx(exposed_ns(number), abs=3 * MS)
        assert told.waited_ns == pytest.approx((32 - number) * 40 * MS, abs=3 * MS)


def test_clock_that_runs_slow_is_followed_and_a_delay_is_not() -> None:
    """Crystals differ by some in a thousand, for ever; what comes half a second later at once has waited."""
    made = ExposureClock(lag_ns=0, wall_ns=WALL_NS)
    for number in range(5000):
        at_ns = round(number * 40 * MS * 1.003)
        made.heard(at_ns, number * 0.04)
    assert made.exposure(at_ns, number * 0.04).waited_ns < 2 * MS
    made.heard(at_ns + 540 * MS, (number + 1) * 0.04)
    assert made.exposure(at_ns + 540 * MS, (number + 1) * 0.04).waited_ns == pytest.approx(500 * MS, abs=5 * MS)


@pytest.mark.parametrize(
    ("ahead_ms", "lag_ms", "kind"),
    [
        (0, None, TimeKind.RTCP),
        (0, TRANSIT_MS, TimeKind.RTCP),
        (-400, None, TimeKind.RTCP),
        (-600, None, TimeKind.ARRIVAL),
        (60, None, TimeKind.ARRIVAL),
        (30, TRANSIT_MS, TimeKind.ARRIVAL),
        (-30, TRANSIT_MS, TimeKind.ARRIVAL),
        (3_600_000, None, TimeKind.ARRIVAL),
    ],
)
def test_rtcp_counts_where_it_can_be_right(ahead_ms: int, lag_ms: float | None, kind: TimeKind) -> None:
    """A clock that says after the arrival, long before it, or otherwise than the known lag, is not believed."""
    made = clock(lag_ms)
    made.heard(arrival_ns(25), 25 * 0.04, WALL_NS + exposed_ns(25) + ahead_ms * MS)
    told = made.exposure(arrival_ns(25), 25 * 0.04)
    assert told.kind is kind
    if kind is TimeKind.RTCP:
        assert told.captured_ns == pytest.approx(exposed_ns(25) + ahead_ms * MS, abs=MS)


def test_rtcp_knows_the_exposure_of_a_frame_that_waited() -> None:
    """The sender's clock does not care how late the frame comes."""
    made = clock()
    made.heard(arrival_ns(25, late_ms=300), 25 * 0.04, WALL_NS + exposed_ns(25))
    told = made.exposure(arrival_ns(25, late_ms=300), 25 * 0.04)
    assert (told.kind, told.captured_ns) == (TimeKind.RTCP, pytest.approx(exposed_ns(25), abs=3 * MS))


def test_frame_without_a_time_of_its_own_counts_from_its_arrival() -> None:
    """No PTS, no guess."""
    told = clock(10).exposure(arrival_ns(25), None)
    assert (told.kind, told.captured_ns, told.waited_ns) == (TimeKind.ARRIVAL, arrival_ns(25) - 10 * MS, 0)
