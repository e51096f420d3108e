"""The daemon from outside: real processes, real video, a subscriber that knows only the contract."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import jsonschema
import numpy as np
import pytest
from daemons import Daemon, Seen, Subscriber, all_dead, file_camera, running, shared

from inspectd.transport.wire import Schema, schema

MakeDaemon = Callable[..., Daemon]


def a_clip(path: Path, frames: int, size_wh_px: tuple[int, int] = (96, 64)) -> Path:
    """A short H.264 clip of moving noise."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size_wh_px, "yuv420p"
        picture = rng.integers(0, 255, (size_wh_px[1], size_wh_px[0], 3), dtype=np.uint8)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * index, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def check_verdicts(seen: Seen, camera: str, last_seq: int) -> None:
    """1…N without a gap or a repeat, every body valid, masks that agree with the regions."""
    assert seen.seqs(camera) == list(range(1, last_seq + 1))
    validator = jsonschema.Draft202012Validator(schema(Schema.VERDICT))
    for verdict in seen.verdicts:
        validator.validate(verdict)
        check_mask(verdict, seen.masks.get((verdict["camera"], verdict["seq"])))


def check_mask(verdict: dict[str, Any], png: bytes | None) -> None:
    """The label mask says the same as the regions."""
    if not verdict["regions"]:
        assert png is None
        return
    assert png is not None
    labels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels.shape == tuple(reversed(verdict["mask"]["size_wh_px"]))
    left, top = verdict["mask"]["origin_xy_px"]
    for region in verdict["regions"]:
        ys, xs = np.nonzero(labels == region["id"])
        x, y, w, h = region["bbox_xywh_px"]
        assert len(xs) == region["area_px"]
        assert (xs.min() + left, ys.min() + top, np.ptp(xs) + 1, np.ptp(ys) + 1) == (x, y, w, h)
        assert region["centroid_xy_px"] == pytest.approx([xs.mean() + left, ys.mean() + top], abs=0.51)


def check_journal(daemon: Daemon, seen: Seen) -> None:
    """Every row is what was published, byte for byte, and nothing else is there."""
    with sqlite3.connect(daemon.journal) as connection:
        rows = connection.execute("SELECT session, camera, seq, body FROM verdicts").fetchall()
    assert {(session, camera, seq): body for session, camera, seq, body in rows} == seen.raw


@pytest.mark.parametrize("name", ["video/bottle_bench_640x360.mp4", "belt/capsules_pink_train/video.mp4"])
def test_main_job_on_real_video(make_daemon: MakeDaemon, name: str) -> None:
    """Video in, verdicts out: contiguous, valid, masks that agree, journaled byte for byte, then the end is told."""
    camera = file_camera(shared("data", name), trigger="every_nth = 12" if "bottle" in name else "every_nth = 2")
    daemon = make_daemon({"cam1": camera}, recipe="[decision]\nthreshold = 0.3\npixel_threshold = 0.3\n")
    with running(daemon, "--exit-at-end") as subscriber:
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None)
        assert daemon.wait() == 0
    last_seq = seen.ended("cam1")["last_seq"]
    assert last_seq > 30
    check_verdicts(seen, "cam1", last_seq)
    check_journal(daemon, seen)
    scored = [each for each in seen.verdicts if each["score"] is not None]
    assert len(scored) >= 0.95 * last_seq
    assert all(each["simulated"] for each in seen.verdicts)


