"""Rows: more than the machine carries, and the same for a long time."""

from __future__ import annotations

import time

import numpy as np
from faults_daemon import Footprint
from faults_line import Line
from faults_trial import Trial, percentile
from faults_workshop import DEADLINE_MS

SLOTS = 8
FLAT_AFTER_SHARE = 0.3
"""The first part of a soak is warm-up."""
SLOPES = {"memory_mb": 4.0, "descriptors": 0.6, "threads": 0.3, "shm_mb": 0.1}
"""More than so much a minute, over at least ten minutes, is growth."""
LONG_ENOUGH_S = 600.0


def triple(trial: Trial) -> None:
    """Three times the frames that the worker can carry: latency stays within the deadline, the excess is told."""
    _overload(trial, trial.cameras("triple"), crawl=None)


def crawl(trial: Trial) -> None:
    """The worker slows down to a crawl in the middle of the work."""
    _overload(trial, trial.cameras(), crawl="0.3")


def _overload(trial: Trial, cameras: dict[str, str], crawl: str | None) -> None:
    totals: list[float] = []
    waiting = 0
    length_s = 2.0 if not trial.long else 15.0
    with trial.daemon(cameras) as line:
        for _ in range(trial.times):
            trial.pause()
            since_s = time.monotonic()
            if crawl is not None:
                line.daemon.orders.give("crawl", crawl)
            trial.injected += 1
            while time.monotonic() - since_s < length_s:
                waiting = max(waiting, *_waiting(line).values())
                time.sleep(0.1)
            line.daemon.orders.withdraw("crawl")
            off_s, off_utc_s = time.monotonic(), time.time()
            seen = [s for s in line.witness.verdicts if (s.at_s or 0) > since_s]
            totals += [s.total_ms for s in seen if s.judged and s.total_ms is not None]
            if crawl is not None:
                trial.recovered_s.append(line.judged_since(off_utc_s) - off_s)
        status = line.witness.ask("status") or {"cameras": {}}
        skipped = sum(each["frames_skipped"] for each in status["cameras"].values())
    reasons = trial.tally.reasons
    p99_ms = percentile(totals, 0.99) if totals else float("nan")
    trial.must(bool(totals), "no frame was judged under load")
    trial.must(p99_ms <= DEADLINE_MS, f"p99 of judged frames {p99_ms:.0f} ms, deadline {DEADLINE_MS} ms")
    trial.must(waiting <= 2 * SLOTS, f"{waiting} frames of a camera waited, the ring holds {SLOTS}")
    trial.notes.append(
        f"p50 {percentile(totals, 0.5) if totals else 0:.0f} ms, p99 {p99_ms:.0f} ms of {DEADLINE_MS}; at most "
        f"{waiting} waiting; {skipped} skipped, {reasons['overload']} error/overload, {reasons['late']} error/late"
    )


def _waiting(line: Line) -> dict[str, int]:
    """How many accepted frames of each camera are unanswered."""
    status = line.witness.ask("status")
    return {"none": 0} if status is None else {name: each["waiting"] for name, each in status["cameras"].items()}


def soak(trial: Trial) -> None:
    """Nothing is injected, for a long time: memory, descriptors, threads and /dev/shm stay where they are."""
    length_s = 60 * trial.minutes if trial.minutes else (1800.0 if trial.long else 5.0)
    every_s = max(0.5, length_s / 400)
    samples: list[tuple[float, Footprint]] = []
    with trial.daemon() as line:
        began_s = told_s = time.monotonic()
        while (now_s := time.monotonic()) - began_s < length_s:
            samples.append((now_s - began_s, line.daemon.footprint()))
            if now_s - told_s > 60:
                told_s = now_s
                trial.say(f"{(now_s - began_s) / 60:.0f} min, {len(line.witness.verdicts)} verdicts, {samples[-1][1]}")
            time.sleep(every_s)
        silences = line.silences()
        late = [s.total_ms for s in line.verdicts if s.total_ms is not None]
    slopes = _slopes_a_minute(samples)
    trial.must(not silences, f"{len(silences)} times no heartbeat for 600 ms")
    if length_s >= LONG_ENOUGH_S:
        for name, slope in slopes.items():
            trial.must(slope <= SLOPES[name], f"{name} grows by {slope:.3f} a minute")
    trial.notes.append(
        f"{length_s / 60:.1f} min; a minute: memory {slopes['memory_mb']:+.3f} MB, descriptors "
        f"{slopes['descriptors']:+.3f}, threads {slopes['threads']:+.3f}, shm {slopes['shm_mb']:+.3f} MB; latency p50 "
        f"{percentile(late, 0.5):.0f} ms, p99 {percentile(late, 0.99):.0f} ms"
    )


def _slopes_a_minute(samples: list[tuple[float, Footprint]]) -> dict[str, float]:
    """The straight line through each quantity after warm-up."""
    kept = samples[int(FLAT_AFTER_SHARE * len(samples)) :]
    minutes = np.array([at_s / 60 for at_s, _ in kept])
    return {
        name: float(np.polyfit(minutes, [getattr(held, name) for _, held in kept], 1)[0]) if len(kept) > 2 else 0.0
        for name in SLOPES
    }
