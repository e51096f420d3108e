"""Any child may die at any instant: what `tools/faults.py`, which kills and stops each of them, does not show."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from daemons import PATIENCE_S, Daemon, Seen, Subscriber, file_camera, running, shared
from disks import hanging_reads

MakeDaemon = Callable[..., Daemon]


def a_live_daemon(make_daemon: MakeDaemon, cameras: int = 2) -> Daemon:
    """Cameras that never end, three frames a second each."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    camera = file_camera(video, pace="realtime", trigger="max_fps = 3", loop=True)
    return make_daemon({f"cam{number}": camera for number in range(1, cameras + 1)}, recipe=RECIPE)


RECIPE = "deadline_ms = 4000\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"


def pid_of(daemon: Daemon, name: str) -> int:
    (found,) = [each["pid"] for each in daemon.ask("status")["processes"] if each["name"] == name]
    return int(found)


def inspected(seen: Seen, camera: str, after: int) -> bool:
    return any(v["camera"] == camera and v["seq"] > after and v["decision"] != "error" for v in seen.verdicts)


def every_number_is_answered(daemon: Daemon, seen: Seen) -> None:
    """1…N, each published in order and once, or in the journal for those who were not there; never two answers."""
    with sqlite3.connect(daemon.journal) as connection:
        rows = connection.execute("SELECT session, camera, seq, body FROM verdicts").fetchall()
    journaled = {(session, camera, seq): body for session, camera, seq, body in rows}
    assert all(journaled.get(key, body) == body for key, body in seen.raw.items())
    for camera in daemon.cameras:
        published = seen.seqs(camera)
        assert published == sorted(set(published))
        numbers = sorted({seq for _, name, seq in journaled if name == camera} | set(published))
        assert numbers == list(range(1, len(numbers) + 1))


def test_capture_that_dies_again_and_again_is_reported_lost(make_daemon: MakeDaemon) -> None:
    """Not ready while nobody reads it. Five deaths in a minute: camera lost, daemon `degraded`, the other one goes on;
    later the lost one is back."""
    daemon = a_live_daemon(make_daemon)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: inspected(seen, "cam1", 1))
        beats = len(subscriber.seen.heartbeats)
        killed: set[int] = set()
        while subscriber.seen.state != "degraded":
            pid = pid_of(daemon, "capture-cam1")
            if pid not in killed and psutil.pid_exists(pid):
                psutil.Process(pid).kill()
                killed.add(pid)
            subscriber.read(0.05)
        assert len(killed) == 5
        states = [beat["cameras"]["cam1"]["state"] for beat in subscriber.seen.heartbeats[beats:]]
        assert states[-1] == "lost"
        assert "starting" in states
        subscriber.until(lambda seen: any(event["kind"] == "camera_lost" for event in seen.events))
        last = {name: max(subscriber.seen.seqs(name)) for name in ("cam1", "cam2")}
        subscriber.until(lambda seen: inspected(seen, "cam2", last["cam2"] + 2))
        assert not inspected(subscriber.seen, "cam1", last["cam1"])
        subscriber.until(lambda seen: inspected(seen, "cam1", last["cam1"]) and seen.state == "ready")
        every_number_is_answered(daemon, subscriber.seen)


def test_what_a_dead_worker_held_is_answered_at_once(make_daemon: MakeDaemon) -> None:
    """Frames in flight in a killed worker become `error/worker_lost`, long before their deadline."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    daemon = make_daemon({"cam1": file_camera(video, pace="fast", loop=True)})
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: inspected(seen, "cam1", 3))
        psutil.Process(pid_of(daemon, "worker")).kill()
        seen = subscriber.until(lambda seen: any(each["reason"] == "worker_lost" for each in seen.verdicts))
        last = max(seen.seqs("cam1"))
        subscriber.until(lambda seen: inspected(seen, "cam1", last))
    assert seen.seqs("cam1") == list(range(1, max(seen.seqs("cam1")) + 1))
    assert any(event["kind"] == "worker_restarted" for event in seen.events)


def test_rows_that_a_dead_publisher_left_are_answered_at_the_stop(make_daemon: MakeDaemon) -> None:
    """Told to stop while the publisher stands still: what it left is journaled before the shared memory goes."""
    daemon = a_live_daemon(make_daemon, cameras=1)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: inspected(seen, "cam1", 2))
        pids = [pid_of(daemon, name) for name in ("worker", "publisher")]
        for pid in pids:
            psutil.Process(pid).suspend()
        subscriber.read(0.8)
        last = max(subscriber.seen.seqs("cam1"))
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert daemon.segments() == []
    with sqlite3.connect(daemon.journal) as connection:
        rows = connection.execute("SELECT seq FROM verdicts ORDER BY seq").fetchall()
    assert [seq for (seq,) in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > last


def test_worker_that_cannot_start_again_at_first_is_tried_again(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """What was a sound configuration once is not given up: the daemon stays, and inspects when it can again."""
    video = tmp_path / "belt.mp4"
    video.symlink_to(shared("data", "video", "bottle_bench_640x360.mp4"))
    camera = file_camera(video, pace="realtime", trigger="max_fps = 3", loop=True)
    daemon = make_daemon({"cam1": camera}, recipe=RECIPE)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: inspected(seen, "cam1", 1))
        target = video.readlink()
        video.unlink()
        psutil.Process(pid_of(daemon, "worker")).kill()
        subscriber.until(lambda _: "belt.mp4" in daemon.log())
        video.symlink_to(target)
        last = max(subscriber.seen.seqs("cam1"))
        subscriber.until(lambda seen: inspected(seen, "cam1", last + 1))
        assert daemon.process is not None
        assert daemon.process.poll() is None


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Subscriber]]:
    """A camera that waits for triggers and would notice a repeated picture."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    source = f'source = {{ kind = "file", path = "{video}", loop = true, frozen_after_s = 3 }}\n'
    cameras = {"cam1": source + 'trigger = { kind = "external" }\n'}
    with running(daemon := Daemon(folder=tmp_path_factory.mktemp("external"), cameras=cameras)) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        yield daemon, subscriber


