"""`bench pipeline`: what the daemon adds to the model's time, and costs.

The real daemon runs with the cameras and the detector of `rig.py`. A subscriber beside it notes when each verdict
comes; `added` is that moment less the frame's exposure and less the model's own time. It holds everything: the wake-up
of capture, the copy into the ring, batching, crop, regions, mask, the journal's commit, the way through the sockets.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from inspectd.bench.processes import children, cpu_s, memory_mb
from inspectd.bench.rig import RandomModel, Rig
from inspectd.client import Client
from inspectd.errors import ConfigError, ExitCode, TransportError
from inspectd.transport.clients import Subscription

START_S = 300.0
LEAD_S = 0.5
QUIET_S = 3.0
"""So long without a verdict after the cameras' last frame: nothing more will come."""
STOP_S = 10.0
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Cameras and their rate; reads `4x25` as four cameras of 25 frames a second."""

    cameras: int
    fps: float

    def __str__(self) -> str:
        return f"{self.cameras} x {self.fps:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """What `bench pipeline` runs: one daemon for each load, one after the other."""

    loads: tuple[Load, ...] = (Load(cameras=1, fps=10), Load(cameras=4, fps=10), Load(cameras=4, fps=25))
    seconds: float = 20.0
    idle_s: float = 5.0
    """So long the daemon is watched before its cameras give frames."""
    size_wh_px: tuple[int, int] = (1920, 1080)
    failing: float = 0.02
    together: bool = False
    model: RandomModel | None = None
    deadline_ms: float = 1000.0
    threads: int | None = None
    state_dir: Path | None = None
    """Where the journal is written; default: a temporary folder. Its disk is part of what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Quantiles of times in ms."""

    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> Spread | None:
        """None of nothing."""
        if not values_ms:
            return None
        p50, p99, most = np.percentile(values_ms, (50, 99, 100))
        return cls(p50=float(p50), p99=float(p99), most=float(most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What was found at one load."""

    cameras: int
    fps: float
    frames: int
    """That the cameras exposed."""
    verdicts: int
    reasons: dict[str, int]
    skipped: int
    """Frames that were not accepted: missed in the camera, or the ring was full."""
    rate_fps: float
    total_ms: Spread | None
    """From exposure to the subscriber."""
    added_ms: Spread | None
    """The same without the model's time."""
    parts_ms: dict[str, Spread]
    commit_ms: Spread | None
    """Of the journal, as the daemon counts it; part of `added`."""
    cpu_ms_per_frame: float
    cpu_ms_by_process: dict[str, float]
    """The same, by process."""
    idle_cpu_percent: float
    """Of one core, while no camera gives a frame."""
    idle_by_process: dict[str, float]
    memory_mb: dict[str, float]


