"""The unit: accepted by systemd, hardened, and a daemon that speaks to the service manager as the unit expects."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from pathlib import Path

import pytest
from daemons import PATIENCE_S, ROOT, Daemon, file_camera, model_toml, shared

from inspectd.errors import ExitCode

UNIT = ROOT / "systemd" / "inspectd.service"
DROP_INS = ROOT / "systemd" / "inspectd.service.d"
MakeDaemon = Callable[..., Daemon]


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(params=[(), ("gpu",), ("camera",), ("camera", "gpu")], ids=["plain", "gpu", "camera", "both"])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit as installed, without and with drop-ins; its program is one that exists here."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/inspectd/bin/inspectd", "/bin/true"))
    assert "ExecStart=/bin/true run" in unit.read_text()
    (tmp_path / DROP_INS.name).mkdir()
    for name in request.param:
        shutil.copy(DROP_INS / f"{name}.conf", tmp_path / DROP_INS.name)
    return unit


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(0.1)
        yield receiver


def told(manager: socket.socket, until: str, timeout_s: float = PATIENCE_S) -> list[str]:
    """The lines that came, up to and with the message that says `until`."""
    lines: list[str] = []
    deadline_s = time.monotonic() + timeout_s
    while until not in lines:
        assert time.monotonic() < deadline_s, f"no {until} within {timeout_s:g} s: {lines}"
        lines += received(manager)
    return lines


def received(manager: socket.socket) -> list[str]:
    """The lines of the next message, if one comes soon."""
    try:
        return manager.recv(4096).decode().split("\n")
    except TimeoutError:
        return []


def test_unit_is_accepted(installed: Path) -> None:
    """`systemd-analyze verify` has nothing to say, unknown keys included."""
    done = analyze("verify", installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unit_is_hardened(installed: Path) -> None:
    """The exposure level is 2.0 at most."""
    done = analyze("security", "--offline=true", "--threshold=20", installed)
    assert "Overall exposure level" in done.stdout
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_unit_agrees_with_the_daemon() -> None:
    """Exit codes for a person are not retried, the stop limit leaves room to drain, a crash keeps the ticket table."""
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert service["RestartPreventExitStatus"].split() == [str(int(code)) for code in (ExitCode.USAGE, ExitCode.CONFIG)]
    assert (service["Type"], service["KillMode"], service["OOMPolicy"]) == ("notify", "mixed", "continue")
    assert int(service["TimeoutStopSec"]) > 5
    assert service["BindPaths"] == "%t/inspectd/shm:/dev/shm"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert "inspectd/shm" in service["RuntimeDirectory"].split()
    assert "AF_NETLINK" in service["RestrictAddressFamilies"].split()  # libzmq aborts without it,
    assert "@resources" not in service["SystemCallFilter"]  # and without sched_setscheduler


def test_service_manager_is_told(make_daemon: MakeDaemon, manager: socket.socket) -> None:
    """READY with a status once the model is warm, a watchdog message from a turning loop, STOPPING before exit 0."""
    clip = shared("data", "video", "bottle_bench_640x360.mp4")
    daemon = make_daemon({"cam1": file_camera(clip, pace="realtime", trigger="max_fps = 1.0", loop=True)})
    daemon.environment |= {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000"}
    daemon.start()
    before = told(manager, "READY=1")
    assert "STOPPING=1" not in before
    assert any(line.startswith("STATUS=ready") for line in before)
    assert daemon.ask("status")["ok"]
    told(manager, "WATCHDOG=1", timeout_s=30)
    daemon.process.terminate()
    assert "READY=1" not in told(manager, "STOPPING=1", timeout_s=30)
    assert daemon.wait() == 0


def test_no_ready_from_a_broken_model(make_daemon: MakeDaemon, manager: socket.socket, tmp_path: Path) -> None:
    """Weights that end too soon: exit 3, which the unit does not retry, and never a word of being ready."""
    clip = shared("data", "video", "bottle_bench_640x360.mp4")
    whole = Path(model_toml().split('weights = "')[1].split('"')[0])
    short = tmp_path / "short.safetensors"
    short.write_bytes(whole.read_bytes()[:-1000])
    daemon = make_daemon({"cam1": file_camera(clip)})
    daemon.write_recipe("part", daemon.recipe + model_toml().replace(str(whole), str(short)))
    daemon.environment |= {"NOTIFY_SOCKET": manager.getsockname()}
    assert daemon.run() == ExitCode.CONFIG
    lines = told(manager, "STOPPING=1", timeout_s=5)
    assert "READY=1" not in lines