def test_trigger_that_is_asked_for_again_is_inspected_once(external: tuple[Daemon, Subscriber]) -> None:
    """A capture that stands still takes a trigger only when it goes on: asked for twice by then, it is one part."""
    daemon, subscriber = external
    capture = psutil.Process(pid_of(daemon, "capture-cam1"))
    capture.suspend()
    try:
        assert not daemon.ask("trigger", camera="cam1", trigger_id="part 1")["ok"]
        replies: list[dict[str, Any]] = []
        again = Thread(
            target=lambda: replies.append(daemon.ask("trigger", camera="cam1", trigger_id="part 1", wait=True))
        )
        again.start()
        subscriber.read(0.1)
    finally:
        capture.resume()
    again.join()
    assert daemon.ask("trigger", camera="cam1", trigger_id="part 2", wait=True)["seq"] == 2
    assert daemon.ask("trigger", camera="cam1", trigger_id="part 1")["seq"] == 1
    seen = subscriber.until(lambda seen: len(seen.verdicts) == 2)
    assert [each["trigger"]["id"] for each in seen.verdicts] == ["part 1", "part 2"]
    assert replies[0]["seq"] == 1


def test_triggers_that_share_a_frame_are_both_inspected(external: tuple[Daemon, Subscriber]) -> None:
    """Requests before the next frame get that frame all; it is no repeated picture."""
    daemon, subscriber = external
    before = len(subscriber.seen.verdicts)
    capture = psutil.Process(pid_of(daemon, "capture-cam1"))
    capture.suspend()
    asking = [
        Thread(target=daemon.ask, args=("trigger",), kwargs={"camera": "cam1", "trigger_id": f"sharing {number}"})
        for number in range(4)
    ]
    for each in asking:
        each.start()
    subscriber.read(0.1)
    capture.resume()
    for each in asking:
        each.join()
    verdicts = subscriber.until(lambda seen: len(seen.verdicts) == before + 4).verdicts[before:]
    assert len({each["frame"]["index"] for each in verdicts}) < 4
    assert {each["decision"] for each in verdicts} <= {"pass", "fail"}


def test_triggers_go_on_without_their_journal(external: tuple[Daemon, Subscriber]) -> None:
    """It is removed, and made again by the next verdict; then it cannot be read, and a new publisher comes, too. An id
    that was accepted before keeps its number."""
    daemon, subscriber = external
    first = daemon.ask("trigger", camera="cam1", trigger_id="before", wait=True)["seq"]
    without_journal(daemon)
    verdict = daemon.ask("trigger", camera="cam1", trigger_id="removed", wait=True)["verdict"]
    assert daemon.ask("history", camera="cam1", since_seq=first)["verdicts"] == [verdict]
    without_journal(daemon)
    daemon.journal.mkdir()
    beats = len(subscriber.seen.heartbeats)
    psutil.Process(pid_of(daemon, "publisher")).kill()
    subscriber.until(lambda seen: len(seen.heartbeats) > beats + 3)
    assert daemon.ask("trigger", camera="cam1", trigger_id="before")["seq"] == first
    assert daemon.ask("trigger", camera="cam1", trigger_id="unreadable", wait=True)["seq"] == first + 2
    subscriber.until(lambda seen: seen.state == "degraded")
    daemon.journal.rmdir()