def test_paced_video_is_inspected_in_its_own_time(make_daemon: MakeDaemon) -> None:
    """In real time nearly all accepted frames are scored, each within its deadline."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    daemon = make_daemon({"cam1": file_camera(video, pace="realtime", trigger="max_fps = 2")})
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: len(seen.verdicts) >= 20)
    scored = [each for each in seen.verdicts if each["score"] is not None]
    assert len(scored) >= 0.95 * len(seen.verdicts)
    assert all(each["latency_ms"]["total"] < each["deadline_ms"] for each in seen.verdicts)


def test_heartbeats_and_events_follow_their_schemas(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Every heartbeat and event validates; from starting to ready to stopping. The log names what the model runs in."""
    daemon = make_daemon({"cam1": file_camera(a_clip(tmp_path / "clip.mp4", 10))})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.ended("cam1") is not None and seen.state == "ready")
        daemon.signal(signal.SIGTERM)
        seen = subscriber.until(lambda seen: seen.state == "stopping")
        assert daemon.wait() == 0
    for beat in seen.heartbeats:
        jsonschema.validate(beat, schema(Schema.HEARTBEAT))
    for event in seen.events:
        jsonschema.validate(event, schema(Schema.EVENT))
    states = [beat["state"] for beat in seen.heartbeats]
    assert [state for state, before in zip(states, [None, *states], strict=False) if state != before] == [
        "starting",
        "ready",
        "stopping",
    ]
    assert seen.heartbeats[-1]["cameras"]["cam1"] == {
        "state": "ended",
        "last_seq": 10,
        "recipe_sha256": seen.verdicts[0]["recipe"]["sha256"],
    }
    lines = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    assert [(line["precision"], line["device"]) for line in lines if line["event"] == "worker_ready"] == [
        (["fp32"], "cpu")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_drains(make_daemon: MakeDaemon, number: signal.Signals) -> None:
    """Told to stop, it answers all it has accepted, exits 0, and leaves no process and no segment."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    daemon = make_daemon({name: file_camera(video) for name in ("cam1", "cam2")})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: len(seen.verdicts) >= 10)
        children = daemon.children()
        assert len(daemon.segments()) == 4
        daemon.signal(number)
        assert daemon.wait() == 0
        seen = subscriber.until(lambda seen: seen.state == "stopping")
    assert all_dead(children, within_s=5)
    assert daemon.segments() == []
    for name in ("cam1", "cam2"):
        last_seq = seen.heartbeats[-1]["cameras"][name]["last_seq"]
        assert seen.seqs(name) == list(range(1, last_seq + 1))
    check_journal(daemon, seen)


def test_second_daemon_is_refused(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A second daemon on the same state folder exits 3, names the first one's pid, and harms nothing."""
    daemon = make_daemon({"cam1": file_camera(a_clip(tmp_path / "clip.mp4", 5))})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        assert daemon.process is not None
        first = daemon.process
        daemon.process = None
        second = Daemon(folder=daemon.folder, cameras=daemon.cameras)
        assert second.run() == 3
        daemon.process = first
        assert f"pid {first.pid}" in daemon.log()
        count = len(subscriber.seen.heartbeats)
        subscriber.until(lambda seen: len(seen.heartbeats) > count + 3)


def test_late_joiner_asks_history(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Who comes late reads `last_seq` in a heartbeat and gets what came before, with its masks."""
    recipe = "[decision]\nthreshold = 0.0\npixel_threshold = 0.0\n"
    daemon = make_daemon({"cam1": file_camera(a_clip(tmp_path / "clip.mp4", 6))}, recipe=recipe)
    with running(daemon) as subscriber:
        first = subscriber.until(lambda seen: seen.ended("cam1") is not None)
        late = Subscriber(daemon.verdicts)
        beat = late.until(lambda seen: bool(seen.heartbeats)).heartbeats[-1]
        late.close()
        assert beat["cameras"]["cam1"]["last_seq"] == 6
        reply = daemon.ask("history", camera="cam1", since_seq=2)
        assert reply["verdicts"] == first.verdicts[2:]
        assert daemon.ask("mask", camera="cam1", seq=3)["ok"]
        status = daemon.ask("status")
    assert status["cameras"]["cam1"]["decisions"] == {"pass": 0, "fail": 6, "error": 0}
    assert {each["name"] for each in status["processes"]} == {"publisher", "worker", "capture-cam1"}


def test_preview_comes_to_those_who_ask_for_it_by_name(make_daemon: MakeDaemon) -> None:
    """While somebody subscribes to a camera's previews its pictures come, at most so many a second."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    camera = file_camera(video, pace="realtime", trigger="max_fps = 4", loop=True)
    daemon = make_daemon({"cam1": camera, "cam2": camera}, extra="publisher = { preview_fps = 1.0 }")
    with running(daemon) as everything:
        everything.until(lambda seen: len(seen.verdicts) > 4)
        assert not everything.seen.previews
        viewer = Subscriber(daemon.verdicts, topic="preview/cam1/")
        seen = viewer.until(lambda seen: len(seen.previews) >= 2)
        viewer.close()
    assert {body["camera"] for body, _ in seen.previews} == {"cam1"}
    for body, jpeg in seen.previews:
        jsonschema.validate(body, schema(Schema.PREVIEW))
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (360, 640, 3)


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        (b"\xff\x00", "JSON"),
        (b"[1]", "object"),
        (b'{"id": "x"}', "op"),
        (b'{"id": "x", "op": "dance"}', "op"),
        (b'{"id": "x", "op": "pause", "camera": "no such"}', "camera"),
        (b'{"id": "x", "op": "pause", "camera": "ghost"}', "ghost"),
        (b'{"id": "x", "op": "status", "more": 1}', "more"),
        (b'{"id": "x", "op": "history", "camera": "cam1", "since_seq": "1"}', "since_seq"),
        (b'{"id": "x", "op": "trigger", "camera": "cam1", "trigger_id": "a"}', "external"),
    ],
)
def test_bad_requests_are_refused_by_name(served: tuple[Daemon, Any], request_body: bytes, named: str) -> None:
    """What a client sends wrong is answered with the field's name, and the daemon goes on."""
    _, socket = served
    socket.send(request_body)
    assert socket.poll(10_000)
    reply = json.loads(socket.recv())
    assert not reply["ok"]
    assert named in reply["error"]["message"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A daemon that stands still at its end, and a client of its `control`."""
    import zmq

    folder = tmp_path_factory.mktemp("served")
    daemon = Daemon(folder=folder, cameras={"cam1": file_camera(a_clip(folder / "clip.mp4", 3))})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.ended("cam1") is not None)
        context = zmq.Context()
        with context, context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.connect(daemon.control)
            yield daemon, socket
