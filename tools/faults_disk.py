"""Rows: no room, no right to write, a disk that hangs. Small file systems live in a mount namespace of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

import psutil
from faults_daemon import Daemon
from faults_hung import hung_mount
from faults_line import KILLS_A_DAEMON, Broken, Line
from faults_trial import Skipped, Trial, batches, can, harm, preload
from faults_workshop import config_of, playing, recipe_of

STATE_MB = 24


class _Disk(TypedDict):
    prefix: list[str]
    state: Path | None


def small_shm(trial: Trial) -> None:
    """/dev/shm too small for the rings: one clear line at start, exit code, no SIGBUS at noon."""
    _require_namespace()
    sizes_kb = {f"shm{number}": trial.rng.choice([64, 256, 1024]) for number in range(trial.times)}
    mounts = {name: _mounted(f"mount -t tmpfs -o size={size_kb}k tmpfs /dev/shm") for name, size_kb in sizes_kb.items()}
    for daemon, size_kb in zip(_refused(trial, mounts), sizes_kb.values(), strict=True):
        said = daemon.said()
        trial.must(daemon.exit_code not in (0, None), f"/dev/shm of {size_kb} kB: exit code {daemon.exit_code}")
        trial.must(len(said) == 1 and "/dev/shm" in said[0], f"/dev/shm of {size_kb} kB: it said {said}")
    trial.notes.append("refused at start in one line that names size and setting")


def read_only_start(trial: Trial) -> None:
    """A state folder that cannot be written: a clear error at start."""
    _require_namespace()
    mounts = {}
    for name in (f"ro{number}" for number in range(trial.times)):
        state = trial.workshop.folder / name / "state"
        state.mkdir(parents=True, exist_ok=True)
        mounts[name] = _mounted(f"mount -t tmpfs -o ro,size=1m tmpfs {state}")
    for daemon in _refused(trial, mounts):
        said = daemon.said()
        trial.must(daemon.exit_code == 3, f"exit code {daemon.exit_code}, expected 3 (configuration)")
        trial.must(len(said) == 1 and str(daemon.state) in said[0], f"it said {said}")
    trial.notes.append("refused at start with exit 3 in one line")


def _refused(trial: Trial, prefixes: Mapping[str, Sequence[str]]) -> Iterator[Daemon]:
    """Daemons that must not come up, as many at a time as there are cores; each has ended when it is told."""

    def refused(name: str) -> tuple[Daemon, float]:
        daemon = Daemon(trial.workshop.folder / name, config_of(trial.cameras()), recipe_of(), prefix=prefixes[name])
        at_s = time.monotonic()
        try:
            daemon.start()
            daemon.wait(30.0)
            return daemon, time.monotonic() - at_s
        finally:
            daemon.remove()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for daemon, took_s in pool.map(refused, prefixes):
            trial.injected += 1
            trial.detected_s.append(took_s)
            yield daemon


def full_disk(trial: Trial) -> None:
    """The disk of the journal fills up while it works: verdicts go on, and are journaled when there is room again."""
    _require_namespace()
    with trial.daemon(**_own_disk(trial)) as line:
        inside = Path(f"/proc/{line.daemon.pid}/root{line.daemon.state}")  # as the daemon sees it
        for _ in range(trial.times):
            trial.pause()
            at_s = time.monotonic()
            _fill(inside)
            trial.injected += 1
            _degraded(line, at_s)
            time.sleep(0.5)
            line.judged_since(time.time())  # verdicts go on
            for filler in inside.glob("filler*"):
                filler.unlink()
            _back(line)
    trial.must(any(told.kind == "journal_failed" for told in line.witness.events), "no event told of the full disk")
    _tell_unjournaled(trial, line)


def read_only_disk(trial: Trial) -> None:
    """The disk of the journal becomes read-only while it works, as the kernel makes one with errors."""
    _by_shim(trial, "FAULTS_READ_ONLY")


def stall(trial: Trial) -> None:
    """fsync hangs, as on a sick disk."""
    line = _by_shim(trial, "FAULTS_STALL")
    trial.must(not line.silences(), f"heartbeats were missing: {line.silences()}")


def _by_shim(trial: Trial, name: str) -> Line:
    """The C library's calls fail or hang while a file exists: a remount would find the journal's files busy."""
    preload(trial.workshop.folder)
    flag = harm(trial.workshop.folder, name)
    with trial.daemon(**_own_disk(trial)) as line:
        for _ in range(trial.times):
            trial.pause()
            at_s = time.monotonic()
            flag.touch()
            trial.injected += 1
            try:
                _degraded(line, at_s)
                time.sleep(trial.rng.uniform(0.5, 1.5))
                line.judged_since(time.time())  # verdicts go on
            finally:
                flag.unlink()
            _back(line)
    _tell_unjournaled(trial, line)
    return line


def _degraded(line: Line, since_s: float) -> None:
    """Waits until a verdict says that it is not in the journal, or the heartbeat that something is wrong."""

    def told() -> bool:
        beats = any(beat.at_s > since_s and beat.state == "degraded" for beat in line.witness.beats[-20:])
        return beats and any((s.at_s or 0) > since_s and not s.journaled for s in line.witness.verdicts[-200:])

    if not line.witness.until(told, 10.0):
        raise Broken("no verdict said journaled: false, or no heartbeat said degraded")
    first = next(s for s in line.witness.verdicts if (s.at_s or 0) > since_s and not s.journaled)
    line.trial.detected_s.append((first.at_s or 0.0) - since_s)


def _back(line: Line) -> None:
    """Waits until verdicts are journaled first again."""
    at_s = time.monotonic()

    def back() -> bool:
        state = line.witness.beats[-1].state == "ready"
        return state and any((s.at_s or 0) > at_s and s.journaled for s in line.witness.verdicts[-200:])

    if not line.witness.until(back, 20.0):
        raise Broken("the journal did not come back within 20 s")
    line.trial.recovered_s.append(time.monotonic() - at_s)


def _tell_unjournaled(trial: Trial, line: Line) -> None:
    unjournaled = sum(not seen.journaled for seen in line.verdicts)
    trial.notes.append(f"{unjournaled} verdicts went out with journaled: false, all are in the journal now")


def hung_reads(trial: Trial) -> None:
    """A camera's file lies on a disk that hangs: its capture is stuck in the kernel, where not even SIGKILL ends it."""
    folder, flag = trial.workshop.folder / "hung", trial.workshop.folder / "hangs"
    folder.mkdir(exist_ok=True)
    shutil.copy(trial.workshop.clip, folder / "belt.mp4")
    with ExitStack() as stack:
        try:
            stack.enter_context(hung_mount(folder, trial.workshop.folder / "mount", flag))
        except OSError as error:
            raise Skipped(f"a file system that hangs needs root and FUSE: {error}") from error
        stack.callback(flag.unlink, missing_ok=True)  # or the daemon could not end
        cameras = {"cam1": playing(trial.workshop.clip), "cam2": playing(trial.workshop.folder / "mount" / "belt.mp4")}
        for numbers in batches(trial.times, KILLS_A_DAEMON):
            with trial.daemon(cameras, kills={"capture-cam2": len(numbers)}) as line:
                for _ in numbers:
                    trial.pause()
                    _hang_once(line, flag)
            trial.stock.close()
    trial.notes.append("back: from the disk's return on; the other camera went on")


