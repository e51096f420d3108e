"""Stations from outside: two cameras on one part, one word for both, whoever dies."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from belts import ZONE, Belt
from clips import write_clip
from daemons import Daemon, Seen, Subscriber, file_camera, running

from inspectd.errors import ConfigError
from inspectd.settings import load_settings
from inspectd.transport.wire import Schema, schema

MakeDaemon = Callable[..., Daemon]

STARTS = [180, 330, 475, 640, 790]
FRAMES = 155
RECIPE = "deadline_ms = {deadline_ms}\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"
BY_TIME = '[stations.gate]\ncameras = ["left", "right"]\nmatch = "time"\nwindow_ms = 250\n'
BY_TRIGGER = '[stations.gate]\ncameras = ["left", "right"]\nmatch = "trigger"\n'
PRESENCE = f'kind = "presence", zone_xywh_px = {list(ZONE)}'


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same belt as two cameras see it; the right one does not see the third part."""
    folder = tmp_path_factory.mktemp("belts")
    starts = {"left": STARTS, "right": [start for start in STARTS if start != STARTS[2]]}
    return {
        name: write_clip(folder / f"{name}.mp4", (Belt(seen).frame(index).pixels_bgr for index in range(FRAMES)))
        for name, seen in starts.items()
    }


def triggered(make_daemon: MakeDaemon, clips: dict[str, Path], deadline_ms: float) -> Daemon:
    """Two cameras that wait for triggers."""
    camera = file_camera(clips["left"], pace="realtime", trigger='kind = "external"', loop=True)
    recipe = RECIPE.format(deadline_ms=deadline_ms)
    return make_daemon({"left": camera, "right": camera}, extra=BY_TRIGGER, recipe=recipe)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, clips: dict[str, Path]) -> Iterator[tuple[Daemon, Subscriber]]:
    """A station that waits for triggers, for the two tests that ask it; the second one kills and ends it."""

    def make(cameras: dict[str, str], **more: str) -> Daemon:
        return Daemon(folder=tmp_path_factory.mktemp("line"), cameras=cameras, **more)

    daemon = triggered(make, clips, 4000)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        yield daemon, subscriber


def of_station(seen: Seen) -> list[dict[str, Any]]:
    return [each for each in seen.verdicts if each["camera"] == "gate"]


def process(daemon: Daemon, name: str) -> psutil.Process:
    return psutil.Process(next(each["pid"] for each in daemon.ask("status")["processes"] if each["name"] == name))


def test_one_word_for_each_part_and_a_missed_part_shifts_nothing(
    make_daemon: MakeDaemon, clips: dict[str, Path]
) -> None:
    """Five parts, one of which one camera does not see: five verdicts of the station, the third is an error."""
    cameras = {name: file_camera(path, pace="realtime", trigger=PRESENCE) for name, path in clips.items()}
    daemon = make_daemon(cameras, extra=BY_TIME, recipe=RECIPE.format(deadline_ms=2500))
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.ended("gate") is not None)
        seen = subscriber.until(lambda seen: seen.heartbeats[-1]["cameras"]["gate"]["last_seq"] == 5)
        history = daemon.ask("history", camera="gate", since_seq=0)["verdicts"]
    assert (seen.seqs("gate"), seen.seqs("left"), seen.seqs("right")) == (
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4],
    )
    told = of_station(seen)
    assert history == told
    pairs = [[member["seq"] for member in verdict["members"]] for verdict in told]
    assert pairs == [[1, 1], [2, 2], [3, None], [4, 3], [5, 4]]
    assert (told[2]["decision"], told[2]["reason"]) == ("error", "camera_lost")
    worst = {"pass": 0, "fail": 1, "error": 2}
    for verdict in told:
        jsonschema.validate(verdict, schema(Schema.VERDICT))
        said = [member["decision"] or "error" for member in verdict["members"]]
        assert verdict["decision"] == max(said, key=lambda each: worst[each])
        assert verdict["simulated"]
    jsonschema.validate(seen.heartbeats[-1], schema(Schema.HEARTBEAT))
    assert seen.ended("gate")["last_seq"] == 5


def test_trigger_to_a_station_goes_to_all_its_cameras(line: tuple[Daemon, Subscriber]) -> None:
    """One request, one word; asked again it is the same; a camera that stands still is missing at the deadline."""
    daemon, subscriber = line
    reply = daemon.ask("trigger", camera="gate", trigger_id="t1", part_id="p1", wait=True)
    assert reply["verdict"]["trigger"] == {"kind": "external", "id": "t1", "part_id": "p1"}
    assert [member["seq"] for member in reply["verdict"]["members"]] == [1, 1]
    assert reply["verdict"]["decision"] in ("pass", "fail")
    assert daemon.ask("trigger", camera="gate", trigger_id="t1")["seq"] == 1
    right = process(daemon, "capture-right")
    right.suspend()
    reply = daemon.ask("trigger", camera="gate", trigger_id="t2", deadline_ms=1000.0, wait=True)
    right.resume()
    seen = subscriber.until(lambda seen: len(seen.seqs("right")) == 2)
    assert (reply["verdict"]["decision"], reply["verdict"]["reason"]) == ("error", "camera_lost")
    assert [member["seq"] for member in reply["verdict"]["members"]] == [2, None]
    assert {each["trigger"]["part_id"] for each in seen.verdicts if each["seq"] == 1} == {"p1"}


