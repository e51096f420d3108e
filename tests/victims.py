"""Processes that the tests start in order to kill, or to let them race: real ones, forked from a clean server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import zmq

from inspectd.journal.verdicts import Entry
from inspectd.records import Decision, TriggerKind
from inspectd.stages.audit import Audit
from inspectd.stages.lifecycle import Charge, Stage, live
from inspectd.stages.spill import Spill
from inspectd.transport.ring import Ring
from inspectd.transport.rows import NewRow
from inspectd.transport.tickets import CameraView, Table

PATIENCE_S = 60.0
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["inspectd.transport.ring", "inspectd.transport.tickets"])


def started(work: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that runs one of the functions below."""
    process = _CONTEXT.Process(target=work, args=args, daemon=True)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """How a process ended; it is killed where it does not within the patience of the tests."""
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def row_of(seq: int, **more: Any) -> NewRow:
    """A row each of whose fields tells its seq."""
    row = NewRow(
        trigger_kind=TriggerKind.EXTERNAL,
        trigger_id=f"t{seq}",
        part_id=f"p{seq}" * (seq % 50),
        accepted_ns=seq,
        deadline_ns=seq + 1,
        simulated=seq % 2 == 0,
        slot=seq,
        slot_generation=seq,
        frame_index=seq,
        width_px=seq,
        height_px=seq,
        pts_s=float(seq),
        captured_ns=seq,
        captured_utc_ns=seq,
        capture_ms=float(seq),
    )
    return replace(row, **more)


def frameless_row_of(seq: int) -> NewRow:
    """The same, as a trigger whose frame is still to come."""
    empty = NewRow(trigger_kind=TriggerKind.EXTERNAL, accepted_ns=0, deadline_ns=0, simulated=False)
    blank = {name: getattr(empty, name) for name in ("slot", "slot_generation", "frame_index", "width_px", "height_px")}
    times = {name: getattr(empty, name) for name in ("pts_s", "captured_ns", "captured_utc_ns", "capture_ms")}
    return row_of(seq, **blank, **times)


def die_at(fatal: str) -> Callable[[str], None]:
    """A step hook that kills its own process at one step."""

    def after_step(step: str) -> None:
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    return after_step


def accept_and_die(table_name: str, seq: int, fatal: str) -> None:
    """A capture that is killed at one step of acceptance."""
    Table.attach(table_name).camera(0).accept(row_of(seq), die_at(fatal))


def write_and_die(ring_name: str, slot: int, level: int, seq: int, fatal: str) -> None:
    """A capture that is killed at one step of writing pixels."""
    Ring.attach(ring_name).write(slot, np.full((8, 8, 3), level, np.uint8), seq, die_at(fatal))


def create_accept_and_die(table_name: str, count: int) -> None:
    """A whole daemon that is killed after it accepted some frames."""
    table = Table.create(table_name, session="5e5510", cameras=["cam1"], children=["publisher"], started_ns=1)
    for seq in range(1, count + 1):
        table.camera(0).accept(row_of(seq))
    os.kill(os.getpid(), signal.SIGKILL)


def accept_for_ever(table_name: str) -> None:
    """A capture at full speed: rows without a frame, then their frames."""
    view = Table.attach(table_name).camera(0)
    while True:
        seq = view.high_water + 1
        if view.accept(frameless_row_of(seq)) is not None:
            view.fill(seq, row_of(seq))


def flip_word_for_ever(table_name: str) -> None:
    """A writer of words all of whose bytes change at once."""
    view: CameraView = Table.attach(table_name).camera(0)
    while True:
        view.frames_read = 0
        view.frames_read = -1


def overrun_for_ever(ring_name: str, height_px: int, width_px: int) -> None:
    """A capture that asks nobody: every slot again and again, each frame of one value that its seq tells."""
    ring = Ring.attach(ring_name)
    seq = 0
    while True:
        for slot in range(ring.slots):
            seq += 1
            ring.write(slot, np.full((height_px, width_px, 3), seq % 251, np.uint8), seq)


def until(happened: Callable[[], bool]) -> bool:
    """Whether something happened before the patience of the tests ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if happened():
            return True
    return False


def note_for_ever(spill_name: str) -> None:
    """A publisher whose disk hangs: notes until it is killed, settling as little as keeps it going."""
    spill = Spill.attach(spill_name)
    entry = Entry(session="s", camera="c", seq=0, decision=Decision.PASS, topic="t", body=b"")
    marks = deque[int]()
    for seq in count(1):
        while not spill.note(replace(entry, seq=seq, body=b"%d" % seq * 50)):
            spill.settle(marks.popleft())
        marks.append(spill.noted)


def subscribe_to_everything(endpoint: str, count: int) -> None:
    """A subscriber that asks for whatever comes to its mind, and comes back whenever it is thrown out."""
    with zmq.Context() as context, context.socket(zmq.XSUB) as socket:
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        for number in range(count):
            socket.send(b"\1preview/cam%d" % number + b"x" * 80)
        while True:
            socket.poll(100)


def publish(charge: Charge) -> None:
    """A publisher."""
    live(charge, Stage.PUBLISHER)


def publish_but_stop(charge: Charge) -> None:
    """A publisher that SIGSTOP meets between its first commit and the send."""
    commit = Audit.commit

    def commit_and_stop(audit: Audit, *args: Any) -> Any:
        Audit.commit = commit
        committed = commit(audit, *args)
        os.kill(os.getpid(), signal.SIGSTOP)
        return committed

    Audit.commit = commit_and_stop
    publish(charge)
