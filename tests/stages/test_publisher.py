"""A real publisher process on a table, a journal and a spill as a dead one left them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from daemons import Daemon, Subscriber, file_camera
from tests_records import a_verdict
from victims import row_of

from inspectd.journal import Entry, Journal
from inspectd.recipe import load_recipe
from inspectd.records import Decision, Reason
from inspectd.settings import load_settings
from inspectd.stages.answers import entry_of, freeze
from inspectd.stages.lifecycle import Charge, Stage, live
from inspectd.stages.spill import Spill
from inspectd.transport.memory import sweep
from inspectd.transport.tickets import Table

SESSION = "5e5510" + "0" * 26


class Scene:
    """What a daemon of one camera has in memory and on disk, without its processes."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.daemon = Daemon(folder=folder, cameras={"cam1": file_camera(folder / "none.mp4")})
        self.settings = load_settings(self.daemon.config)
        self.settings.sockets_dir.mkdir(parents=True)
        self.table = Table.create(
            f"{prefix}-table", session=SESSION, cameras=["cam1"], children=["publisher", "worker"], started_ns=1
        )
        self.table.publisher_generation, self.table.accepting = 2, True
        self.spill = Spill.create(self.table.spill_name, 100_000)
        self.view = self.table.camera(0)

    def accept(self, seq: int, *, due_in_s: float = 0.0) -> None:
        """A frame that capture accepted; it is overdue where that is negative, and never where it is 0."""
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + round(due_in_s * 1e9) if due_in_s else 0
        row = replace(row_of(seq), trigger_id=None, part_id=None, accepted_ns=now_ns, deadline_ns=deadline_ns)
        assert self.view.accept(row) == seq

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
    def publisher(self) -> Iterator[Subscriber]:
        """A living publisher, the second generation, and a subscriber that waited for it."""
        recipes = {"cam1": load_recipe(self.settings.recipe_path("cam1"))}
        charge = Charge(
            parent_pid=os.getpid(),
            table_name=self.table.name,
            child_index=0,
            generation=2,
            settings=self.settings,
            recipes=recipes,
        )
        subscriber = Subscriber(self.daemon.verdicts)
        process = multiprocessing.get_context("spawn").Process(target=live, args=(charge, Stage.PUBLISHER))
        process.start()
        try:
            yield subscriber
            os.kill(process.pid, signal.SIGTERM)
            process.join(20)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
            subscriber.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    prefix = f"inspectd-test{os.getpid()}"
    yield Scene(tmp_path / "d", prefix)
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
