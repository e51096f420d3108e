"""Standard error that cannot be written: the line is lost, and nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import Daemon, file_camera, running, shared
from tests_cli import inspectd

from inspectd.stderr import PATIENCE_S, LossyFile

MakeDaemon = Callable[..., Daemon]
FULL = ("sh", "-c", 'exec "$0" "$@" 2>/dev/full')
CLOSED = ("sh", "-c", 'mkfifo "$0"; exec 3<>"$0" 2>"$0" 3<&-; exec "$@"')
STALLED = ("sh", "-c", 'mkfifo "$0"; exec 3<>"$0" 2>"$0"; head -c 65536 /dev/zero >&3; exec "$@"')
ABSENT = ("sh", "-c", 'exec "$0" "$@" 2>&-')


@pytest.mark.parametrize("broken", ["full", "closed", "stalled", "absent"])
def test_a_daemon_without_a_log_answers_its_frames(make_daemon: MakeDaemon, tmp_path: Path, broken: str) -> None:
    """A full disk behind `2>`, a reader that died or stands still, no standard error at all: verdicts are journaled,
    the exit is 0."""
    camera = file_camera(shared("data", "video", "bottle_bench_640x360.mp4"), trigger="every_nth = 60")
    pipe = str(tmp_path / "pipe")
    wrapper = {"full": FULL, "closed": (*CLOSED, pipe), "stalled": (*STALLED, pipe), "absent": ABSENT}[broken]
    daemon = make_daemon({"cam1": camera}, wrapper=wrapper, extra='[log]\nlevel = "debug"')
    with running(daemon, "--exit-at-end") as subscriber:
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None)
        assert daemon.wait() == 0
    assert seen.seqs("cam1") == list(range(1, seen.ended("cam1")["last_seq"] + 1))
    assert all(each["journaled"] and each["decision"] != "error" for each in seen.verdicts)
    assert daemon.log() == ""


def test_exit_codes_need_no_standard_error(tmp_path: Path) -> None:
    """A wrong configuration is exit 3 also where nobody can be told."""
    command = [*FULL, sys.executable, "-m", "inspectd", "run", "--config", str(tmp_path / "none.toml")]
    assert subprocess.run(command, check=False).returncode == inspectd("run", "--config", tmp_path / "none.toml").code


WRITE = """
import os, sys
from inspectd.log import configure_log, get_logger
from inspectd.stderr import guard_stderr
guard_stderr()
configure_log("info", "json")
full, real = os.open("/dev/full", os.O_WRONLY), os.dup(2)
for descriptor, event in ((real, "first_told"), (full, "line_lost"), (full, "line_lost"), (real, "last_told")):
    os.dup2(descriptor, 2)
    get_logger().info(event)
"""


def test_what_was_lost_is_told_once_it_can_be() -> None:
    """One line says how many were lost; none comes later or twice."""
    said = subprocess.run([sys.executable, "-c", WRITE], check=True, capture_output=True, env=os.environ).stderr
    first, told, last = said.decode().splitlines()
    assert json.loads(first)["event"] == "first_told"
    assert told == "inspectd: 2 lines of the log could not be written: No space left on device"
    assert json.loads(last)["event"] == "last_told"


def test_a_reader_that_stands_still_is_waited_for_once() -> None:
    """Then lines are lost at once, until he reads again; long ones are whole."""
    reading, writing = os.pipe()
    file = LossyFile(writing)
    started_s = time.monotonic()
    for _ in range(100):
        assert file.write(bytes(10_000)) == 10_000
    assert time.monotonic() - started_s < 2 * PATIENCE_S
    while len(os.read(reading, 1 << 20)) == 1 << 16:
        pass
    file.write(b"x" * 10_000)
    told, _, long = os.read(reading, 1 << 20).rpartition(b"\n")
    assert told.endswith(b"lines of the log could not be written: Resource temporarily unavailable")
    assert long == b"x" * 10_000
    for descriptor in (reading, writing):
        os.close(descriptor)
