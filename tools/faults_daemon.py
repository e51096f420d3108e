"""The daemon under test: the real one, a process of its own, with hands on it that only a saboteur has.

The witness judges it by the contract alone; what stands here beside that is for injecting: pids, signals, orders to
the saboteur inside (`faults_inside/sitecustomize.py`), and the accepted numbers in shared memory, which are the truth
about what is owed when nobody is left to ask.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from faults_witness import Witness

from inspectd.transport.tickets import Table

ROOT = Path(__file__).resolve().parent.parent
INSIDE = ROOT / "tools" / "faults_inside"
START_S = 90.0
STOP_S = 15.0
SHM = Path("/dev/shm")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What the daemon's processes hold together: private memory, descriptors, threads, and files in /dev/shm."""

    memory_mb: float
    descriptors: int
    threads: int
    shm_mb: float


class Daemon:
    """One configured daemon in a folder of its own.

    Args:
        folder: where configuration, state and log lie.
        config: the text of `inspectd.toml`, without endpoints and folders.
        recipe: the text of the one recipe, `part`.
        environment: on top of the caller's.
        prefix: a command that runs the daemon's command, such as `unshare -m`.
        state: another state folder than the one in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        recipe: str,
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        level: str = "info",
        state: Path | None = None,
    ) -> None:
        self.folder = folder
        self.state = state or folder / "state"
        self.sockets = Path(tempfile.mkdtemp(prefix="faults-"))
        self.orders = Orders(folder / "orders")
        self._prefix = prefix
        self._environment = dict(environment or {})
        self._log = folder / "log"
        self._log_read = 0
        self._log_lines: list[dict[str, object]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        (folder / "recipes" / "part.toml").write_text(recipe)
        head = [
            f'state_dir = "{self.state}"',
            f'runtime_dir = "{self.sockets / "run"}"',
            f'log = {{ level = "{level}", format = "json" }}',
            f'endpoints = {{ verdicts = "{self.verdicts}", control = "{self.control}", metrics = "" }}',
        ]
        (folder / "inspectd.toml").write_text("\n".join(head) + "\n" + config)

    @property
    def verdicts(self) -> str:
        return f"ipc://{self.sockets}/verdicts"

    @property
    def control(self) -> str:
        return f"ipc://{self.sockets}/control"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *more: str) -> None:
        """Starts it; does not wait until it is ready."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("INSPECTD_")}
        path = os.pathsep.join([str(INSIDE), str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
        environment = own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FAULTS_ORDERS": str(self.orders.folder)}
        command = [sys.executable, "-m", "inspectd", "run", "--config", str(self.folder / "inspectd.toml"), *more]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, *command],
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_the_harness,  # noqa: PLW1509 - no lock that a thread could hold is needed
            )

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Its exit code; it is killed where it does not end in time."""
        assert self.process is not None
        try:
            self.exit_code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.exit_code = None
        return -1 if self.exit_code is None else self.exit_code

    def stop(self) -> int:
        """Ends it in order; its exit code, -1 where it had to be killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def remove(self) -> None:
        """Ends it whatever its state, and takes its sockets away."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for path in self.segments():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.sockets, ignore_errors=True)

    # -- its processes ----------------------------------------------------------------------------------------------

    def pids(self, witness: Witness) -> dict[str, int]:
        """The living process of each stage, as `status` says."""
        status = witness.ask("status")
        if status is None:
            raise TimeoutError("no reply to status")
        return {each["name"]: each["pid"] for each in status["processes"]}

    def footprint(self) -> Footprint:
        """What its processes hold now."""
        memory = descriptors = threads = 0
        top = psutil.Process(self.pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                held = process.memory_info()
                memory += held.rss - held.shared
                descriptors += process.num_fds()
                threads += process.num_threads()
        shm = sum(path.stat().st_size for path in self.segments())
        return Footprint(memory_mb=memory / 1e6, descriptors=descriptors, threads=threads, shm_mb=shm / 1e6)

    def segments(self) -> list[Path]:
        """Its files in /dev/shm, found by the table's mark of this state folder."""
        mark = hashlib.sha256(str(self.state.resolve()).encode()).hexdigest()[:8]
        return sorted(SHM.glob(f"inspectd-{mark}-*"))

    def accepted(self) -> dict[str, int]:
        """The last accepted number of each camera, read from the ticket table, whoever is dead."""
        (path,) = [path for path in self.segments() if path.name.endswith("-table")]
        table = Table.attach(path.name)
        found = {name: table.camera(index).high_water for index, name in enumerate(table.cameras)}
        table.close()
        return found

    # -- its log ----------------------------------------------------------------------------------------------------

    def log_lines(self) -> list[dict[str, object]]:
        """The structured lines of its log so far."""
        with self._log.open("rb") as log:
            log.seek(self._log_read)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._log_read += len(line)
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict):
                        self._log_lines.append(entry)
        return self._log_lines

    def logged_s(self, wanted: Callable[[dict[str, object]], bool], since_utc_s: float) -> float | None:
        """When the first such line was logged, in seconds after a moment; None where none was."""
        for entry in self.log_lines():
            if wanted(entry):
                at_s = datetime.fromisoformat(str(entry["timestamp"])).timestamp() - since_utc_s
                if at_s >= 0:
                    return at_s
        return None

    def said(self) -> list[str]:
        """Its lines for people."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.startswith("inspectd: ")]

    def crashes(self) -> list[str]:
        """Tracebacks in its log: a stage may be killed, it may never stumble."""
        return [str(e.get("exception", e["event"]))[:300] for e in self.log_lines() if e["event"] == "stage_crashed"]


class Orders:
    """Orders to the saboteur inside: files that it looks for, and takes away as it obeys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def give(self, name: str, text: str = "") -> None:
        """Written beside and renamed, so that it is never read half."""
        draft = self.folder / f".{name}"
        draft.write_text(text)
        draft.rename(self.folder / name)

    def withdraw(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def stands(self, name: str) -> bool:
        return (self.folder / name).exists()

    def obeyed(self, name: str, timeout_s: float) -> bool:
        """Whether it was taken before the time was over."""
        until_s = time.monotonic() + timeout_s
        while self.stands(name):
            if time.monotonic() > until_s:
                return False
            time.sleep(0.003)
        return True

    def read(self, name: str) -> str | None:
        """What the saboteur wrote back, None where it did not."""
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return None


def _die_with_the_harness() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
