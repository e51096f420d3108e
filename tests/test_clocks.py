"""The wall clock is a label: whatever it does, only `captured_utc` tells."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from daemons import Daemon, file_camera, running, shared
from disks import set_clock


def jumped(before: dict[str, Any], after: dict[str, Any], jump_s: float) -> bool:
    """Whether the label has jumped about so far between two verdicts."""
    first, second = (datetime.fromisoformat(each["captured_utc"]).timestamp() for each in (before, after))
    return abs(second - first - jump_s) < 600


def test_a_clock_that_is_set_is_a_label(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """An hour ahead and an hour back: no restart, no late verdict, no gap, no event."""
    environment, set_to = set_clock(tmp_path)
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    daemon = make_daemon(
        {"cam1": file_camera(video, pace="realtime", trigger="max_fps = 5", loop=True)},
        recipe="deadline_ms = 4000\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n",
        environment=environment,
    )
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: len(seen.verdicts) >= 4)
        for off_s, jump_s in ((3600, 3600), (-3600, -7200)):
            before = seen.verdicts[-1]
            set_to(off_s)
            subscriber.until(lambda seen, jump_s=jump_s, before=before: jumped(before, seen.verdicts[-1], jump_s))
            count = len(seen.verdicts)
            subscriber.until(lambda seen, count=count: len(seen.verdicts) >= count + 5)
        processes = daemon.ask("status")["processes"]
    assert [each["restarts"] for each in processes] == [0] * len(processes)
    assert seen.seqs("cam1") == list(range(1, len(seen.verdicts) + 1))
    assert {each["decision"] for each in seen.verdicts} <= {"pass", "fail"}
    assert seen.events == []
    assert all(0 < each["latency_ms"]["total"] < 4000 for each in seen.verdicts)
