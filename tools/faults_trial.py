"""One row of the table at work: starts daemons, keeps the times, and has every daemon audited before it goes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from faults_daemon import ROOT, Footprint
from faults_line import Line, Setup, Stock
from faults_tally import Objection, Tally
from faults_workshop import CAMERAS, DEADLINE_MS, Workshop, config_of, playing, recipe_of

SHIM = ROOT / "tools" / "faults_shim.c"
CLOCK_BYTES = 24
DEAD_AFTER_S = 2.0
"""The daemon takes a child for dead that is silent for so long (its heartbeat limit)."""


class Skipped(Exception):  # noqa: N818 - not an error
    """A row that cannot run here; the text says why."""


@dataclass(slots=True)
class Trial:
    """A row at work, and what it found."""

    name: str
    rng: random.Random
    times: int
    asked: int | None
    """The times that somebody asked for by number."""
    long: bool
    minutes: float | None
    workshop: Workshop
    stock: Stock
    bug: str = ""
    say: Callable[[str], None] = lambda _: None
    injected: int = 0
    detected_s: list[float] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Targets of time that were not met: printed, not failed, for they are the machine's too."""
    skipped: str | None = None
    tally: Tally = field(default_factory=Tally)
    before: Footprint | None = None
    after: Footprint | None = None
    took_s: float = 0.0

    @property
    def clean(self) -> bool:
        return self.tally.clean and not self.broken

    def cameras(self, clip: str = "belt", **settings: object) -> dict[str, str]:
        """The usual four, each playing the clip for ever."""
        return {name: playing(self.workshop.folder / f"{clip}.mp4", **settings) for name in CAMERAS}

    @contextmanager
    def daemon(
        self,
        cameras: Mapping[str, str] | None = None,
        *,
        deadline_ms: float = DEADLINE_MS,
        prefix: Sequence[str] = (),
        state: Path | None = None,
        objection: Objection | None = None,
        kills: Mapping[str, int] | None = None,
        warm: bool = True,
    ) -> Iterator[Line]:
        """A daemon that inspects, the last row's where it is of the same kind; what it owed by the end is counted.

        Args:
            kills: how often each child is going to die: one that dies too often is given a rest, which is another
                row's matter, so that row gets a daemon of its own.
        """
        setup = Setup(
            config=config_of(cameras or self.cameras()),
            recipe=recipe_of(deadline_ms),
            environment=_environment(self.workshop.folder, self.bug),
            prefix=tuple(prefix),
            state=state,
        )
        line = self.stock.line(self, setup, objection or self.workshop.truth.objection, Counter(kills or {}))
        try:
            line.begin()
            if warm:
                line.warm_up()
            yield line
            line.audit()
        except BaseException:
            self.say(f"log: {line.daemon.folder / 'log'}")
            self.stock.drop()
            raise

    def pause(self, least_s: float = 0.05, most_s: float = 0.6) -> None:
        """A random moment."""
        time.sleep(self.rng.uniform(least_s, most_s))

    def must(self, holds: bool, what: str) -> None:
        """Notes what must hold and does not."""
        if not holds and what not in self.broken:
            self.broken.append(what)

    def target(self, values: Sequence[float], most: float, what: str) -> None:
        """Notes where the largest of some times is beyond its target."""
        if values and max(values) > most:
            self.missed.append(f"{what} {max(values):.2f} s > {most:g} s")

    def facts(self) -> dict[str, object]:
        """Everything for a machine to read."""
        found = asdict(self.tally) | {"reasons": dict(self.tally.reasons)}
        return {
            "row": self.name,
            "skipped": self.skipped,
            "injected": self.injected,
            "detected_s": self.detected_s,
            "recovered_s": self.recovered_s,
            "verdicts": found,
            "broken": self.broken,
            "targets_missed": self.missed,
            "notes": self.notes,
            "before": self.before and asdict(self.before),
            "after": self.after and asdict(self.after),
        }


def batches(times: int, most: int) -> list[range]:
    """So many injections, at most `most` with one daemon."""
    return [range(first, min(first + most, times)) for first in range(0, times, most)]


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile.

    >>> percentile([3, 1, 2], 0.5)
    2
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def half(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return median(values) if values else float("nan")


def can(*command: str) -> bool:
    """Whether a command works here."""
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _environment(folder: Path, bug: str) -> dict[str, str]:
    """The shim with all its harm, which is done when a row says so; none where it cannot be made."""
    bugs = {"FAULTS_BUG": bug} if bug else {}
    try:
        shim = preload(folder)
    except Skipped:
        return bugs
    clock = harm(folder, "FAULTS_CLOCK")
    if not clock.exists():
        clock.write_bytes(bytes(CLOCK_BYTES))
    flags = {name: str(harm(folder, name)) for name in ("FAULTS_CLOCK", "FAULTS_READ_ONLY", "FAULTS_STALL")}
    return bugs | {"LD_PRELOAD": str(shim)} | flags


def harm(folder: Path, name: str) -> Path:
    """The file by which a row orders the shim to do harm."""
    return folder / f"{name}-{os.getpid()}"


def preload(folder: Path) -> Path:
    """The shim for LD_PRELOAD, compiled here and now.

    Raises:
        Skipped: there is no compiler.
    """
    shim = folder / "faults_shim.so"
    if shim.exists():
        return shim
    if shutil.which("gcc") is None:
        raise Skipped("gcc is not installed")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(SHIM), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise Skipped(f"gcc: {built.stderr.strip().splitlines()[-1]}")
    return shim
