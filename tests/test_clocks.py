"""The wall clock is a label: whatever it does, only `captured_utc` tells."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, file_camera, running, shared

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def utc_s(verdict: dict[str, Any]) -> float:
    return datetime.fromisoformat(verdict["captured_utc"]).timestamp()


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime")
def test_a_clock_that_steps_or_runs_away_is_a_label(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """An hour ahead, an hour back, and at three times its speed: no restart, no late verdict, no gap, no event."""
    offset = tmp_path / "offset"
    offset.write_text("+0")
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    daemon = make_daemon(
        {"cam1": file_camera(video, pace="realtime", trigger="max_fps = 5", loop=True)},
        recipe="deadline_ms = 4000\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n",
        environment={
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: len(seen.verdicts) >= 4)
        for clock, jump_s in (("+3600", 3600), ("-3600", -7200), ("+0 x3", 3600)):
            before = seen.verdicts[-1]
            offset.write_text(clock)
            subscriber.until(lambda seen, jump_s=jump_s, before=before: far(before, seen.verdicts[-1], jump_s))
            count = len(seen.verdicts)
            subscriber.until(lambda seen, count=count: len(seen.verdicts) >= count + 5)
        processes = daemon.ask("status")["processes"]
    assert [each["restarts"] for each in processes] == [0] * len(processes)
    assert seen.seqs("cam1") == list(range(1, len(seen.verdicts) + 1))
    assert {each["decision"] for each in seen.verdicts} <= {"pass", "fail"}
    assert seen.events == []
    assert all(0 < each["latency_ms"]["total"] < 4000 for each in seen.verdicts)


def far(before: dict[str, Any], after: dict[str, Any], jump_s: float) -> bool:
    """Whether the label has jumped about so far."""
    return abs(utc_s(after) - utc_s(before) - jump_s) < 1000
