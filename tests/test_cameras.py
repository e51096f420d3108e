"""Kinds of cameras in a real daemon: one that is dead does not disturb the others, and a restart repeats nothing."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import psutil
import pytest
from clips import numbered
from daemons import PATIENCE_S, Daemon, Seen, running
from mjpeg_servers import MjpegServer, mjpeg_server
from rtsp_servers import free_port

from inspectd.settings import load_settings


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    """An MJPEG camera."""
    with mjpeg_server() as started:
        yield started


def drop(folder: Path, name: str, number: int) -> None:
    """Puts a whole image into a folder."""
    (folder / f".{name}").write_bytes(cv2.imencode(".png", numbered(number))[1].tobytes())
    (folder / f".{name}").rename(folder / name)


def table(**source: object) -> str:
    values = ", ".join(f"{key} = {value!r}".replace("'", '"') for key, value in source.items())
    return f"source = {{ {values}, max_size_wh_px = [320, 240] }}"


def lost(seen: Seen) -> set[str]:
    """The cameras that the last heartbeat calls lost."""
    return {name for name, camera in seen.heartbeats[-1]["cameras"].items() if camera["state"] == "lost"}


def test_dead_camera_does_not_disturb_the_others(
    make_daemon: Callable[..., Daemon], tmp_path: Path, server: MjpegServer
) -> None:
    """Three cameras that cannot be reached are lost from the start; a stream and a folder are inspected meanwhile.

    Each loss is one verdict, though nothing was ever seen; where a part is asked for, the answer is that, at once.
    """
    (tmp_path / "in").mkdir()
    cameras = {
        "dead": table(kind="mjpeg", url=f"http://jane:s3cret@127.0.0.1:{free_port()}/"),
        "gone": table(kind="drop", path=str(tmp_path / "none")),
        "mute": table(kind="mjpeg", url=f"http://127.0.0.1:{free_port()}/") + '\ntrigger = { kind = "external" }',
        "stream": table(kind="mjpeg", url=server.url) + "\ntrigger = { max_fps = 2.0 }",
        "folder": table(kind="drop", path=str(tmp_path / "in")),
    }
    unreachable = {"dead", "gone", "mute"}
    daemon = make_daemon(cameras)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "degraded" and lost(seen) == unreachable)
        begun_s = time.monotonic()
        asked = daemon.ask("trigger", camera="mute", trigger_id="a", deadline_ms=30_000, wait=True)["verdict"]
        assert time.monotonic() - begun_s < 10
        drop(tmp_path / "in", "a.png", 1)
        seen = subscriber.until(lambda seen: len(seen.seqs("stream")) > 2 and len(seen.seqs("folder")) > 0)
    assert lost(seen) == unreachable
    errors = [each for each in seen.verdicts if each["camera"] in unreachable]
    told = {each["camera"]: (each["seq"], each["decision"], each["reason"]) for each in errors}
    assert told == dict.fromkeys(unreachable, (1, "error", "camera_lost"))
    assert len(errors) == len(unreachable)
    assert asked in errors
    judged = [each for each in seen.verdicts if each["camera"] in ("stream", "folder")]
    assert {(each["camera"], each["simulated"]) for each in judged} == {("stream", False), ("folder", True)}
    assert {each["decision"] for each in judged} <= {"pass", "fail"}
    assert "s3cret" not in daemon.log() + str(seen.events)


def test_drop_folder_is_not_inspected_again_after_a_restart(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """A daemon that was killed goes on with what came meanwhile; its index lies in the state folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    daemon = make_daemon({"cam": table(kind="drop", path=str(folder))})
    for number in range(3):
        drop(folder, f"{number}.png", number)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: len(seen.verdicts) == 3)
        subscriber.read(0.3)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
    drop(folder, "3.png", 3)
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: len(seen.verdicts) > 0)
        subscriber.read(0.5)
    assert [each["frame"]["index"] for each in seen.verdicts] == [3]
    assert load_settings(daemon.config).cameras["cam"].source.index == daemon.folder / "state" / "drop" / "cam"


def test_stop_loses_no_image_of_a_drop_folder(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """One that waits for a free slot when the daemon is stopped is the next daemon's: one verdict an image, as ever."""
    folder, images = tmp_path / "in", 6
    folder.mkdir()
    daemon = make_daemon({"cam": table(kind="drop", path=str(folder)) + "\nslots = 2"})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        processes = {each["name"]: each["pid"] for each in daemon.ask("status")["processes"]}
        psutil.Process(processes["worker"]).suspend()
        for number in range(images):
            drop(folder, f"{number}.png", number)
        handed_out(daemon, 3)
        daemon.signal(signal.SIGTERM)
        daemon.wait()
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: len(seen.seqs("cam")) >= images - 2)
        subscriber.read(0.5)
    assert [each["frame"]["index"] for each in seen.verdicts] == [2, 3, 4, 5]
    with sqlite3.connect(daemon.journal) as connection:
        assert connection.execute("SELECT count(*) FROM verdicts").fetchone() == (images,)


def handed_out(daemon: Daemon, count: int) -> None:
    """Waits until so many images have left the drop folder of `cam`."""
    index, until_s = daemon.folder / "state" / "drop" / "cam", time.monotonic() + PATIENCE_S
    while index.read_text().count('"n"') < count:
        assert time.monotonic() < until_s, index.read_text()
        time.sleep(0.02)