def test_killed_publisher_leaves_no_part_without_a_word(line: tuple[Daemon, Subscriber]) -> None:
    """Killed again and again with parts half said: numbers go on, one word a trigger, whole parts stay whole."""
    daemon, subscriber = line
    before = daemon.ask("status")["cameras"]["gate"]["last_seq"]
    for number in range(1, 13):
        daemon.ask("trigger", camera="gate", trigger_id=f"k{number}")
        if number % 4 == 2:
            process(daemon, "publisher").kill()
            subscriber.until(
                lambda seen, count=number // 4 + 1: (
                    sum(event["kind"] == "publisher_restarted" for event in seen.events) >= count
                )
            )
    last = dict.fromkeys(("left", "right", "gate"), before + 12)
    subscriber.until(
        lambda seen: {name: beat["last_seq"] for name, beat in seen.heartbeats[-1]["cameras"].items()} == last
    )
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    published = subscriber.seen.seqs("gate")
    assert published == sorted(set(published))
    with sqlite3.connect(daemon.journal) as connection:
        rows = connection.execute("SELECT seq, body FROM verdicts WHERE camera = 'gate' ORDER BY seq").fetchall()
    verdicts = [json.loads(body) for _, body in rows][before:]
    assert [seq for seq, _ in rows] == list(range(1, before + 13))
    assert [each["trigger"]["id"] for each in verdicts] == [f"k{number}" for number in range(1, 13)]
    whole = [each for each in verdicts if each["decision"] != "error"]
    assert all(member["decision"] != "error" for each in whole for member in each["members"])
    assert whole  # how many depends on how soon the machine has the publisher back


def test_dead_daemon_s_station_parts_are_answered_under_the_old_session(
    make_daemon: MakeDaemon, clips: dict[str, Path]
) -> None:
    """The next start journals an error for the part that no camera had answered, and for the cameras' rows."""
    daemon = triggered(make_daemon, clips, 20_000)
    with running(daemon) as subscriber:
        session = subscriber.until(lambda seen: seen.state == "ready").heartbeats[-1]["session"]
        daemon.ask("trigger", camera="gate", trigger_id="t1", wait=True)
        process(daemon, "worker").suspend()
        assert daemon.ask("trigger", camera="gate", trigger_id="t2")["seq"] == 2
        children = daemon.children()
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        psutil.wait_procs(children, timeout=5)
        daemon.start()
        subscriber.until(lambda seen: seen.heartbeats[-1]["session"] != session)
    with sqlite3.connect(daemon.journal) as connection:
        query = "SELECT seq, decision FROM verdicts WHERE session = ? AND camera = 'gate' ORDER BY seq"
        rows = connection.execute(query, (session,)).fetchall()
    assert [seq for seq, _ in rows] == [1, 2]
    assert rows[1][1] == "error"


CAMERAS = """
state_dir = "state"
[cameras.left]
recipe = "part"
source = {{ kind = "file", path = "a.mp4", pace = "{pace}" }}
trigger = {{ kind = "{kind}" }}
[cameras.right]
recipe = "part"
source = {{ kind = "file", path = "a.mp4" }}
trigger = {{ kind = "{kind}" }}
"""


@pytest.mark.parametrize(
    ("station", "kind", "named"),
    [
        ('[stations.left]\ncameras = ["left", "right"]\nmatch = "trigger"', "external", "stations.left: a camera has"),
        (
            '[stations.g]\ncameras = ["left", "top"]\nmatch = "trigger"',
            "external",
            "g.cameras: no camera 'top'",
        ),
        ('[stations.g]\ncameras = ["left"]\nmatch = "trigger"', "external", "stations.g.cameras"),
        ('[stations.g]\ncameras = ["left", "left"]\nmatch = "trigger"', "external", "stations.g: cameras: expected"),
        ('[stations.g]\ncameras = ["left", "right"]\nmatch = "order"', "external", "stations.g.match"),
        ('[stations.g]\ncameras = ["left", "right"]\nmatch = "time"', "presence", "stations.g: window_ms"),
        (
            '[stations.g]\ncameras = ["left", "right"]\nmatch = "trigger"',
            "presence",
            'g.match: "trigger" needs',
        ),
        (BY_TIME, "presence", 'stations.gate.match: "time" needs frames in real time'),
        (
            f'{BY_TRIGGER}[stations.h]\ncameras = ["left", "right"]\nmatch = "trigger"',
            "external",
            "belongs to stations",
        ),
    ],
)
def test_wrong_station_is_one_line(tmp_path: Path, station: str, kind: str, named: str) -> None:
    """By key, and with what is allowed."""
    path = tmp_path / "inspectd.toml"
    path.write_text(CAMERAS.format(kind=kind, pace="fast" if "window_ms" in station else "realtime") + station)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
