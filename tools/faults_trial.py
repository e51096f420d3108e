"""One row of the table at work: starts daemons, keeps the times, and has every daemon audited before it goes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from faults_daemon import ROOT, START_S, Daemon, Footprint
from faults_tally import Objection, Tally, tally
from faults_witness import Seen, Witness
from faults_workshop import CAMERAS, DEADLINE_MS, Workshop, config_of, playing, recipe_of

SHIM = ROOT / "tools" / "faults_shim.c"
BACK_S = 30.0
"""Whoever is not back by then is not coming back."""
DEAD_AFTER_S = 2.0
"""The daemon takes a child for dead that is silent for so long (its heartbeat limit)."""


class Skipped(Exception):  # noqa: N818 - not an error
    """A row that cannot run here; the text says why."""


class Broken(Exception):  # noqa: N818 - not an error of the harness
    """What must hold did not; the text says what."""


@dataclass(slots=True)
class Trial:
    """A row at work, and what it found."""

    name: str
    rng: random.Random
    times: int
    long: bool
    minutes: float | None
    workshop: Workshop
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
    _daemons: int = 0

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
        more: str = "",
        worker: str = "",
        deadline_ms: float = DEADLINE_MS,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        objection: Objection | None = None,
        level: str = "info",
        state: Path | None = None,
        warm: bool = True,
    ) -> Iterator[Line]:
        """A daemon that inspects; when the block ends everything it owed is counted, and it is ended."""
        self._daemons += 1
        folder = self.workshop.folder / f"{self.name}-{os.getpid()}-{self._daemons}"
        shutil.rmtree(folder, ignore_errors=True)
        environment = dict(environment or {}) | ({"FAULTS_BUG": self.bug} if self.bug else {})
        config = config_of(cameras or self.cameras(), more, worker)
        daemon = Daemon(
            folder,
            config,
            recipe_of(deadline_ms),
            environment=environment,
            prefix=prefix,
            level=level,
            state=state,
        )
        witness = Witness(daemon.verdicts, daemon.control)
        line = Line(self, daemon, witness, objection or self.workshop.truth.objection)
        try:
            daemon.start()
            if warm:
                line.warm_up()
            yield line
            line.audit()
        except BaseException:
            self.say(f"log: {folder / 'log'}")
            raise
        finally:
            daemon.remove()
            witness.close()
        shutil.rmtree(folder, ignore_errors=True)

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


class Line:
    """A daemon and its witness, as a row sees them."""

    def __init__(self, trial: Trial, daemon: Daemon, witness: Witness, objection: Objection) -> None:
        self.trial, self.daemon, self.witness = trial, daemon, witness
        self._objection = objection
        self._owed: dict[tuple[str, str], int] = {}

    @property
    def session(self) -> str:
        return self.witness.beats[-1].session

    @property
    def cameras(self) -> list[str]:
        return list(self.witness.beats[-1].last_seq)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Waits until every camera was judged a few times, and takes the footprint before."""
        self.judged_since(time.time(), times=2, within_s=START_S)
        if self.trial.before is None:
            self.trial.before = self.daemon.footprint()

    def judged_since(
        self,
        since_utc_s: float,
        cameras: Sequence[str] | None = None,
        *,
        times: int = 1,
        within_s: float = BACK_S,
    ) -> float:
        """Waits until the model spoke on frames captured since then, of each camera; the time of the last first one.

        Raises:
            Broken: it does not come.
        """
        found: dict[str, list[Seen]] = {}
        start = len(self.witness.verdicts) - 200

        def happened() -> bool:
            wanted = cameras or (self.cameras if self.witness.beats else None)
            if wanted is None:
                return False
            found.clear()
            for seen in self.witness.verdicts[max(0, start) :]:
                if seen.judged and (seen.captured_utc_s or 0) > since_utc_s:
                    found.setdefault(seen.camera, []).append(seen)
            return all(len(found.get(name, ())) >= times for name in wanted)

        if not self.witness.until(happened, within_s):
            alive = self.daemon.process is not None and self.daemon.process.poll() is None
            raise Broken(f"no verdict of the model within {within_s:g} s (daemon {'alive' if alive else 'dead'})")
        return max(seen[0].at_s or 0.0 for seen in found.values())

    def answered(self, since_utc_s: float, reason: str, within_s: float = 10.0) -> Seen | None:
        """The first verdict with that reason on a frame captured since then; None where none comes."""

        def hits() -> list[Seen]:
            return [
                seen
                for seen in self.witness.verdicts
                if seen.reason == reason and (seen.captured_utc_s or time.time()) > since_utc_s
            ]

        return hits()[0] if self.witness.until(lambda: bool(hits()), within_s) else None

    def detected(self, child: str, since_utc_s: float, within_s: float = 10.0) -> None:
        """Waits until the supervisor says that a child is dead or silent, and keeps how long it took."""

        def is_about(entry: dict[str, object]) -> bool:
            return entry.get("child") == child and entry["event"] in ("child_died", "child_silent")

        found: list[float] = []

        def happened() -> bool:
            at_s = self.daemon.logged_s(is_about, since_utc_s)
            found.extend([] if at_s is None else [at_s])
            return bool(found)

        if not self.witness.until(happened, within_s):
            raise Broken(f"the death of {child} was not noticed within {within_s:g} s")
        self.trial.detected_s.append(found[0])

    # -- the end ----------------------------------------------------------------------------------------------------

    def owe(self, session: str, accepted: Mapping[str, int]) -> None:
        """What a session accepted, told by the table that it left."""
        self._owed |= {(session, camera): last for camera, last in accepted.items()}

    def settle(self, within_s: float = 15.0) -> None:
        """Pauses all cameras and waits until everything accepted is answered.

        Raises:
            Broken: it is not.
        """
        for camera in self.cameras:
            self.witness.ask("pause", camera=camera)
        still_s = time.monotonic() + 0.3

        def settled() -> bool:
            accepted = self.daemon.accepted()
            return time.monotonic() > still_s and self.witness.beats[-1].last_seq == accepted

        if not self.witness.until(settled, within_s):
            raise Broken(f"accepted {self.daemon.accepted()}, answered {self.witness.beats[-1].last_seq}")

    def audit(self) -> None:
        """Counts what was owed and what came, then ends the daemon, which must leave nothing."""
        trial = self.trial
        trial.after = self.daemon.footprint()
        try:
            self.settle()
        except Broken as broken:
            trial.must(False, str(broken))
        self.owe(self.session, self.daemon.accepted())
        try:
            journaled = [seen for session, camera in self._owed for seen in self.witness.history(session, camera)]
        except TimeoutError as error:
            trial.must(False, str(error))
            journaled = []
        self.end()
        silences = self.witness.silences()
        trial.tally += tally(self.witness.verdicts, journaled, self._owed, self._objection, silences)

    def end(self) -> None:
        """Ends the daemon: exit 0, no traceback, nothing left in /dev/shm."""
        trial = self.trial
        code = self.daemon.stop()
        trial.must(code == 0, f"the daemon ended with exit code {code}")
        trial.must(not self.daemon.segments(), "segments were left in /dev/shm")
        for crash in self.daemon.crashes():
            trial.must(False, f"a stage crashed: {crash}")
        for oddity in self.witness.oddities[:3]:
            trial.must(False, f"no message of the contract: {oddity}")


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
