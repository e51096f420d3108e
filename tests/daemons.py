"""Real daemons for tests: configured in a folder, started as processes, watched from outside by the contract alone."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DEMO = ROOT / "inspectd" / "demo"
EMBEDDINGS = "INSPECTD_TEST_EMBEDDINGS"
"""Names the folder in which the suite's daemons keep the embeddings of prompts, one for all."""
PATIENCE_S = 120.0
"""How long a slow, busy machine may take for what a person expects within seconds."""


def shared(*parts: str) -> Path:
    """A file of the shared test data; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}")
    return path


def model_toml() -> str:
    """The `[model]` table of the bundled demo model."""
    if not (DEMO / "model.safetensors").exists():
        golden = shared("golden", "tiny-winclip-240.json")
        return f'[model]\nbackbone = "demo"\nweights = "{golden.with_suffix(".safetensors")}"\nconfig = "{golden}"\n'
    return f'[model]\nbackbone = "demo"\nweights = "{DEMO / "model.safetensors"}"\nconfig = "{DEMO / "model.json"}"\n'


def broken_model(fault: str, flag: Path) -> dict[str, str]:
    """The environment of a daemon whose model breaks while the flag file exists (see `shims/sitecustomize.py`).

    Args:
        fault: `out_of_memory`, `device_error` or `not_finite`.
        flag: holds the least number of frames in a pass that the fault happens to; empty: 1.
    """
    path = os.pathsep.join([str(ROOT / "tests" / "shims"), str(ROOT)])
    return {"PYTHONPATH": path, "INSPECTD_TEST_FAULT": fault, "INSPECTD_TEST_FAULT_FLAG": str(flag)}


@dataclass
class Daemon:
    """One configured daemon; `start` and `stop` run it as a process."""

    folder: Path
    cameras: dict[str, str]
    extra: str = ""
    recipe: str = "[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"
    metrics: str = ""
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    """A program that sets something up and then becomes the daemon."""

    def __post_init__(self) -> None:
        (self.folder / "recipes").mkdir(parents=True, exist_ok=True)
        self.write_recipe("part", self.recipe)
        lines = [
            f'state_dir = "state"\nruntime_dir = "{self.runtime}"',
            self.extra,
            f'[endpoints]\nverdicts = "{self.verdicts}"\ncontrol = "{self.control}"\nmetrics = "{self.metrics}"',
            '[worker]\nthreads = 1\ndevice = "cpu"\nprecision = "fp32"',
        ]
        lines += [f'[cameras.{name}]\nrecipe = "part"\n{tables}' for name, tables in self.cameras.items()]
        self.config.write_text("\n".join(lines))

    @property
    def config(self) -> Path:
        return self.folder / "inspectd.toml"

    @property
    def verdicts(self) -> str:
        return f"ipc://{self._socket('v')}"

    @property
    def control(self) -> str:
        return f"ipc://{self._socket('c')}"

    @property
    def runtime(self) -> Path:
        return Path(self._socket("run"))

    @property
    def journal(self) -> Path:
        return self.folder / "state" / "journal.sqlite"

    def write_recipe(self, name: str, text: str) -> None:
        head = 'object = "part"\n' if "object" not in text else ""
        tables = "" if "[model]" in text else model_toml()
        deadline = "deadline_ms = 20000\n" if "deadline_ms" not in text else ""
        (self.folder / "recipes" / f"{name}.toml").write_text(head + deadline + text + tables)

    def start(self, *more: str) -> None:
        """Starts the daemon; does not wait until it is ready."""
        state, embeddings = self.folder / "state", os.environ.get(EMBEDDINGS)
        if embeddings and not state.exists():
            state.mkdir()
            (state / "cache").symlink_to(embeddings)
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", "inspectd", "run", "--config", str(self.config), *more],
                stderr=log,
                stdout=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment,
                process_group=0,
                preexec_fn=_die_with_the_test,  # noqa: PLW1509 - tests start daemons from their main thread
            )

    def run(self, *more: str, timeout_s: float = PATIENCE_S) -> int:
        """Runs the daemon to its own end; its exit code."""
        self.start(*more)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Ends the daemon whatever its state."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(15)

    def children(self) -> list[psutil.Process]:
        """The living processes below the daemon."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def segments(self) -> list[str]:
        """The daemon's files in /dev/shm."""
        prefix = f"inspectd-{hashlib.sha256(str((self.folder / 'state').resolve()).encode()).hexdigest()[:8]}-"
        return [path.name for path in Path("/dev/shm").glob(f"{prefix}*")]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, op: str, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """One request on `control`."""
        context = zmq.Context()
        with context, context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.connect(self.control)
            socket.send(json.dumps({"id": "t", "op": op} | fields).encode())
            assert socket.poll(int(timeout_s * 1000)), f"no reply to {op}"
            reply: dict[str, Any] = json.loads(socket.recv_multipart()[0])
            return reply

    def _socket(self, what: str) -> str:
        """A short path: a socket's has at most 107 bytes, and pytest's folders are deep."""
        return f"/tmp/inspectd-test-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}.{what}"


