"""External triggers in a real daemon on a real camera: each gets its own frame, whatever the camera does meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import Daemon, running, shared
from rtsp_servers import RtspServer
from trigger_runs import Disturbance, Triggers, camera_tables, make_clip

FRAMES = 300
COUNT = 40
DRAIN_S = 2.0
"""The publisher answers by itself after 2.2 s."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that spell their numbers."""
    maker = shared("tools", "make_numbered_clip.py")
    return make_clip(maker, tmp_path_factory.mktemp("clip") / "n.mp4", FRAMES, subprocess.run, sys.executable)


def test_trigger_gets_the_first_frame_exposed_after_it(
    make_daemon: Callable[..., Daemon], make_rtsp_server: Callable[..., RtspServer], clip: Path
) -> None:
    """No stale, skipped or repeated frame, one verdict each, also while the camera stalls and is started again."""
    server = make_rtsp_server(clip, fps=30)
    daemon = make_daemon({"cam1": camera_tables(server.url)})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        disturbances = [Disturbance(at=12, for_s=0.7, kills=False), Disturbance(at=26, for_s=0.5, kills=True)]
        run = Triggers(daemon, subscriber, server, "cam1").run(COUNT, disturbances, FRAMES)
    verdicts = [each.verdict for each in run.outcomes]
    assert all(verdict is not None for verdict in verdicts)
    assert [each["seq"] for each in subscriber.seen.verdicts] == list(range(1, COUNT + 1))
    assert [verdict["trigger"]["part_id"] for verdict in verdicts if verdict] == [f"part{n}" for n in range(COUNT)]
    assert (run.stale(), run.skipped(), run.backwards()) == ([], [], [])
    assert len(run.served) >= COUNT // 4
    errors = {verdict["reason"] for verdict in verdicts if verdict and verdict["decision"] == "error"}
    assert errors <= {"camera_lost", "overload", "late"}


def test_stop_answers_waiting_triggers_at_once(
    make_daemon: Callable[..., Daemon], make_rtsp_server: Callable[..., RtspServer], clip: Path
) -> None:
    """Nobody waits for the end of the drain: a trigger without a frame is `error/internal` as the daemon stops."""
    server = make_rtsp_server(clip)
    daemon = make_daemon({"cam1": camera_tables(server.url).replace("silence_s = 1.0", "silence_s = 60")})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        server.stall()
        time.sleep(0.5)  # what is under way arrives
        assert daemon.ask("trigger", camera="cam1", trigger_id="a")["seq"] == 1
        daemon.signal(signal.SIGTERM)
        begun_s = time.monotonic()
        (verdict,) = subscriber.until(lambda seen: bool(seen.verdicts)).verdicts
        assert time.monotonic() - begun_s < DRAIN_S
        server.resume()
        assert daemon.wait() == 0
    assert (verdict["decision"], verdict["reason"]) == ("error", "internal")
