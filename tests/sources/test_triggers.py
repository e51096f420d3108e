"""Which frames of a continuous camera are inspected: by count and by rate."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from clips import numbered

from inspectd.records import Frame
from inspectd.sources.triggers import Continuous

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
