"""A real publisher process on a table, a journal and a spill as a dead one left them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from daemons import Daemon, Subscriber, file_camera
from disks import hanging_reads
from psutil import STATUS_STOPPED, Process
from tests_records import a_verdict
from victims import publish, publish_but_stop, row_of, until

from inspectd.journal.verdicts import Entry, Journal
from inspectd.recipe import load_recipe
from inspectd.records import CameraState, Decision, Reason
from inspectd.settings import load_settings
from inspectd.stages.answers import entry_of, freeze
from inspectd.stages.lifecycle import Charge
from inspectd.stages.spill import Spill
from inspectd.transport.memory import sweep
from inspectd.transport.tickets import Table

SESSION = "5e5510" + "0" * 26


class Scene:
    """What a daemon has in memory and on disk, without its processes: one camera, or those of a station."""

    def __init__(self, folder: Path, prefix: str, station: tuple[str, ...] = (), extra: str = "") -> None:
        camera = file_camera(folder / "none.mp4", pace="realtime", trigger='kind = "external"' if station else "")
        extra += "[publisher]\npublish_reserve_ms = 200\n"  # and so a slow disk is waited for
        extra += f'[stations.side]\ncameras = {list(station)}\nmatch = "trigger"' if station else ""
        self.daemon = Daemon(folder=folder, cameras=dict.fromkeys(station or ("cam1",), camera), extra=extra)
        self.settings = load_settings(self.daemon.config)
        self.settings.state_dir.mkdir()
        self.settings.sockets_dir.mkdir(exist_ok=True)
        names = [*self.settings.cameras, *self.settings.stations]
        self.table = Table.create(
            f"{prefix}-table", session=SESSION, cameras=names, children=["publisher", "worker"], started_ns=1
        )
        self.table.publisher_generation, self.table.accepting = 2, True
        self.spill = Spill.create(self.table.spill_name, 100_000)
        self.view = self.table.camera(0)

    def accept(self, seq: int, *, due_in_s: float = 0.0, camera: int = 0, trigger_id: str | None = None) -> None:
        """A frame that capture accepted; it is overdue where that is negative, and never where it is 0."""
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + round(due_in_s * 1e9) if due_in_s else 0
        row = row_of(seq, trigger_id=trigger_id, part_id=None, accepted_ns=now_ns, deadline_ns=deadline_ns)
        assert self.table.camera(camera).accept(row) == seq

    def journal(self, *entries: Entry) -> None:
        """What the dead publisher had committed."""
        journal = Journal.open(self.daemon.journal)
        journal.append(entries)
        journal.close()

    def journaled(self) -> list[Entry]:
        """What the journal holds now."""
        reader = Journal.open(self.daemon.journal, read_only=True)
        try:
            return reader.since("cam1", 0, session=SESSION)
        finally:
            reader.close()

    @contextmanager
    def publisher(self, work: Callable[[Charge], None] = publish) -> Iterator[Subscriber]:
        """A living publisher, the second generation, and a subscriber that waited for it."""
        recipes = {name: load_recipe(self.settings.recipe_path(name)) for name in self.settings.cameras}
        charge = Charge(
            parent_pid=os.getpid(),
            table_name=self.table.name,
            child_index=0,
            generation=2,
            settings=self.settings,
            recipes=recipes,
        )
        subscriber = Subscriber(self.daemon.verdicts)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(charge,))
        process.start()
        self.process = Process(process.pid)
        try:
            yield subscriber
            os.kill(process.pid, signal.SIGTERM)
            process.join(20)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
            subscriber.close()

    @contextmanager
    def held_up(self, subscriber: Subscriber) -> Iterator[None]:
        """What is accepted in here is committed in one turn, and sent no sooner than half a second later."""
        subscriber.until(lambda seen: bool(seen.heartbeats))
        self.process.suspend()
        yield
        until_s = time.monotonic() + 0.5
        self.process.resume()
        assert until(lambda: self.process.status() == STATUS_STOPPED)
        time.sleep(max(0.0, until_s - time.monotonic()))
        self.process.resume()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    prefix = f"inspectd-test{os.getpid()}"
    yield Scene(tmp_path / "d", prefix)
    sweep(prefix)


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Scene]:
    prefix = f"inspectd-test{os.getpid()}"
    yield Scene(tmp_path / "d", prefix, station=("left", "right"))
    sweep(prefix)


def verdict(seq: int, **more: object) -> Entry:
    """A good part's verdict, ready to be sent."""
    return entry_of(freeze(a_verdict(session=SESSION, seq=seq, **more), None))


def test_a_verdict_that_was_committed_and_never_sent_is_sent(scene: Scene) -> None:
    """What may have been sent is not repeated; of the rest the overdue is late, in the journal too, and the rest as
    it stands there."""
    for seq in range(1, 4):
        scene.accept(seq)
    scene.accept(4, due_in_s=-1.0)
    scene.accept(5, due_in_s=60.0)
    scene.accept(6)
    committed = [verdict(seq) for seq in range(1, 7)]
    scene.journal(*committed)
    scene.view.answered_through, scene.view.sent_through = 2, 3
    with scene.publisher() as subscriber:
        seen = subscriber.until(lambda seen: len(seen.verdicts) >= 3)
    assert seen.seqs("cam1") == [4, 5, 6]
    assert [each["reason"] for each in seen.verdicts] == ["late", "ok", "ok"]
    journaled = {entry.seq: entry.body for entry in scene.journaled()}
    assert [journaled[seq] for seq in (1, 2, 3, 5, 6)] == [committed[seq - 1].body for seq in (1, 2, 3, 5, 6)]
    assert [journaled[seq] for seq in (4, 5, 6)] == list(seen.raw.values())