def _hang_once(line: Line, flag: Path) -> None:
    """Its capture is given up, the camera is lost, the daemon degraded; it is back when the disk is."""
    capture = line.daemon.pids(line.witness)["capture-cam2"]
    at_s = time.monotonic()
    flag.touch()
    line.trial.injected += 1

    def lost() -> bool:
        beat = line.witness.beats[-1]
        return beat.at_s > at_s and beat.camera_state["cam2"] == "lost" and beat.state == "degraded"

    try:
        if not line.witness.until(lost, 15.0):
            raise Broken("a camera whose capture hangs in the kernel was not told lost")
        line.trial.detected_s.append(line.witness.beats[-1].at_s - at_s)
        line.trial.must(psutil.Process(capture).status() == psutil.STATUS_DISK_SLEEP, "the capture did not hang")
        line.judged_since(time.time(), ["cam1"])
    finally:
        flag.unlink()
    back_s, back_utc_s = time.monotonic(), time.time()
    line.trial.recovered_s.append(line.judged_since(back_utc_s, ["cam2"]) - back_s)


# -- hands ------------------------------------------------------------------------------------------------------------


def _own_disk(trial: Trial) -> _Disk:
    """A small disk for the state of a daemon, where one can be had."""
    place = trial.workshop.folder / f"disk-{os.getpid()}"
    place.mkdir(exist_ok=True)
    copied = f"cp -r {trial.workshop.embeddings} {place}/cache"
    mount = _mounted(f"mount -t tmpfs -o size={STATE_MB}m tmpfs {place} && {copied}")
    return _Disk(prefix=mount, state=place) if _has_namespace() else _Disk(prefix=[], state=None)


def _require_namespace() -> None:
    if not _has_namespace():
        raise Skipped("unshare -m and mount need root")


def _has_namespace() -> bool:
    return can("unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt")


def _mounted(mount: str) -> list[str]:
    return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def _fill(place: Path) -> None:
    """To the last page."""
    for name, step in (("filler", 64 << 10), ("filler2", 512)):
        with contextlib.suppress(OSError), (place / name).open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(step))