def test_triggers_go_on_while_reads_of_their_journal_hang(external: tuple[Daemon, Subscriber], tmp_path: Path) -> None:
    """Whoever wants to read it is told so, nobody waits long, the heartbeats go on, and the publisher is the same."""
    daemon, subscriber = external
    asked = (daemon.ask("trigger", camera="cam1", trigger_id=f"readable{n}", wait=True) for n in range(99))
    first = next(reply["seq"] for reply in asked if reply["verdict"]["journaled"])
    with hanging_reads(tmp_path, daemon.journal) as (hung_path, flag):
        flag.touch()
        without_journal(daemon)
        daemon.journal.symlink_to(hung_path)
        publisher = pid_of(daemon, "publisher")
        beats = len(subscriber.seen.heartbeats)
        for number, trigger in enumerate(("hung1", "hung2"), start=1):
            assert daemon.ask("trigger", camera="cam1", trigger_id=trigger, wait=True)["seq"] == first + number
        said = daemon.ask("history", camera="cam1", since_seq=0)["error"]
        assert (said["code"], said["message"]) == (
            "unavailable",
            f"journal: {daemon.journal}: its disk does not answer",
        )
        assert daemon.ask("trigger", camera="cam1", trigger_id="hung3", wait=True)["seq"] == first + 3
        subscriber.until(lambda seen: bool(seen.verdicts) and seen.verdicts[-1]["seq"] == first + 3)
        beats_s = [each["uptime_s"] for each in subscriber.seen.heartbeats[beats:]]
        assert max(later - earlier for earlier, later in pairwise(beats_s)) < 0.6
        assert pid_of(daemon, "publisher") == publisher
    daemon.journal.unlink()


def without_journal(daemon: Daemon) -> None:
    """Somebody removes it."""
    for path in daemon.journal.parent.glob("journal.sqlite*"):
        path.unlink()


def test_twin_recipes_share_a_model_and_keep_their_names(make_daemon: MakeDaemon) -> None:
    """A recipe that is a copy of another by another name is inspected as itself."""
    camera = file_camera(shared("data", "video", "dark_belt_1280x960.mp4"), trigger="every_nth = 20")
    daemon = make_daemon({"cam1": camera, "cam2": camera})
    daemon.write_recipe("twin", daemon.recipe)
    head, tail = daemon.config.read_text().split("[cameras.cam2]")
    daemon.config.write_text(head + "[cameras.cam2]" + tail.replace('"part"', '"twin"'))
    with running(daemon, "--exit-at-end") as subscriber:
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None and seen.ended("cam2") is not None)
    assert {(each["camera"], each["recipe"]["name"]) for each in seen.verdicts} == {("cam1", "part"), ("cam2", "twin")}
    assert {each["decision"] for each in seen.verdicts} <= {"pass", "fail"}


def test_status_says_what_its_counts_are_of(make_daemon: MakeDaemon) -> None:
    """Frames and verdicts a second of the last seconds; a new publisher's decisions are those after a seq."""
    daemon = a_live_daemon(make_daemon, cameras=1)

    def camera() -> dict[str, Any]:
        return dict(daemon.ask("status")["cameras"]["cam1"])

    def settled() -> dict[str, Any]:
        """Once what is counted a second is that of a running camera, not of its start."""
        until_s = time.monotonic() + PATIENCE_S
        while not 6 < ((now := camera())["rates_per_s"]["frames"] or 0) < 60:
            assert time.monotonic() < until_s, now
            time.sleep(0.1)
        return now

    with running(daemon) as subscriber:
        subscriber.until(lambda seen: inspected(seen, "cam1", 2))
        first = settled()
        psutil.Process(pid_of(daemon, "publisher")).kill()
        subscriber.until(lambda seen: any(event["kind"] == "publisher_restarted" for event in seen.events))
        second = settled()
    assert first["decisions_after_seq"] == 0
    assert second["decisions_after_seq"] >= first["last_seq"]
    for status in (first, second):
        assert sum(status["decisions"].values()) == status["last_seq"] - status["decisions_after_seq"]
        assert 0 < status["rates_per_s"]["verdicts"] < 6


def test_unusable_journal_does_not_silence_a_new_publisher(make_daemon: MakeDaemon) -> None:
    """With a journal that cannot even be opened a replaced publisher goes on, unjournaled and `degraded` (I4)."""
    daemon = a_live_daemon(make_daemon, cameras=1)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: inspected(seen, "cam1", 1))
        publisher = psutil.Process(pid_of(daemon, "publisher"))
        without_journal(daemon)
        daemon.journal.mkdir()
        publisher.kill()
        last = max(subscriber.seen.seqs("cam1"))
        seen = subscriber.until(lambda seen: inspected(seen, "cam1", last + 2) and seen.state == "degraded")
        daemon.journal.rmdir()
    assert not seen.verdicts[-1]["journaled"]
