"""More frames than the worker can carry, where each is to be answered; `tools/faults.py` has the rows of the others."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import psutil
from daemons import Daemon, Seen, Subscriber, file_camera, running, shared

MakeDaemon = Callable[..., Daemon]

DEADLINE_MS = 1000.0
SLOTS = 4
RECIPE = f"deadline_ms = {DEADLINE_MS}\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"


def overloaded(make_daemon: MakeDaemon, cameras: int = 4, when_full: str = "skip") -> Daemon:
    """Cameras at 30 frames a second each, where one thread does about 30 in all."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    camera = file_camera(video, pace="realtime", loop=True, trigger=f'when_full = "{when_full}"') + f"slots = {SLOTS}\n"
    return make_daemon({f"cam{number}": camera for number in range(1, cameras + 1)}, recipe=RECIPE)


@contextmanager
def crawling(pid: int) -> Iterator[None]:
    """A process that is let run for a third of the time only, in pulses."""
    process, over = psutil.Process(pid), Event()

    def pulse() -> None:
        while not over.wait(0.05):
            process.send_signal(signal.SIGSTOP)
            over.wait(0.1)
            process.send_signal(signal.SIGCONT)

    thread = Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def seen_in(subscriber: Subscriber, seconds: float) -> list[dict[str, Any]]:
    """The verdicts of so many seconds from now."""
    before, until_s = len(subscriber.seen.verdicts), time.monotonic() + seconds
    while time.monotonic() < until_s:
        subscriber.read(0.1)
    return subscriber.seen.verdicts[before:]


def all_in_time(verdicts: list[dict[str, Any]]) -> None:
    """Whatever was scored is in time, and every answer comes about when it is due: no queue lets latency grow."""
    scored = [each["latency_ms"]["total"] for each in verdicts if each["decision"] != "error"]
    assert scored
    assert max(scored) < DEADLINE_MS
    assert {each["reason"] for each in verdicts} <= {"ok", "anomaly", "late", "overload"}
    last = sorted(each["latency_ms"]["total"] for each in verdicts)[: -max(1, len(verdicts) // 50)]
    assert last[-1] < 2 * DEADLINE_MS


def counted(seen: Seen) -> int:
    return sum(event["count"] for event in seen.events if event["kind"] == "frames_skipped")


def test_frames_that_find_no_room_are_answered_where_asked(make_daemon: MakeDaemon) -> None:
    """With `when_full = "answer"` nothing is skipped for want of a slot: it is `error/overload`, in its turn."""
    daemon = overloaded(make_daemon, cameras=2, when_full="answer")
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: len(seen.verdicts) > 20)
        worker = next(each["pid"] for each in daemon.ask("status")["processes"] if each["name"] == "worker")
        with crawling(worker):
            verdicts = seen_in(subscriber, 4.0)
    all_in_time(verdicts)
    assert any(each["reason"] == "overload" and each["frame"] is not None for each in verdicts)
    for name in daemon.cameras:
        seqs = subscriber.seen.seqs(name)
        assert all(after == before + 1 for before, after in itertools.pairwise(seqs))
