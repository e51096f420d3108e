"""`watch`, `status`, `trigger`: what they print about a real daemon, and how they end."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from daemons import PATIENCE_S, Daemon, running
from rich.console import Console
from tests_cli import clean_environment, inspectd

from inspectd.cli.watch import Board
from inspectd.client import Alarm, AlarmKind, Kind, Message

VERDICT = {
    "camera": "cam1",
    "seq": 7,
    "decision": "fail",
    "reason": "anomaly",
    "score": 0.75,
    "threshold": 0.5,
    "regions": [{}, {}],
    "captured_utc": "2026-11-20T12:00:00.123456Z",
    "latency_ms": {"total": 17.6},
}
HEARTBEAT = {
    "session": "s1",
    "state": "ready",
    "uptime_s": 12.0,
    "cameras": {"cam1": {"state": "ready", "last_seq": 7}, "cam2": {"state": "lost", "last_seq": 3}},
}


def drawn(*items: Message | Alarm, only: str | None = None) -> str:
    """The board after these items, as text."""
    board = Board(only=only)
    for item in items:
        board.take(item)
    console = Console(width=120, file=io.StringIO())
    console.print(board.render())
    return console.file.getvalue()


def message(kind: Kind, body: dict) -> Message:
    return Message(kind=kind, topic=f"{kind}/", raw=json.dumps(body).encode(), body=body)


def test_board_shows_verdicts_and_counts() -> None:
    """The table has the verdict with score and regions, and counts it for its camera."""
    text = drawn(message(Kind.HEARTBEAT, HEARTBEAT), message(Kind.VERDICT, VERDICT))
    assert "ready" in text
    (row,) = [line for line in text.splitlines() if "anomaly" in line]
    assert all(word in row for word in ("12:00:00.123", "cam1", "7", "fail", "0.7500/0.5000", "18 ms"))
    (camera,) = [line for line in text.splitlines() if "cam1" in line and "anomaly" not in line]
    assert camera.split()[1:] == ["cam1", "│", "ready", "│", "7", "│", "0", "│", "1", "│", "0", "│"]


def test_board_shows_silence_until_the_next_heartbeat() -> None:
    """No heartbeat for 600 ms stands at the top until one comes again."""
    silence = Alarm(kind=AlarmKind.SILENCE, detail="no heartbeat for 600 ms")
    beat = message(Kind.HEARTBEAT, HEARTBEAT)
    assert "no heartbeat for 600 ms: reject" in drawn(beat, silence)
    assert "no heartbeat for 600 ms: reject" not in drawn(beat, silence, beat)


def test_newest_verdict_stands_first() -> None:
    """A low terminal shows the beginning: the newest verdict is there."""
    text = drawn(*(message(Kind.VERDICT, VERDICT | {"seq": seq}) for seq in range(100, 130)))
    assert text.index(" 129 ") < text.index(" 128 ")
    assert " 113 " not in text


def test_board_of_one_camera_shows_no_other() -> None:
    """With `--camera` only that one is shown."""
    text = drawn(message(Kind.HEARTBEAT, HEARTBEAT), only="cam2")
    assert "cam2" in text
    assert "cam1" not in text


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that judges images in a loop, and takes triggers on another camera."""
    folder = tmp_path_factory.mktemp("watch")
    cv2.imwrite(str(folder / "part.png"), np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    source = f'source = {{ kind = "folder", path = "{folder}", rate_fps = 5, loop = true }}\n'
    cameras = {"cam1": source, "cam2": source + 'trigger = { kind = "external" }\n'}
    made = Daemon(folder=folder, cameras=cameras, recipe="[decision]\nthreshold = 0.0\npixel_threshold = 1.0\n")
    with running(made) as seen:
        seen.until(lambda seen: len(seen.verdicts) > 0)
        yield made


def test_watch_prints_verdicts_as_json_lines(daemon: Daemon) -> None:
    """`--json` is one verdict a line, `--count` ends it."""
    said = inspectd("watch", "--config", daemon.config, "--json", "--count", "3")
    assert said.code == 0
    verdicts = [json.loads(line) for line in said.out.splitlines()]
    assert len(verdicts) == 3
    assert [each["seq"] - verdicts[0]["seq"] for each in verdicts] == [0, 1, 2]


def test_watch_without_a_terminal_prints_plain_lines(daemon: Daemon) -> None:
    """In a pipe without `--json` each verdict is a line for people."""
    said = inspectd("watch", "--endpoint", daemon.verdicts, "--camera", "cam1", "-n", "2")
    assert said.code == 0
    assert [line.split()[1] for line in said.out.splitlines()] == ["cam1", "cam1"]


def test_watch_ends_well_when_its_reader_goes(daemon: Daemon) -> None:
    """`inspectd watch --json | head -1` is no failure and says nothing."""
    command = [sys.executable, "-m", "inspectd", "watch", "--endpoint", daemon.verdicts, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
        assert b"Traceback" not in process.stderr.read()


def test_watch_on_a_terminal_is_live_and_ends_with_ctrl_c(daemon: Daemon) -> None:
    """On a terminal there is a live table; Ctrl-C ends it with 130 and without a traceback."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "inspectd", "watch", "--endpoint", daemon.verdicts]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=clean_environment()) as process:
        os.close(child)
        try:
            text = read_until(parent, b"cam1")
            process.send_signal(signal.SIGINT)
            text += read_until(parent, None)
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()
            os.close(parent)
    assert b"Traceback" not in text


def read_until(terminal: int, word: bytes | None) -> bytes:
    """What the terminal shows until a word is there, or until its program has ended."""
    text, deadline_s = b"", time.monotonic() + PATIENCE_S
    while word is None or word not in text:
        assert time.monotonic() < deadline_s, text
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                text += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
    return text


def test_status_shows_the_daemon(daemon: Daemon) -> None:
    """`status` is a table for people, and JSON for programs."""
    shown = inspectd("status", "--config", daemon.config)
    assert shown.code == 0
    assert all(word in shown.out for word in ("publisher", "worker", "capture-cam1", "cam2", "frames/s"))
    assert json.loads(inspectd("status", "--endpoint", daemon.control, "--json").out)["cameras"].keys() == {
        "cam1",
        "cam2",
    }


def test_trigger_prints_the_seq_or_the_verdict(daemon: Daemon) -> None:
    """`trigger` prints what it got; with `--wait` a part that does not pass exits 1."""
    first = inspectd("trigger", "cam2", "--id", "a", "--config", daemon.config)
    assert (first.code, json.loads(first.out).keys()) == (0, {"camera", "seq"})
    waited = inspectd("trigger", "cam2", "--wait", "--part-id", "p", "--endpoint", daemon.control)
    assert waited.code == 1
    assert json.loads(waited.out)["trigger"]["part_id"] == "p"


def test_refused_trigger_is_one_line(daemon: Daemon) -> None:
    """A camera that takes no triggers is a refusal in one line, exit 1."""
    said = inspectd("trigger", "cam1", "--endpoint", daemon.control)
    assert said.code == 1
    assert "external" in said.complaint