def test_words_that_replaced_others_in_flight_are_journaled_by_the_next_publisher(scene: Scene) -> None:
    """A commit that was given up and happened nevertheless gives way to what was sent; what was only sent comes after;
    what was noted and never sent is answered anew."""
    for seq in range(1, 4):
        scene.accept(seq)
    scene.journal(verdict(1))
    sent = [
        verdict(seq, journaled=False, decision=Decision.ERROR, reason=Reason.INTERNAL, score=None) for seq in (1, 2)
    ]
    for each in [*sent, verdict(3, journaled=False)]:
        scene.spill.note(each)
    scene.view.answered_through = scene.view.sent_through = 2
    with scene.publisher() as subscriber:
        seen = subscriber.until(lambda seen: seen.seqs("cam1") == [3])
    assert [entry.body for entry in scene.journaled()] == [*(each.body for each in sent), *seen.raw.values()]
    assert scene.spill.entries() == []


def test_a_pass_that_is_held_up_before_its_send_is_late_in_the_journal_too(scene: Scene) -> None:
    """The publisher stands still between commit and send: what is over by then goes out as an error, the rest as it
    is."""
    scene.journal(verdict(1), verdict(2))
    with scene.publisher(publish_but_stop) as subscriber:
        with scene.held_up(subscriber):
            scene.accept(1, due_in_s=0.4)
            scene.accept(2, due_in_s=60.0)
        seen = subscriber.until(lambda seen: len(seen.verdicts) == 2)
    assert [(each["reason"], each["journaled"]) for each in seen.verdicts] == [("late", True), ("ok", True)]
    assert [entry.body for entry in scene.journaled()] == list(seen.raw.values())


def test_a_new_publisher_goes_on_from_the_table_while_reads_of_the_journal_hang(scene: Scene, tmp_path: Path) -> None:
    """It waits a little for what was committed, and then answers what is overdue, unjournaled."""
    scene.journal(verdict(1))
    with hanging_reads(tmp_path, scene.daemon.journal) as (hung_path, flag):
        scene.daemon.journal.unlink()
        scene.daemon.journal.symlink_to(hung_path)
        flag.touch()
        scene.accept(1, due_in_s=-1.0)
        with scene.publisher() as subscriber:
            seen = subscriber.until(lambda seen: len(seen.verdicts) == 1, 20.0)
            flag.unlink()  # or it could not end
    assert [(each["seq"], each["reason"], each["journaled"]) for each in seen.verdicts] == [(1, "worker_lost", False)]


def test_what_happened_while_no_publisher_lived_is_told(scene: Scene) -> None:
    """Frames that were skipped, a camera that was lost, a worker that was replaced, a journal that is well again: its
    successor tells what the dead one had not."""
    scene.table.told(0).frames_skipped = 3
    scene.table.told_of_daemon.worker_generation, scene.table.worker_generation = 1, 2
    scene.table.told_of_daemon.journal_failed = 1
    scene.view.frames_skipped, scene.view.state = 10, CameraState.LOST
    with scene.publisher() as subscriber:
        seen = subscriber.until(lambda seen: len(seen.events) >= 5)
    told = {each["kind"]: each for each in seen.events}
    assert set(told) == {"publisher_restarted", "worker_restarted", "journal_back", "frames_skipped", "camera_lost"}
    assert told["frames_skipped"]["count"] == 7


def test_a_station_does_not_vouch_for_what_went_out_late(station: Scene) -> None:
    """One of its cameras is held up beyond its deadline: the word on the part, in time by itself, is an error too."""
    station.journal(*(verdict(1, camera=name) for name in ("left", "right")))
    with station.publisher(publish_but_stop) as subscriber:
        with station.held_up(subscriber):
            station.accept(1, camera=1, due_in_s=60.0, trigger_id="t")
            station.accept(1, camera=0, due_in_s=0.4, trigger_id="t")
        seen = subscriber.until(lambda seen: len(seen.verdicts) == 3)
    assert {each["camera"]: each["reason"] for each in seen.verdicts} == {"left": "late", "right": "ok", "side": "late"}
    assert [each["reason"] for each in seen.verdicts[-1]["members"]] == ["late", "ok"]


def test_a_station_does_not_vouch_for_what_went_out_as_an_error(tmp_path: Path) -> None:
    """The journal stalls while one camera answers, so its pass is not believed; the other's pass comes later."""
    prefix = f"inspectd-test{os.getpid()}"
    strict = "[journal]\nstrict_audit = true\n"
    station = Scene(tmp_path / "d", prefix, station=("left", "right"), extra=strict)
    station.journal(*(verdict(1, camera=name) for name in ("left", "right")))
    try:
        with station.publisher() as subscriber:
            subscriber.until(lambda seen: bool(seen.heartbeats))
            with closing(sqlite3.connect(station.daemon.journal, isolation_level=None)) as holder:
                holder.execute("BEGIN IMMEDIATE")
                station.accept(1, camera=0, due_in_s=60.0, trigger_id="t")
                subscriber.until(lambda seen: len(seen.verdicts) == 1)
            subscriber.until(lambda seen: seen.events[-1]["kind"] == "journal_back")
            station.accept(1, camera=1, due_in_s=60.0, trigger_id="t")
            seen = subscriber.until(lambda seen: len(seen.verdicts) == 3)
    finally:
        sweep(prefix)
    told = {each["camera"]: (each["decision"], each["journaled"]) for each in seen.verdicts}
    assert told == {"left": ("error", False), "right": ("pass", True), "side": ("error", True)}
    assert [each["decision"] for each in seen.verdicts[-1]["members"]] == ["error", "pass"]
