"""Acceptance on a real table and ring, with real wake-ups: what becomes a row, what is skipped, what is answered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from inspectd.records import Frame, Reason
from inspectd.settings import load_settings
from inspectd.sources.presence import Part
from inspectd.sources.triggers import Request
from inspectd.stages.acceptance import Acceptance
from inspectd.transport.memory import sweep
from inspectd.transport.pipes import Inbox, stage_endpoint
from inspectd.transport.ring import Ring
from inspectd.transport.sockets import wait
from inspectd.transport.tickets import CameraView, Table

SIZE_WH_PX = (8, 6)
DEADLINE_MS = 10_000.0
CONFIG = """
state_dir = "state"
runtime_dir = "."
[cameras.cam1]
recipe = "part"
source = {{ kind = {source} }}
trigger = {{ {trigger} }}
"""
RTSP = '"rtsp", url = "rtsp://127.0.0.1/"'
FAST = '"folder", path = "images", pace = "fast"'


class Scene:
    """The memory of a daemon with one camera and a ring of two slots, and what its worker and publisher hear."""

    def __init__(self, folder: Path, prefix: str, *, source: str = RTSP, trigger: str = "every_nth = 1") -> None:
        path = folder / "inspectd.toml"
        path.write_text(CONFIG.format(source=source, trigger=trigger))
        names = {"session": "s", "cameras": ["cam1"], "children": ["capture-cam1"]}
        self.table = Table.create(f"{prefix}-table", **names, started_ns=1, rows=4)
        self.table.worker_generation = self.table.publisher_generation = 1
        self.table.accepting = True
        width, height = SIZE_WH_PX
        self.ring = Ring.create(self.table.ring_name(0), slots=2, slot_bytes=width * height * 3)
        self.view: CameraView = self.table.camera(0)
        self.inboxes = {stage: Inbox(stage_endpoint(folder, stage, 1, "wake")) for stage in ("worker", "publisher")}
        self.life = SimpleNamespace(
            charge=SimpleNamespace(
                settings=load_settings(path), recipes={"cam1": SimpleNamespace(deadline_ms=DEADLINE_MS)}
            ),
            table=self.table,
            stopping=False,
            beat=self.stop_soon,
        )
        self.beats = 0
        self.acceptance = Acceptance(self.life, "cam1", self.view, self.ring)

    def stop_soon(self) -> None:
        """The third beat of a source that waits is its last."""
        self.beats += 1
        self.life.stopping = self.beats == 3

    def woken(self, stage: str, timeout_s: float = 20) -> bool:
        """Whether a stage was woken."""
        wait([self.inboxes[stage]], timeout_s)
        return bool(list(self.inboxes[stage].drain()))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Makes a scene."""
    prefix, scenes = f"inspectd-test{os.getpid()}a", []

    def made(**more: str) -> Scene:
        scenes.append(Scene(tmp_path, prefix, **more))
        return scenes[-1]

    yield made
    for scene in scenes:
        for each in (*scene.inboxes.values(), *scene.acceptance._wakes):
            each.close()
    sweep(prefix)


def frame(index: int) -> Frame:
    """A frame of one colour."""
    pixels_bgr = np.full((*SIZE_WH_PX[::-1], 3), index, np.uint8)
    return Frame(index=index, pixels_bgr=pixels_bgr, captured_ns=time.monotonic_ns(), captured_utc_ns=7)


def part(*indices: int) -> Part:
    """A part with frames of these indices, the best first; the last one arrived first."""
    return Part(frames=tuple([frame(index) for index in reversed(indices)][::-1]))


def test_a_part_is_a_row_with_all_its_frames_in_the_ring(make: Callable[..., Scene]) -> None:
    """Its deadline counts from the first of them that arrived; the worker is woken, the publisher has time."""
    scene, taken = make(), part(5, 3)
    scene.acceptance.accept_part(taken, None)
    row = scene.view.row(1)
    assert [row.frame_index, *(shot.frame_index for shot in row.shots)] == [5, 3]
    for each in (row, *row.shots):
        pixels_bgr = scene.ring.read(each.slot, each.slot_generation, each.height_px, each.width_px)
        assert (pixels_bgr == each.frame_index).all()
    assert row.deadline_ns == min(each.arrived_ns for each in taken.frames) + round(DEADLINE_MS * 1e6)
    assert scene.woken("worker")
    assert not scene.woken("publisher", 0.1)


