"""Rows: what goes wrong around the model: mixed pixels, NaN, no memory; and the clocks."""

from __future__ import annotations

import contextlib
import struct
import time

import psutil
from faults_line import BACK_S, Broken, Line
from faults_trial import Trial, harm, percentile, preload
from faults_workshop import CAMERAS, PATIENT_MS

HOUR_S = 3600
SLEW_MILLIONTHS = 50_000
"""A hundred times more than the kernel slews a clock by."""


def overrun(trial: Trial) -> None:
    """The writer uses a slot again while its reader stands still in the middle of the copy."""
    corrupt = buried = 0
    with trial.daemon(trial.cameras("half"), deadline_ms=PATIENT_MS) as line:
        while trial.injected < trial.times and buried <= trial.times:
            trial.pause()
            outcome = _overrun_once(line)
            buried += outcome is None
            corrupt += outcome is True
    trial.must(
        corrupt == trial.injected > 0, f"{corrupt} of {trial.injected} overrun frames became error/frame_corrupt"
    )
    again = f"; {buried} times the reader was taken for dead before" if buried else ""
    trial.notes.append(f"{corrupt} error/frame_corrupt{again}")


def _overrun_once(line: Line) -> bool | None:
    """The worker stops while it reads a bad part, capture puts a good one there, the worker goes on.

    Returns:
        whether an error came of it; None where the supervisor replaced the stopped worker first.
    """
    orders, witness = line.daemon.orders, line.witness

    def corrupt() -> int:
        return sum(seen.reason == "frame_corrupt" for seen in witness.verdicts)

    before, since_utc_s = corrupt(), time.time()
    orders.give("stop-reading")
    if not witness.until(lambda: orders.read("stopped") is not None, 10.0):
        raise Broken("the worker never looked at a bad part")
    stopped = orders.read("stopped") or ""
    orders.withdraw("stopped")
    orders.give("overrun", stopped)
    overwritten = orders.obeyed("overrun", 5.0)
    orders.withdraw("overrun")
    if not (_resumed(line) and overwritten):
        line.judged_since(since_utc_s)
        return None
    line.trial.injected += 1
    return witness.until(lambda: corrupt() > before, 8.0)


def _resumed(line: Line) -> bool:
    """SIGCONT to the child that stands still, without asking the daemon; False where there is none."""
    for process in psutil.Process(line.daemon.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                process.resume()
                return True
    return False


def nan(trial: Trial) -> None:
    """The model gives NaN for a while."""
    with trial.daemon() as line:
        for _ in range(trial.times):
            trial.pause()
            at_s, at_utc_s = time.monotonic(), time.time()
            line.daemon.orders.give("nan")
            trial.injected += 1
            first = line.answered(at_utc_s, "not_finite", 5.0)
            trial.pause(0.5, 0.8)
            line.daemon.orders.withdraw("nan")
            if first is None:
                trial.must(False, "NaN was never answered error/not_finite")
                continue
            trial.detected_s.append((first.at_s or 0.0) - at_s)
            off_s, off_utc_s = time.monotonic(), time.time()
            trial.recovered_s.append(line.judged_since(off_utc_s) - off_s)
    trial.notes.append(f"{trial.tally.reasons['not_finite']} error/not_finite")


def memory(trial: Trial) -> None:
    """The device has no memory: the batch is halved once; what is short again is replaced."""
    for first in range(0, trial.times, 3):
        deaths = min(3, trial.times - first)
        with trial.daemon(kills={"worker": deaths}) as line:
            since_utc_s = time.time()
            for _ in range(deaths):
                trial.pause()
                at_s, at_utc_s = time.monotonic(), time.time()
                line.daemon.orders.give("memory", "1")
                trial.injected += 1
                line.detected("worker", at_utc_s, 10.0)
                line.daemon.orders.withdraw("memory")
                trial.recovered_s.append(line.judged_since(at_utc_s, within_s=BACK_S) - at_s)
            halved = line.daemon.logged_s(lambda entry: entry["event"] == "passes_halved", since_utc_s) is not None
    trial.notes.append("by order inside, in the tower: no GPU needed; back with the model's load")
    trial.notes.append("passes were halved first" if halved else "every pass had one frame: nothing to halve")


def clock(trial: Trial) -> None:
    """Wall time steps by an hour, forth and back, and runs too fast or slow: no restart, no change of latency or order.

    By a shim of the harness's own: libfaketime 0.9.10 (Debian 12) makes Python's sleep fail with EINVAL.
    """
    preload(trial.workshop.folder)
    calm: list[float] = []
    stepped: list[float] = []
    with trial.daemon(trial.cameras("half"), deadline_ms=PATIENT_MS) as line:
        pids = line.daemon.pids(line.witness)
        for number in range(trial.times):
            time.sleep(0.8)
            calm += _totals(line, time.monotonic() - 0.8)
            trial.pause()
            at_s = time.monotonic()
            way = -1 if number % 2 else 1
            _set_clock(trial, way * HOUR_S)
            trial.injected += 1
            time.sleep(0.8)
            _set_clock(trial, way * HOUR_S, slew_millionths=way * SLEW_MILLIONTHS)
            trial.injected += 1
            time.sleep(0.8)
            stepped += _totals(line, at_s)
        since_s = time.monotonic()
        if not line.witness.until(lambda: len(_cameras_since(line, since_s)) == len(CAMERAS), 10.0):
            raise Broken("cameras fell silent after the clock's steps")
        _set_clock(trial, 0)
        trial.must(line.daemon.pids(line.witness) == pids, "a process was replaced")
        trial.must(not line.silences(), f"heartbeats were missing: {line.silences()}")
    if calm and stepped:
        p99 = percentile(calm, 0.99), percentile(stepped, 0.99)
        trial.notes.append(
            f"p99 {p99[0]:.0f} ms before, {p99[1]:.0f} ms after a step and while it runs "
            f"{SLEW_MILLIONTHS / 10_000:g} % fast or slow; no restart"
        )


def _set_clock(trial: Trial, off_s: int, slew_millionths: int = 0) -> None:
    """In place: every process has the file mapped. What it ran ahead before is taken back, as a step."""
    words = struct.pack("<qqq", off_s, slew_millionths, time.time_ns())
    with harm(trial.workshop.folder, "FAULTS_CLOCK").open("r+b") as file:
        file.write(words)


def _totals(line: Line, since_s: float) -> list[float]:
    return [
        s.total_ms for s in line.witness.verdicts if (s.at_s or 0) > since_s and s.total_ms is not None and s.judged
    ]


def _cameras_since(line: Line, since_s: float) -> set[str]:
    return {seen.camera for seen in line.witness.verdicts if (seen.at_s or 0) > since_s and seen.judged}