@dataclass(slots=True)
class _Heard:
    """What the subscriber heard."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    ages_ms: list[float] = field(default_factory=list)
    """From exposure to here."""
    first_s: float = 0.0
    last_s: float = 0.0


def parse_loads(text: str) -> tuple[Load, ...]:
    """Loads such as `1x10,4x25`.

    Raises:
        ConfigError: no load.
    """
    return tuple(
        Load(cameras=int(cameras), fps=fps) for cameras, fps in (_pair(one, "4x10") for one in text.split(","))
    )


def parse_size(text: str) -> tuple[int, int]:
    """A size such as `1920x1080`.

    Raises:
        ConfigError: no size.
    """
    width, height = _pair(text, "1920x1080")
    return int(width), int(height)


def _pair(text: str, example: str) -> tuple[float, float]:
    try:
        first, second = text.split("x")
        pair = int(first), float(second)
    except ValueError:
        pair = 0, 0.0
    if not (pair[0] >= 1 and 0 < pair[1] < math.inf):
        raise ConfigError(f"{text!r}: expected two numbers such as {example}")
    return pair


def bench_pipeline(plan: PipelinePlan, progress: Callable[[str], None] = lambda _: None) -> tuple[Flow, ...]:
    """Measures the daemon at each load.

    Raises:
        ConfigError: the model, or the folder for the journal, cannot be had.
        TransportError: the daemon ended, or gave no verdict.
    """
    return tuple(_flow(plan, load, progress) for load in plan.loads)


def _flow(plan: PipelinePlan, load: Load, progress: Callable[[str], None]) -> Flow:
    with _folder(plan.state_dir) as folder:
        rig = _rig(plan, load, folder)
        with _serving(rig) as daemon, Client(rig.control) as client, Subscription(rig.verdicts, [b"verdict/"]) as ear:
            progress(f"{load}: starting")
            names = _processes(daemon, _wait_until_ready(daemon, client))
            progress(f"{load}: idle for {plan.idle_s:g} s")
            idle = _spent_s(names, lambda: time.sleep(plan.idle_s))
            progress(f"{load}: {plan.seconds:g} s")
            heard = _Heard()
            rig.start(time.monotonic_ns() + round(LEAD_S * 1e9))
            spent = _spent_s(names, lambda: _listen(daemon, ear, rig, plan, heard))
            status = client.status()
            memory = {name: memory_mb(pid) for name, pid in names.items()}
    if not heard.bodies:
        raise TransportError("the daemon gave no verdict")
    return _found(load, rig, heard, status, idle_s=idle, idle_for_s=plan.idle_s, spent_s=spent, memory=memory)


def _rig(plan: PipelinePlan, load: Load, folder: Path) -> Rig:
    return Rig(
        folder=folder,
        cameras=load.cameras,
        fps=load.fps,
        frames=max(1, round(plan.seconds * load.fps)),
        size_wh_px=plan.size_wh_px,
        failing_every=max(1, round(1 / plan.failing)) if plan.failing else 1 << 62,
        together=plan.together,
        model=plan.model,
        deadline_ms=plan.deadline_ms,
        threads=plan.threads,
    )


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="inspectd-bench-", dir=given) as folder:
            yield Path(folder)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or given}: {error.strerror or error}; choose another --state-dir"
        ) from error


@contextmanager
def _serving(rig: Rig) -> Iterator[SpawnProcess]:
    """The daemon, as a process; it is gone afterwards, whatever happens."""
    daemon = multiprocessing.get_context("spawn").Process(target=rig.serve, name="bench-daemon")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.terminate()
        daemon.join(STOP_S)
        if daemon.exitcode is None:
            daemon.kill()
            daemon.join()


def _wait_until_ready(daemon: SpawnProcess, client: Client) -> dict[str, Any]:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        _require_alive(daemon)
        try:
            status = client.status()
        except TransportError:
            continue
        if status["state"] == "ready":
            return status
        time.sleep(0.1)
    raise TransportError(f"the daemon was not ready within {START_S:g} s")


def _require_alive(daemon: SpawnProcess) -> None:
    if daemon.exitcode is None:
        return
    message = f"the daemon ended with exit code {daemon.exitcode}; its words stand above"
    raise ConfigError(message) if daemon.exitcode == ExitCode.CONFIG else TransportError(message)


def _processes(daemon: SpawnProcess, status: Mapping[str, Any]) -> dict[str, int]:
    """All processes of the daemon by name: those that `status` names, their parent, and what else that started."""
    parent = daemon.pid or 0
    named = {"supervisor": parent} | {each["name"]: each["pid"] for each in status["processes"]}
    others = [pid for pid in children(parent) if pid not in named.values()]
    return named | {f"helper-{pid}": pid for pid in others}


def _spent_s(names: Mapping[str, int], meanwhile: Callable[[], None]) -> dict[str, float]:
    """CPU seconds of each process over what is done meanwhile."""
    before = {name: cpu_s(pid) for name, pid in names.items()}
    meanwhile()
    return {name: cpu_s(pid) - before[name] for name, pid in names.items()}


def _listen(daemon: SpawnProcess, ear: Subscription, rig: Rig, plan: PipelinePlan, heard: _Heard) -> None:
    """Takes verdicts until every exposed frame has one, or none comes for a while."""
    ends_s = time.monotonic() + LEAD_S + plan.seconds
    quiet_since_s = time.monotonic()
    while len(heard.bodies) < rig.cameras * rig.frames:
        parts = ear.receive(0.2)
        now_s = time.monotonic()
        if parts is None:
            _require_alive(daemon)
            if now_s > ends_s and now_s - quiet_since_s > QUIET_S:
                return
            continue
        now_utc_s = time.time()
        quiet_since_s = heard.last_s = now_s
        heard.first_s = heard.first_s or now_s
        body = json.loads(parts[1])
        heard.bodies.append(body)
        if body["captured_utc"] is not None:
            exposed_s = (datetime.fromisoformat(body["captured_utc"]) - _EPOCH).total_seconds()
            heard.ages_ms.append((now_utc_s - exposed_s) * 1e3)


def _found(
    load: Load,
    rig: Rig,
    heard: _Heard,
    status: Mapping[str, Any],
    *,
    idle_s: Mapping[str, float],
    idle_for_s: float,
    spent_s: Mapping[str, float],
    memory: dict[str, float],
) -> Flow:
    count = len(heard.bodies)
    latencies = [body["latency_ms"] for body in heard.bodies]
    parts = {
        name: Spread.of([each[name] for each in latencies if each[name] is not None])
        for name in ("capture", "queue", "infer", "post", "publish", "total")
    }
    added = [age - (each["infer"] or 0.0) for age, each in zip(heard.ages_ms, latencies, strict=True)]
    commit = status["journal"]["commit_ms"]
    return Flow(
        cameras=load.cameras,
        fps=load.fps,
        frames=rig.cameras * rig.frames,
        verdicts=count,
        reasons=dict(Counter(f"{body['decision']}/{body['reason']}" for body in heard.bodies)),
        skipped=sum(camera["frames_skipped"] for camera in status["cameras"].values()),
        rate_fps=(count - 1) / (heard.last_s - heard.first_s) if count > 1 else 0.0,
        total_ms=Spread.of(heard.ages_ms),
        added_ms=Spread.of(added),
        parts_ms={name: spread for name, spread in parts.items() if spread is not None},
        commit_ms=None if commit["p50"] is None else Spread(p50=commit["p50"], p99=commit["p99"], most=commit["most"]),
        cpu_ms_per_frame=sum(spent_s.values()) / count * 1e3,
        cpu_ms_by_process={name: spent / count * 1e3 for name, spent in spent_s.items()},
        idle_cpu_percent=100 * sum(idle_s.values()) / idle_for_s,
        idle_by_process={name: 100 * spent / idle_for_s for name, spent in idle_s.items()},
        memory_mb=memory,
    )
