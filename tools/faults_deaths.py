"""Rows: processes that die or stand still, at any moment and between any two steps."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

from faults_daemon import START_S
from faults_line import BACK_S, KILLS_A_DAEMON, Broken, Line
from faults_trial import DEAD_AFTER_S, Trial, batches, half, percentile
from faults_workshop import CAMERAS, PATIENT_MS, playing

STEPS = (
    *("ring.opened", "ring.named", "ring.copied", "ring.closed"),
    *("opened", "slot", "accepted_ns", "deadline_ns", "simulated", "slot_generation", "frame_index", "width_px"),
    *("height_px", "pts_s", "captured_ns", "captured_utc_ns", "capture_ms", "trigger_kind", "gate", "texts"),
    *("named", "accepted", "wake"),
)
"""Of acceptance, in their order: the slot, the row, the mark, the wake-ups."""


def kill_capture(trial: Trial) -> None:
    """SIGKILL of captures at half load; the other cameras must not notice."""
    calm: list[float] = []
    struck: list[float] = []
    for numbers in batches(trial.times, KILLS_A_DAEMON * len(CAMERAS)):
        captures = Counter(f"capture-{CAMERAS[number % len(CAMERAS)]}" for number in numbers)
        with trial.daemon(trial.cameras("half"), deadline_ms=PATIENT_MS, kills=captures) as line:
            for number in numbers:
                camera = CAMERAS[number % len(CAMERAS)]
                trial.pause(0.5, 1.0)
                _keep_totals(line, calm, time.monotonic() - 0.8, camera)
                at_s, at_utc_s = _kill(line, f"capture-{camera}")
                back_s = line.judged_since(at_utc_s, [camera])
                trial.recovered_s.append(back_s - at_s)
                _keep_totals(line, struck, at_s, camera)
    if calm and struck:
        p99 = percentile(calm, 0.99), percentile(struck, 0.99)
        trial.notes.append(f"p99 of the other cameras {p99[0]:.0f} ms, after a death {p99[1]:.0f} ms ({len(struck)})")
    trial.target(trial.detected_s, 0.3, "detected")
    trial.target(trial.recovered_s, 3.0, "back")


def kill_worker(trial: Trial) -> None:
    """SIGKILL of the worker under load; its model load is told apart."""
    loads: list[float] = []
    for numbers in batches(trial.times, KILLS_A_DAEMON):
        with trial.daemon(kills={"worker": len(numbers)}) as line:
            for _ in numbers:
                trial.pause()
                at_s, at_utc_s = _kill(line, "worker")
                back_s = line.judged_since(at_utc_s) - at_s
                loads.append(_load_s(line, at_utc_s))
                trial.recovered_s.append(back_s - loads[-1])
    lost = trial.tally.reasons["worker_lost"]
    trial.notes.append(f"back is without the model's load, p50 {half(loads):.1f} s; {lost} error/worker_lost")
    trial.must(lost > 0, "nothing was answered error/worker_lost")
    trial.target(trial.detected_s, 0.3, "detected")
    trial.target(trial.recovered_s, 3.0, "back")


def kill_publisher(trial: Trial) -> None:
    """SIGKILL of the publisher under load: silence, then everything overdue, and nothing twice."""
    for numbers in batches(trial.times, KILLS_A_DAEMON):
        with trial.daemon(kills={"publisher": len(numbers)}) as line:
            for _ in numbers:
                trial.pause()
                at_s, at_utc_s = _kill(line, "publisher")
                trial.recovered_s.append(line.judged_since(at_utc_s) - at_s)
    trial.target(trial.detected_s, 0.3, "detected")
    trial.target(trial.recovered_s, 3.0, "back")


def kill_supervisor(trial: Trial) -> None:
    """SIGKILL of the supervisor: all die with it, and the next start answers what they left."""
    gone: list[float] = []
    loads: list[float] = []
    internal = 0
    with trial.daemon() as line:
        for _ in range(trial.times):
            trial.pause()
            children = list(line.daemon.pids(line.witness).values())
            session, at_s, at_utc_s = line.session, time.monotonic(), time.time()
            os.kill(line.daemon.pid, signal.SIGKILL)
            trial.injected += 1
            line.daemon.wait()
            if not line.witness.until(lambda pids=children: not any(map(_alive, pids)), 5.0):  # type: ignore[misc]
                raise Broken("children outlived the supervisor by 5 s")
            gone.append(time.monotonic() - at_s)
            line.owe(session, line.daemon.accepted())
            line.daemon.start()
            line.forget_deaths()
            back_s = line.judged_since(at_utc_s, CAMERAS) - at_s
            loads.append(_load_s(line, at_utc_s))
            trial.recovered_s.append(back_s - loads[-1])
            trial.detected_s.append(gone[-1])
            for camera in CAMERAS:
                internal += sum(seen.reason == "internal" for seen in line.witness.history(session, camera))
    trial.notes.append(f"detected: all children gone; {internal} left frames became error/internal")
    trial.notes.append(f"back is without the model's load, p50 {half(loads):.1f} s")
    trial.target(gone, 1.0, "children gone")
    trial.target(trial.recovered_s, 3.0, "back")


def stop_children(trial: Trial) -> None:
    """SIGSTOP of any child: dead within its limit, replaced."""
    for numbers in batches(trial.times, 3):
        names = ["capture-" + trial.rng.choice(CAMERAS), "worker", "publisher"][: len(numbers)]
        with trial.daemon(kills=Counter(names)) as line:
            for name in names:
                trial.pause()
                at_s, at_utc_s = _kill(line, name, signal.SIGSTOP)
                trial.recovered_s.append(line.judged_since(at_utc_s, within_s=BACK_S) - at_s)
    trial.target(trial.detected_s, DEAD_AFTER_S + 0.5, "detected")
    trial.notes.append(f"the limit of a silent child is {DEAD_AFTER_S:g} s")


def between_steps(trial: Trial) -> None:
    """SIGKILL of a capture between any two steps of acceptance."""
    steps = list(STEPS)
    trial.rng.shuffle(steps)
    for numbers in batches(trial.times, KILLS_A_DAEMON * len(CAMERAS)):
        captures = Counter(f"capture-{CAMERAS[number % len(CAMERAS)]}" for number in numbers)
        with trial.daemon(kills=captures) as line:
            for number in numbers:
                camera, step = CAMERAS[number % len(CAMERAS)], steps[number % len(steps)]
                order = f"die-capture-{camera}"
                line.daemon.orders.give(order, step)
                if not line.daemon.orders.obeyed(order, 10.0):
                    raise Broken(f"no acceptance came to the step {step}")
                at_s, at_utc_s = time.monotonic(), time.time()
                trial.injected += 1
                trial.recovered_s.append(line.judged_since(at_utc_s, [camera]) - at_s)
    trial.notes.append("steps: " + ", ".join(steps[: trial.times]) if trial.times <= 5 else f"{len(STEPS)} steps")


def standing_line(trial: Trial) -> None:
    """SIGKILL of the publisher after the last part of a line that then stands still: nothing comes to wake anybody."""
    trigger = 'trigger = { kind = "external" }\n'
    camera = {"cam1": playing(trial.workshop.clip, more=trigger)}
    for numbers in batches(trial.times, KILLS_A_DAEMON):
        with trial.daemon(camera, kills={"publisher": len(numbers)}, warm=False) as line:
            line.witness.until(lambda: bool(line.witness.beats) and line.witness.beats[-1].state == "ready", START_S)
            for number in numbers:
                _strike_last_part(line, number)


def _strike_last_part(line: Line, number: int) -> None:
    """Two parts come, the publisher is killed, and no third part comes."""
    for part in (f"part {number}.1", f"part {number}.2"):
        line.witness.ask("trigger", camera="cam1", trigger_id=part)
    time.sleep(line.trial.rng.uniform(0, 0.1))
    at_s, _ = _kill(line, "publisher")
    owed = line.daemon.accepted()["cam1"]
    if not line.witness.until(lambda: line.witness.beats[-1].last_seq["cam1"] >= owed, BACK_S):
        raise Broken("the last part was never answered")
    line.trial.recovered_s.append(time.monotonic() - at_s)


# -- hands ------------------------------------------------------------------------------------------------------------


def _kill(line: Line, child: str, number: signal.Signals = signal.SIGKILL) -> tuple[float, float]:
    """Sends a signal to a child and waits until the supervisor notices; when it was sent, monotonic and UTC."""
    pid = line.daemon.pids(line.witness)[child]
    at_s, at_utc_s = time.monotonic(), time.time()
    os.kill(pid, number)
    line.trial.injected += 1
    line.detected(child, at_utc_s)
    return at_s, at_utc_s


def _load_s(line: Line, since_utc_s: float) -> float:
    """How long the new worker took from its birth until it was warm."""

    def born(entry: dict[str, object]) -> bool:
        return entry["event"] == "child_spawned" and entry.get("child") == "worker"

    began = line.daemon.logged_s(born, since_utc_s)
    ready = line.daemon.logged_s(lambda entry: entry["event"] == "worker_ready", since_utc_s)
    if began is None or ready is None:
        raise Broken("the log tells of no new worker")
    return ready - began


def _keep_totals(line: Line, kept: list[float], since_s: float, without: str) -> None:
    kept += [
        seen.total_ms
        for seen in line.witness.verdicts[-400:]
        if (seen.at_s or 0) > since_s and seen.judged and seen.camera != without and seen.total_ms is not None
    ]


def _alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - /proc
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
