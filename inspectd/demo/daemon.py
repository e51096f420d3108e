"""The demo's daemon: the real one, as a process of its own, and everything it published."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspectd.client import Client, Kind, Message, Subscriber
from inspectd.errors import ConfigError, ExitCode, TransportError

CAMERA = "belt"
LOOK_S = 0.2
PATIENCE_S = 180.0
STOP_S = 10.0
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Published:
    """What the daemon published about the clip: verdicts by seq, and their label masks."""

    verdicts: dict[int, dict[str, Any]] = field(default_factory=dict)
    masks: dict[int, bytes] = field(default_factory=dict)
    last_seq: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the clip is through and every verdict is here."""
        return self.last_seq is not None and all(seq in self.verdicts for seq in range(1, self.last_seq + 1))


class Daemon:
    """A running daemon on the demo's configuration.

    Args:
        folder: the demo's files.
        keep: where state and log go.
        sockets_dir: a short path.
    """

    def __init__(self, folder: Path, keep: Path, sockets_dir: Path) -> None:
        self.verdicts, self.control = f"ipc://{sockets_dir}/verdicts", f"ipc://{sockets_dir}/control"
        self._log = keep / "daemon.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "inspectd", "run", "--config", str(folder / "inspectd.toml")],
                env=self._environment(keep, sockets_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to the demo alone, which then ends its daemon
                preexec_fn=_die_with_the_demo,  # noqa: PLW1509 - there are no threads yet
            )

    def collect(self, on_verdict: Callable[[dict[str, Any]], None], on_state: Callable[[str], None]) -> Published:
        """Listens until the clip is through; what was sent before the subscription stood comes from the journal.

        Raises:
            ConfigError: the daemon was refused; another demo runs in the same folder.
            TransportError: the daemon ended, or is stuck.
        """
        published = Published()
        progress, since_s = 0, time.monotonic()
        with Subscriber(self.verdicts) as subscriber:
            while not published.complete:
                self._require_alive()
                if len(published.verdicts) > progress:
                    progress, since_s = len(published.verdicts), time.monotonic()
                if time.monotonic() - since_s > PATIENCE_S:
                    raise TransportError(f"the demo's daemon gave no verdict for {PATIENCE_S:g} s; see {self._log}")
                item = subscriber.receive(LOOK_S)
                if isinstance(item, Message):
                    self._take(item, published, on_verdict, on_state)
        return published

    def stop(self) -> int:
        """Ends the daemon and returns its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _take(
        self,
        message: Message,
        published: Published,
        on_verdict: Callable[[dict[str, Any]], None],
        on_state: Callable[[str], None],
    ) -> None:
        body = message.body
        if message.kind is Kind.HEARTBEAT:
            on_state(body["state"])
            if body["cameras"][CAMERA]["state"] == "ended":
                self._finish(published, on_verdict)
        elif message.kind is Kind.VERDICT and body["seq"] not in published.verdicts:
            published.verdicts[body["seq"]] = body
            if message.attachment is not None:
                published.masks[body["seq"]] = message.attachment
            on_verdict(body)

    def _finish(self, published: Published, on_verdict: Callable[[dict[str, Any]], None]) -> None:
        """Once the last part is answered: the last seq, and what never came, from the journal."""
        with Client(self.control) as client:
            camera = client.status()["cameras"][CAMERA]
            if camera["waiting"]:
                return
            published.last_seq = camera["last_seq"]
            for verdict in [] if published.complete else client.history(CAMERA, limit=1000):
                seq = verdict["seq"]
                if seq not in published.verdicts:
                    published.verdicts[seq] = verdict
                    on_verdict(verdict)
                    if verdict["mask"] is not None:
                        published.masks[seq] = client.mask(CAMERA, seq)

    def _require_alive(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        lines = self._log.read_text(errors="replace").splitlines()
        said = [line.removeprefix("inspectd: ") for line in lines if line.startswith("inspectd: ")]
        reason = said[-1] if said else f"see {self._log}"
        kind = ConfigError if code == ExitCode.CONFIG else TransportError
        raise kind(f"the demo's daemon ended with exit code {code}: {reason}")

    @staticmethod
    def _environment(keep: Path, sockets_dir: Path) -> dict[str, str]:
        """The caller's environment without settings of a daemon of theirs."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("INSPECTD_")}
        return inherited | {
            "INSPECTD_STATE_DIR": str(keep / "state"),
            "INSPECTD_RUNTIME_DIR": str(sockets_dir / "run"),
            "INSPECTD_ENDPOINTS": json.dumps(
                {
                    "verdicts": f"ipc://{sockets_dir}/verdicts",
                    "control": f"ipc://{sockets_dir}/control",
                    "metrics": "",
                }
            ),
        }


@contextmanager
def running(folder: Path, keep: Path) -> Iterator[Daemon]:
    """A daemon on the demo's files; it is gone afterwards, whatever happens.

    Raises:
        ConfigError: `keep` cannot be written.
        TransportError: the daemon did not end well.
    """
    try:
        keep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="inspectd-") as sockets_dir:
            daemon = Daemon(folder, keep.resolve(), Path(sockets_dir))
            try:
                yield daemon
            except BaseException:
                daemon.stop()
                raise
            code = daemon.stop()
    except OSError as error:
        raise ConfigError(f"{keep}: {error.strerror or error}; choose another folder with --keep") from error
    if code != 0:
        raise TransportError(f"the demo's daemon ended with exit code {code}; see {keep / 'daemon.log'}")


def _die_with_the_demo() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
