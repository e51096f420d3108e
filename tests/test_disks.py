"""A disk that hangs, is full or cannot be written: verdicts go on, and the journal gets them later, byte for byte."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import zmq
from daemons import Daemon, Seen, file_camera, running, shared
from disks import hanging_disk, small_disk

from inspectd.journal.verdicts import Journal

MakeDaemon = Callable[..., Daemon]
RECIPE = "deadline_ms = 4000\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"


def a_live_daemon(make_daemon: MakeDaemon, **more: Any) -> Daemon:
    """A camera that never ends, five frames a second."""
    video = shared("data", "video", "bottle_bench_640x360.mp4")
    camera = file_camera(video, pace="realtime", trigger="max_fps = 5", loop=True)
    return make_daemon({"cam1": camera}, recipe=RECIPE, **more)


def unjournaled(seen: Seen) -> list[dict[str, Any]]:
    return [each for each in seen.verdicts if not each["journaled"]]


def longest_refusal_s(daemon: Daemon, for_s: float) -> float:
    """How long at most a bad request waits to be told so."""
    waits_s = [0.0]
    until_s = time.monotonic() + for_s
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.connect(daemon.control)
        while (sent_s := time.monotonic()) < until_s:
            client.send(b'{"id": "x", "op": "dance"}')
            assert not json.loads(client.recv_multipart()[0])["ok"]
            waits_s.append(time.monotonic() - sent_s)
    return max(waits_s[2:])  # the first waits for its connection


def recovered(seen: Seen) -> bool:
    """Whether the journal keeps up again, after it did not."""
    last = seen.verdicts[-1]
    return bool(last["journaled"]) and last["decision"] != "error" and seen.state == "ready"


def journaled(path: Path, session: str) -> dict[int, bytes]:
    """The bodies that the journal holds, by seq."""
    journal = Journal.open(path, read_only=True)
    try:
        return {each.seq: each.body for each in journal.since("cam1", 0, session=session, limit=10_000)}
    finally:
        journal.close()


def test_what_was_sent_while_the_disk_hung_outlives_the_publisher(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Strictly audited verdicts become errors; the publisher is killed; in the end every row is what was published."""
    environment, flag = hanging_disk(tmp_path)
    daemon = a_live_daemon(make_daemon, environment=environment, extra="[journal]\nstrict_audit = true")
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: len(seen.verdicts) > 3 and recovered(seen))
        flag.touch()
        assert longest_refusal_s(daemon, 0.5) < 0.1  # the commit that hangs is waited for, by verdicts alone
        subscriber.until(lambda seen: len(unjournaled(seen)) > 3 and seen.state == "degraded")
        publisher = next(each for each in daemon.ask("status")["processes"] if each["name"] == "publisher")
        psutil.Process(publisher["pid"]).kill()
        last = len(unjournaled(subscriber.seen))
        subscriber.until(lambda seen: len(unjournaled(seen)) > last + 3)
        flag.unlink()
        seen = subscriber.until(recovered)
        daemon.signal(signal.SIGTERM)
        subscriber.until(lambda seen: seen.state == "stopping")
        assert daemon.wait() == 0
    assert {each["decision"] for each in unjournaled(seen)} == {"error"}
    rows = journaled(daemon.journal, seen.verdicts[0]["session"])
    assert list(rows) == list(range(1, len(rows) + 1))
    assert seen.raw.items() <= {(seen.verdicts[0]["session"], "cam1", seq): body for seq, body in rows.items()}.items()


def test_a_daemon_whose_disk_hangs_stops_in_time_and_the_next_one_journals(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """Exit 0 within 5 s of SIGTERM; while the disk hangs a start is refused in one line; then all is made good."""
    environment, flag = hanging_disk(tmp_path)
    daemon = a_live_daemon(make_daemon, environment=environment)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: len(seen.verdicts) > 3)
        flag.touch()
        subscriber.until(lambda seen: len(unjournaled(seen)) > 3)
        told_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        seen = subscriber.until(lambda seen: seen.state == "stopping")
        assert daemon.wait() == 0
        assert time.monotonic() - told_s < 5
        assert daemon.run() == 70
        assert f"inspectd: {daemon.journal}: its disk does not answer (tried 5 s)\n" in daemon.log()
        flag.unlink()
        daemon.start()
        session = seen.verdicts[0]["session"]
        subscriber.until(lambda seen: seen.state == "ready" and seen.heartbeats[-1]["session"] != session)
    published = {seq: body for (name, _, seq), body in seen.raw.items() if name == session}
    assert journaled(daemon.journal, session) == published


def test_a_start_without_a_disk_is_one_line(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Full is worth another try (exit 70); read-only is for a person to change (exit 3)."""
    state = tmp_path / "d0" / "state"
    state.mkdir(parents=True)
    daemon = a_live_daemon(make_daemon, wrapper=small_disk(state, "16k"))
    assert daemon.run() == 70
    last = daemon.log().splitlines()[-1]
    assert last.startswith(f"inspectd: {daemon.journal}: ")
    assert last.endswith("; its disk has 0 bytes free")
    daemon.wrapper = small_disk(state, options="ro")
    assert daemon.run() == 3
    assert daemon.log().splitlines()[-1] == f"inspectd: state_dir {state}: Read-only file system"
