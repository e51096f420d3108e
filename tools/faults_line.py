"""The daemon that lives and its witness, handed from row to row; every row has it audited before it lets go."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faults_daemon import START_S, Daemon
from faults_tally import Objection, tally
from faults_witness import Seen, Witness

if TYPE_CHECKING:
    from faults_trial import Trial

BACK_S = 30.0
"""Whoever is not back by then is not coming back."""
SETTLE_S = 15.0
KILLS_A_DAEMON = 4
"""A child that dies five times within a minute is given ten seconds' rest."""


class Broken(Exception):  # noqa: N818 - not an error of the harness
    """What must hold did not; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a daemon is started with: rows that want the same may share one."""

    config: str
    recipe: str
    environment: Mapping[str, str]
    prefix: tuple[str, ...]
    state: Path | None


class Stock:
    """The one daemon that lives, kept from row to row as long as it will do."""

    def __init__(self) -> None:
        self._setup: Setup | None = None
        self._line: Line | None = None
        self._started = 0

    def line(self, trial: Trial, setup: Setup, objection: Objection, kills: Counter[str]) -> Line:
        """A daemon of this kind whose children may still die so often."""
        line = self._line
        if line is None or setup != self._setup or line.wears_out(kills):
            self.close()
            line = self._started_line(trial, setup, objection)
        line.serve(trial, objection, kills)
        self._line, self._setup = line, setup
        return line

    def close(self) -> None:
        """Ends the daemon that lives; what is wrong with its end is noted in the row that had it last."""
        if self._line is not None:
            try:
                self._line.end()
            finally:
                self.drop()

    def drop(self) -> None:
        """Takes the daemon away, whatever its state; its folder stays where a row went wrong."""
        line, self._line, self._setup = self._line, None, None
        if line is None:
            return
        line.daemon.remove()
        line.witness.close()
        if line.trial.clean:
            shutil.rmtree(line.daemon.folder, ignore_errors=True)

    def _started_line(self, trial: Trial, setup: Setup, objection: Objection) -> Line:
        self._started += 1
        folder = trial.workshop.folder / f"{trial.name}-{os.getpid()}-{self._started}"
        shutil.rmtree(folder, ignore_errors=True)
        daemon = Daemon(
            folder,
            setup.config,
            setup.recipe,
            environment=setup.environment,
            prefix=setup.prefix,
            level="debug",
            state=setup.state,
        )
        if setup.state is None:
            shutil.copytree(trial.workshop.embeddings, daemon.state / "cache")
        line = Line(trial, daemon, Witness(daemon.verdicts, daemon.control), objection)
        daemon.start()
        return line


class Line:
    """A daemon and its witness, as a row sees them."""

    def __init__(self, trial: Trial, daemon: Daemon, witness: Witness, objection: Objection) -> None:
        self.trial, self.daemon, self.witness = trial, daemon, witness
        self._objection = objection
        self._owed: dict[tuple[str, str], int] = {}
        self._answered: dict[tuple[str, str], int] = {}
        self._first_verdict = 0
        self._begun_s = 0.0
        self._deaths: Counter[str] = Counter()
        self._session: str | None = None

    def wears_out(self, kills: Counter[str]) -> bool:
        """Whether a child would die so often that the supervisor gives it a rest."""
        return any(self._deaths[child] + times > KILLS_A_DAEMON for child, times in kills.items())

    def serve(self, trial: Trial, objection: Objection, kills: Counter[str]) -> None:
        """From now on it is that row's."""
        self.trial, self._objection = trial, objection
        self._deaths += kills

    def forget_deaths(self) -> None:
        """A new supervisor does not know of them; its session is another."""
        self._deaths.clear()
        self._session = None

    def begin(self) -> None:
        """What was owed before is answered; cameras that the last row paused go on."""
        self._begun_s, self._first_verdict = time.monotonic(), len(self.witness.verdicts)
        self._answered, self._owed = self._answered | self._owed, {}
        for camera in {camera for _, camera in self._answered}:
            self.witness.ask("resume", camera=camera)

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
        self._session = self._session or self.session
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

    def settle(self, within_s: float) -> None:
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
        """Counts what this row owed and what came."""
        trial = self.trial
        trial.after = self.daemon.footprint()
        try:
            self.settle(SETTLE_S if not trial.bug else 3.0)  # what a seeded bug drops never comes
        except Broken as broken:
            trial.must(False, str(broken))
        trial.must(self._session in {None, self.session}, "the session changed though the daemon lived")
        self.owe(self.session, self.daemon.accepted())
        try:
            journaled = [
                seen
                for session, camera in self._owed
                for seen in self.witness.history(session, camera, self._answered.get((session, camera), 0))
            ]
        except TimeoutError as error:
            trial.must(False, str(error))
            journaled = []
        trial.tally += tally(
            self.verdicts, journaled, self._owed, self._objection, silences=self.silences(), answered=self._answered
        )

    @property
    def verdicts(self) -> list[Seen]:
        """What came in this row."""
        return self.witness.verdicts[self._first_verdict :]

    def silences(self) -> list[tuple[float, float]]:
        """When the heartbeat was missing in this row."""
        return [(a, b) for a, b in self.witness.silences() if b > self._begun_s]

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
