"""`inspectd demo` as a user runs it: the whole daemon on the bundled model and clip."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import psutil
import pytest
from daemons import DEMO, PATIENCE_S
from tests_cli import clean_environment, inspectd

pytestmark = pytest.mark.skipif(not (DEMO / "sample.mp4").exists(), reason="the demo's clip is not rendered yet")


def test_demo_shows_every_part_and_a_picture(tmp_path: Path) -> None:
    """Exit 0: every part exactly one verdict, at least 95 % right; a line each, a table and a picture."""
    keep = tmp_path / "kept"
    said = inspectd("demo", "--keep", keep, cwd=tmp_path)
    assert said.code == 0, said.out + said.err
    parts = json.loads((DEMO / "sample.json").read_text())["parts"]
    lines = [line for line in said.out.splitlines() if line.startswith("part ")]
    assert [int(line.split()[1]) for line in lines] == [part["id"] for part in parts]
    assert "false rejects" in said.out
    assert str(keep / "parts.png") in said.out
    picture = cv2.imread(str(keep / "parts.png"))
    assert min(picture.shape[:2]) > 800
    verdicts = [json.loads(line) for line in (keep / "verdicts.jsonl").read_text().splitlines()]
    assert [verdict["seq"] for verdict in verdicts] == list(range(1, len(parts) + 1))


def test_demo_without_picture_writes_none(tmp_path: Path) -> None:
    """`--no-picture` leaves the contact sheet out; settings of another daemon in the environment change nothing."""
    keep = tmp_path / "kept"
    said = inspectd("demo", "--keep", keep, "--no-picture", INSPECTD_STATE_DIR="/nowhere", INSPECTD_CAMERAS="{}")
    assert said.code == 0, said.out + said.err
    assert not (keep / "parts.png").exists()


def test_demo_ends_with_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C ends the demo and its daemon: exit 130, no traceback, no process left."""
    command = [sys.executable, "-m", "inspectd", "demo", "--keep", str(tmp_path / "kept")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment())
    assert process.stdout is not None
    text = read_until(process.stdout.fileno(), b"part ")
    daemons = psutil.Process(process.pid).children(recursive=True)
    assert len(daemons) >= 4
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    text += process.stdout.read()
    process.stdout.close()
    assert b"Traceback" not in text
    assert psutil.wait_procs(daemons, timeout=PATIENCE_S)[1] == []


def test_demo_in_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A place that cannot be written is named, with what to do."""
    (tmp_path / "file").write_text("")
    said = inspectd("demo", "--keep", tmp_path / "file" / "kept")
    assert said.code == 3
    assert "--keep" in said.complaint


def test_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """A state folder that a daemon holds is named with its pid, exit 3."""
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        said = inspectd("demo", "--keep", tmp_path)
    assert said.code == 3
    assert "pid 4711" in said.complaint


def read_until(pipe: int, word: bytes) -> bytes:
    """What a pipe gives until a line begins with the word."""
    text, deadline_s = b"", time.monotonic() + PATIENCE_S
    while b"\n" + word not in text:
        assert time.monotonic() < deadline_s, text
        if select.select([pipe], [], [], 0.1)[0]:
            text += os.read(pipe, 65536)
    return text