@pytest.mark.parametrize(("when_full", "gates"), [("skip", []), ("answer", [Reason.OVERLOAD])])
def test_a_part_that_finds_the_ring_full_is_skipped_or_answered(
    make: Callable[..., Scene], when_full: str, gates: list[Reason]
) -> None:
    """As the camera's trigger says."""
    scene = make(trigger=f'when_full = "{when_full}"')
    for index in range(3):
        scene.acceptance.accept_part(part(index), None)
    assert [row.gate for row in scene.view.unanswered()] == [None, None, *gates]
    assert scene.view.frames_skipped == 1 - len(gates)
    assert scene.woken("publisher", 0.1) == bool(gates)


def test_a_source_that_can_wait_waits_for_a_slot_until_the_end(make: Callable[..., Scene]) -> None:
    """It beats meanwhile, and its rows have no deadline. What waits at the end is neither accepted nor skipped."""
    scene = make(source=FAST)
    scene.acceptance.accept_part(part(0, 1), None)
    assert scene.beats == 0
    assert not scene.acceptance.accept_part(part(2), None)
    assert (scene.beats, scene.view.high_water, scene.view.frames_skipped) == (3, 1, 0)
    assert next(scene.view.unanswered()).deadline_ns == 0


@pytest.mark.parametrize("gate", [Reason.FRAME_CORRUPT, Reason.FRAME_FROZEN])
def test_a_part_that_a_gate_refuses_is_decided(make: Callable[..., Scene], gate: Reason) -> None:
    """The pixels of a corrupt one fit nowhere; of another one they are evidence. The publisher is told at once."""
    scene = make()
    scene.acceptance.accept_part(part(1), gate)
    row = scene.view.row(1)
    assert row.gate is gate
    assert (row.slot < 0) == (gate is Reason.FRAME_CORRUPT)
    assert scene.woken("publisher")


def test_what_the_table_has_no_row_for_is_counted(make: Callable[..., Scene]) -> None:
    """Nothing is accepted then."""
    scene = make()
    for _ in range(5):
        scene.acceptance.accept_error(Reason.CAMERA_LOST)
    assert scene.view.high_water == 4
    assert scene.view.frames_skipped == 1


def test_a_trigger_is_accepted_before_its_frame_comes(make: Callable[..., Scene]) -> None:
    """Then the row gets the frame, or the reason why it has none."""
    scene = make(trigger='kind = "external"')
    asked = []
    for number in range(4):
        seq = scene.acceptance.accept_trigger(f"t{number}", None, arrived_ns=1, deadline_ns=10**18, gate=None)
        asked.append(Request(seq=seq, arrived_ns=1, deadline_ns=10**18))
    assert [row.slot for row in scene.view.unanswered()] == 4 * [-1]
    scene.acceptance.fill(asked[0], frame(9), None)
    scene.acceptance.fill(asked[1], frame(9), Reason.FRAME_FROZEN)
    scene.acceptance.decide(asked[2:], Reason.CAMERA_LOST)
    rows = list(scene.view.unanswered())
    assert [row.gate for row in rows] == [None, Reason.FRAME_FROZEN, Reason.CAMERA_LOST, Reason.CAMERA_LOST]
    assert [row.slot >= 0 for row in rows] == [True, False, False, False]
    assert [row.trigger_id for row in rows] == ["t0", "t1", "t2", "t3"]
    assert rows[0].frame_index == 9


def test_nothing_is_accepted_while_the_camera_is_paused_or_the_daemon_stops(make: Callable[..., Scene]) -> None:
    """Nor before the first worker is warm."""
    scene = make()
    assert scene.acceptance.accepting
    scene.view.paused = 1
    assert not scene.acceptance.accepting
    scene.view.paused, scene.table.stopping = 0, True
    assert not scene.acceptance.accepting
    assert scene.acceptance.stopping
    scene.table.stopping, scene.table.accepting = False, False
    assert not scene.acceptance.accepting
    assert not scene.acceptance.stopping