@dataclass
class Seen:
    """What a subscriber saw, parsed."""

    verdicts: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    masks: dict[tuple[str, int], bytes] = field(default_factory=dict)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    beats_s: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)

    def seqs(self, camera: str) -> list[int]:
        return [each["seq"] for each in self.verdicts if each["camera"] == camera]

    def ended(self, camera: str) -> dict[str, Any] | None:
        found = [e for e in self.events if e["kind"] == "camera_ended" and e["camera"] == camera]
        return found[-1] if found else None

    @property
    def state(self) -> str | None:
        return self.heartbeats[-1]["state"] if self.heartbeats else None


class Subscriber:
    """A subscriber that knows only the contract."""

    def __init__(self, endpoint: str, topic: str = "") -> None:
        self.seen = Seen()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RECONNECT_IVL, 20)
        self._socket.set(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)

    def until(self, reached: Callable[[Seen], bool], timeout_s: float = PATIENCE_S) -> Seen:
        """Reads until `reached` says so; fails when the time is over."""
        deadline_s = time.monotonic() + timeout_s
        while not reached(self.seen):
            assert time.monotonic() < deadline_s, f"not reached: {self.seen.state} {len(self.seen.verdicts)} verdicts"
            self.read(0.1)
        return self.seen

    def read(self, timeout_s: float) -> None:
        """Takes what comes within that time."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return
        while self._socket.poll(0):
            self._take(self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _take(self, parts: list[bytes]) -> None:
        topic, body = parts[0].decode(), json.loads(parts[1])
        self.seen.topics.append(topic)
        match topic.partition("/")[0]:
            case "verdict":
                self.seen.verdicts.append(body)
                self.seen.raw[body["session"], body["camera"], body["seq"]] = parts[1]
                if len(parts) > 2:
                    self.seen.masks[body["camera"], body["seq"]] = parts[2]
            case "heartbeat":
                self.seen.heartbeats.append(body)
                self.seen.beats_s.append(time.monotonic())
            case "event":
                self.seen.events.append(body)
            case "preview":
                self.seen.previews.append((body, parts[2]))


@contextmanager
def running(daemon: Daemon, *more: str) -> Iterator[Subscriber]:
    """A running daemon and a subscriber that was there before it; both are gone afterwards."""
    subscriber = Subscriber(daemon.verdicts)
    daemon.start(*more)
    try:
        yield subscriber
    except BaseException:
        sys.stderr.write(daemon.log())
        raise
    finally:
        daemon.stop()
        subscriber.close()


def all_dead(processes: list[psutil.Process], within_s: float) -> bool:
    """Whether processes have ended by then. One that nobody has reaped yet (init's business) is dead."""
    until_s = time.monotonic() + within_s
    while any(_is_alive(process) for process in processes):
        if time.monotonic() > until_s:
            return False
        time.sleep(0.01)
    return True


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _die_with_the_test() -> None:
    """A test run that is killed leaves no daemon behind (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def file_camera(path: Path, *, pace: str = "fast", trigger: str = "", loop: bool = False) -> str:
    """The tables of a camera that plays a video file."""
    return (
        f'source = {{ kind = "file", path = "{path}", pace = "{pace}", loop = {str(loop).lower()} }}\n'
        f"trigger = {{ {trigger} }}\n"
    )
