"""Capture on a real table and ring, with real sources or a camera whose connection a test plays."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from belts import ZONE, Belt
from clips import numbered
from daemons import model_toml
from mjpeg_servers import MjpegServer, jpeg, mjpeg_server, part

from inspectd.errors import SourceLost
from inspectd.recipe import load_recipe
from inspectd.records import CameraState, Frame, PixelsU8, Reason, TriggerKind
from inspectd.settings import load_settings
from inspectd.sources.base import FrameSource
from inspectd.sources.live import Arrival, LiveCamera, Patience
from inspectd.sources.open import open_source
from inspectd.stages.capture import Capture
from inspectd.transport.memory import sweep
from inspectd.transport.pipes import Commands, stage_endpoint
from inspectd.transport.ring import Ring
from inspectd.transport.rows import NewRow, Row
from inspectd.transport.tickets import ROWS, CameraView, Table

PATIENCE_S = 30.0
SIZE_WH_PX = (240, 240)
CONFIG = """
state_dir = "state"
runtime_dir = "."
[cameras.cam1]
recipe = "part"
source = {{ {source} }}
trigger = {{ {trigger} }}
"""
RECIPE = f'object = "part"\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n{model_toml()}'
CAMERA = f'kind = "mjpeg", url = "http://127.0.0.1/", max_size_wh_px = {list(SIZE_WH_PX)}'
PRESENCE = 'kind = "presence"'
EXTERNAL = 'kind = "external"'


class Line:
    """The memory of a daemon with one camera, whose publisher answers whatever is accepted."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        names = {"session": "s", "cameras": ["cam1"], "children": ["capture-cam1"]}
        self.table = Table.create(f"{prefix}-table", **names, started_ns=1)
        self.table.accepting = True
        width, height = SIZE_WH_PX
        self.ring = Ring.create(self.table.ring_name(0), slots=4, slot_bytes=width * height * 3)
        self.view: CameraView = self.table.camera(0)
        self.gates: list[Reason | None] = []
        self.generation = 0

    @contextmanager
    def captures(
        self, source: str, trigger: str = "", opens: Callable[..., FrameSource] = open_source
    ) -> Iterator[None]:
        """One generation of capture, in a thread; then its end."""
        for name, text in (("part.toml", RECIPE), ("inspectd.toml", CONFIG.format(source=source, trigger=trigger))):
            (self.folder / name).write_text(text)
        self.generation += 1
        charge = SimpleNamespace(
            settings=load_settings(self.folder / "inspectd.toml"),
            recipes={"cam1": load_recipe(self.folder / "part.toml")},
            generation=self.generation,
        )
        nothing = SimpleNamespace(limit=lambda _: None)
        life: Any = SimpleNamespace(
            charge=charge, table=self.table, stopping=False, beat=lambda: None, settle=lambda: None, heart=nothing
        )

        def run() -> None:
            capture = Capture(life, "cam1", opens)
            capture.run()
            for each in (*capture._acceptance._wakes, capture._commands):
                each.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            life.stopping = True
            thread.join(PATIENCE_S)

    def until(self, reached: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Answers what is accepted until then."""
        until_s = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < until_s, (self.view.state, self.gates, self.view.frames_read)
            self.answer()
            time.sleep(0.005)

    def answer(self) -> None:
        for row in list(self.view.unanswered()):
            self.gates.append(row.gate)
            self.view.answered_through = row.seq


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A line with nothing on it."""
    prefix = f"inspectd-test{os.getpid()}c"
    yield Line(tmp_path, prefix)
    sweep(prefix)


@dataclass
class Played:
    """A camera that opens, breaks and gives pictures when a test says so. It may be silent for an hour, or as said."""

    here: bool = True
    silence_s: float = 3600
    pictures: Queue[PixelsU8] = field(default_factory=Queue)
    notes: tuple[str, ...] = ()
    opens: int = 0

    def opened(self, _: object, *, start_index: int) -> LiveCamera:
        patience = Patience(open_s=5, silence_s=self.silence_s)
        return LiveCamera(self, name="it", size_wh_px=SIZE_WH_PX, patience=patience, start_index=start_index)

    def open(self) -> None:
        self.check()
        self.opens += 1

    def take(self) -> Arrival | None:
        self.check()
        try:
            pixels_bgr = self.pictures.get(timeout=0.02)
        except Empty:
            return None
        return Arrival(load=lambda: (pixels_bgr, None), captured_ns=time.monotonic_ns(), captured_utc_ns=1)

    def close(self) -> None: ...

    def check(self) -> None:
        if not self.here:
            raise SourceLost("it: gone")


class PausedMeanwhile:
    """A source that is paused while it reads a frame, its second by default, and stays so for a moment."""

    def __init__(self, source: FrameSource, view: CameraView, *, index: int = 1, for_s: float = 0.3) -> None:
        self._source, self._view, self._index, self._for_s = source, view, index, for_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, timeout_s: float) -> Frame | None:
        frame = self._source.read(timeout_s)
        if frame is not None and frame.index == self._index:
            self._view.paused = 1
            threading.Timer(self._for_s, lambda: setattr(self._view, "paused", 0)).start()
        return frame


@pytest.mark.parametrize("kind", ["folder", "drop"])
def test_pause_loses_no_frame_of_a_source_that_waits(line: Line, kind: str) -> None:
    """What was being read when the pause came is inspected after it."""
    images = line.folder / "in"
    images.mkdir()
    for number in range(4):
        cv2.imwrite(str(images / f"{number}.png"), numbered(number))
    source = f'kind = "{kind}", path = "{images}"' + (', pace = "fast"' if kind == "folder" else "")
    with line.captures(source, opens=lambda *a, **k: PausedMeanwhile(open_source(*a, **k), line.view)):
        line.until(lambda: line.view.answered_through == 4)
    assert (line.gates, line.view.frames_skipped) == ([None] * 4, 0)


def test_stop_answers_the_part_in_the_zone_of_a_drop_folder(line: Line) -> None:
    """Its images are through and come no more, so what was seen of it is inspected."""
    images, belt = line.folder / "in", Belt([180], speed_px=6)
    images.mkdir()
    for index in range(28):  # the part is near the middle at 30
        cv2.imwrite(str(images / f"{index}.png"), belt.frame(index).pixels_bgr)
        os.utime(images / f"{index}.png", (index + 1, index + 1))
    source = f'kind = "drop", path = "{images}", max_size_wh_px = [240, 240]'
    with line.captures(source, f"{PRESENCE}, zone_xywh_px = {list(ZONE)}"):
        line.until(lambda: line.view.frames_read == 28)
        assert line.gates == []
    line.answer()
    assert line.gates == [None]


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    """An MJPEG camera."""
    with mjpeg_server() as started:
        yield started


@pytest.mark.parametrize("trigger", ["", PRESENCE])
def test_camera_that_comes_back_in_another_size_is_not_judged(line: Line, server: MjpegServer, trigger: str) -> None:
    """Region, zone and threshold were set for what it gave first, so each picture is damage, until the size is back.

    A new process knows the size, though no row of the table shows it any more.
    """

    def plays(size_wh: tuple[int, int]) -> None:
        server.answers["/"] = server.plays(lambda number: part(jpeg(number, size_wh)))

    def comes_back(size_wh: tuple[int, int]) -> None:
        server.kill()
        line.until(lambda: line.view.state is CameraState.LOST)
        line.answer()
        line.gates.clear()
        plays(size_wh)
        server.start()

    source, usual = CAMERA.replace("http://127.0.0.1/", server.url), (192, 144)
    plays(usual)
    with line.captures(source, trigger):
        line.until(lambda: line.view.frames_read > 3 and (None in line.gates or trigger == PRESENCE))
        for other in ((160, 96), (240, 160)):
            comes_back(other)
            line.until(lambda: line.gates.count(Reason.FRAME_CORRUPT) > 1)
            assert None not in line.gates
            comes_back(usual)
            read, damaged = line.view.frames_read, line.view.frames_damaged
            line.until(lambda read=read: line.view.frames_read > read + 3)
            assert line.view.frames_damaged == damaged
        comes_back((160, 96))
        line.until(lambda: line.gates.count(Reason.FRAME_CORRUPT) > 1)
    corrupt = NewRow(
        trigger_kind=TriggerKind.CONTINUOUS, accepted_ns=1, deadline_ns=1, simulated=False, gate=Reason.FRAME_CORRUPT
    )
    for _ in range(ROWS):
        line.view.accept(corrupt)
        line.answer()
    line.gates.clear()
    with line.captures(source, trigger):
        line.until(lambda: line.gates.count(Reason.FRAME_CORRUPT) > 1)
    assert None not in line.gates


def test_loss_from_long_ago_does_not_hide_a_dead_capture(line: Line) -> None:
    """What passed between two captures is one error, though the last thing told was a loss."""
    camera = Played(here=False)
    with line.captures(CAMERA, PRESENCE, camera.opened):
        line.until(lambda: line.gates == [Reason.CAMERA_LOST])
        camera.here = True
        camera.pictures.put(numbered(1))
        line.until(lambda: line.view.state is CameraState.READY)
    with line.captures(CAMERA, PRESENCE, camera.opened):
        camera.pictures.put(numbered(2))
        line.until(lambda: line.gates == [Reason.CAMERA_LOST] * 2)
    camera.here = False
    with line.captures(CAMERA, PRESENCE, camera.opened):
        line.until(lambda: line.gates == [Reason.CAMERA_LOST] * 3)
        camera.here = True
        read = line.view.frames_read
        camera.pictures.put(numbered(3))
        line.until(lambda: line.view.frames_read > read)
        line.answer()
    assert line.gates == [Reason.CAMERA_LOST] * 3


def test_camera_that_waits_for_its_first_part_is_ready(line: Line) -> None:
    """A camera that is triggered gives no picture before the line runs, nor does the line run before it is ready."""
    line.table.accepting = False
    camera = Played()
    with line.captures(CAMERA, "", camera.opened):
        line.until(lambda: line.view.state is CameraState.READY, timeout_s=5)
        line.table.accepting = True
        camera.pictures.put(np.full((160, 240, 3), 7, np.uint8))
        line.until(lambda: line.gates == [None])
        camera.here = False
        line.until(lambda: line.gates == [None, Reason.CAMERA_LOST])
        camera.here = True
        line.until(lambda: line.view.state is CameraState.READY, timeout_s=5)


def test_picture_that_stood_is_still_frozen_for_the_next_capture(line: Line) -> None:
    """A camera that gives one picture for ever does not pass again because its process died, nor in the first frame."""
    camera, source = Played(), f"{CAMERA}, frozen_after_s = 0.2"
    with line.captures(source, "", camera.opened):
        while Reason.FRAME_FROZEN not in line.gates:
            camera.pictures.put(numbered(1))
            line.answer()
            time.sleep(0.02)
    line.answer()
    line.gates.clear()
    with line.captures(source, "", camera.opened):
        camera.pictures.put(numbered(1))
        line.until(lambda: len(line.gates) == 1)
        camera.pictures.put(numbered(2))
        line.until(lambda: len(line.gates) == 2)
    assert line.gates == [Reason.FRAME_FROZEN, None]


def row_of(line: Line, seq: int) -> Row:
    """A trigger's row, once it has its frame or a reason why not."""
    until_s = time.monotonic() + PATIENCE_S
    while (row := line.view.row(seq)) is None or (row.slot < 0 and row.gate is None):
        assert time.monotonic() < until_s, row
        time.sleep(0.005)
    return row


@contextmanager
def asking(line: Line, deadline_ms: int = 60_000) -> Iterator[Callable[[str, int], None]]:
    """A publisher that hands triggers on."""
    line.table.publisher_generation = 1
    with closing(Commands(stage_endpoint(line.folder, "publisher", 1, "commands"))) as commands:

        def ask(trigger_id: str, arrived_ns: int) -> None:
            command = {"trigger_id": trigger_id, "part_id": None, "deadline_ms": deadline_ms, "arrived_ns": arrived_ns}
            until_s = time.monotonic() + PATIENCE_S
            while not commands.send("capture-cam1", json.dumps(command).encode()):
                assert time.monotonic() < until_s
                time.sleep(0.005)
                commands.throw_away()

        yield ask


def test_trigger_that_was_long_under_way_gets_its_own_frame_or_none(line: Line) -> None:
    """Its way led through two slow commits: the first frame exposed after it came is given if it is still there."""
    camera = Played()
    with asking(line) as ask, line.captures(CAMERA, EXTERNAL, camera.opened):
        shown_ns = []
        for number in range(8):
            shown_ns.append(time.monotonic_ns())
            camera.pictures.put(numbered(number))
            line.until(lambda number=number: line.view.frames_read == number + 1)
            time.sleep(0.15)
        for number in (1, 6):
            ask(f"before {number}", shown_ns[number])
        rows = [row_of(line, seq) for seq in (1, 2)]
    assert [(row.gate, row.frame_index) for row in rows] == [(Reason.OVERLOAD, -1), (None, 6)]


def test_trigger_of_a_dead_capture_gets_no_frame_of_the_next_one(line: Line) -> None:
    """Its own may have been shown while nobody looked."""
    camera, now_ns = Played(), time.monotonic_ns()
    line.view.accept(
        NewRow(trigger_kind=TriggerKind.EXTERNAL, accepted_ns=now_ns, deadline_ns=now_ns + 10**11, simulated=False)
    )
    camera.pictures.put(numbered(1))
    with line.captures(CAMERA, EXTERNAL, camera.opened):
        assert row_of(line, 1).gate is Reason.CAMERA_LOST


def test_trigger_of_a_camera_that_is_not_back_yet_gets_none_of_its_later_frames(line: Line) -> None:
    """Its stream is open again, but what the camera shows until its first frame is here, nobody sees."""
    camera = Played(silence_s=5)
    with asking(line) as ask, line.captures(CAMERA, EXTERNAL, camera.opened):
        camera.pictures.put(numbered(1))
        line.until(lambda: line.view.frames_read == 1)
        camera.here = False
        line.until(lambda: line.view.state is CameraState.LOST)
        lost_ns = time.monotonic_ns()
        camera.here = True
        line.until(lambda: camera.opens == 2)
        ask("meanwhile", time.monotonic_ns())
        time.sleep(0.3)
        camera.pictures.put(numbered(2))
        assert row_of(line, 1).gate is Reason.CAMERA_LOST
        line.until(lambda: line.view.frames_read == 2)
        ask("afterwards", time.monotonic_ns())
        time.sleep(0.1)
        camera.pictures.put(numbered(3))
        assert row_of(line, 2).gate is None
        ask("long under way", lost_ns)
        assert row_of(line, 3).gate is Reason.CAMERA_LOST


@contextmanager
def held_drop(line: Line, *, deadline_ms: int, for_s: float) -> Iterator[None]:
    """A trigger waits for the image of a drop folder, which is read as a pause begins."""
    images = line.folder / "in"
    images.mkdir()
    source = f'kind = "drop", path = "{images}", max_size_wh_px = [240, 240], index = "{line.folder / "handled"}"'

    def opens(*args: Any, **more: Any) -> Any:
        return PausedMeanwhile(open_source(*args, **more), line.view, index=0, for_s=for_s)

    with asking(line, deadline_ms) as ask, line.captures(source, EXTERNAL, opens):
        ask("a", time.monotonic_ns())
        line.until(lambda: line.view.row(1) is not None)
        cv2.imwrite(str(images / "0.png"), numbered(0))
        line.until(lambda: line.view.frames_read == 1)
        yield


def test_frame_that_a_pause_held_is_not_for_a_trigger_that_is_overdue(line: Line) -> None:
    """Its deadline ends in the pause: it is told so then, and the frame after the pause is not its own."""
    with held_drop(line, deadline_ms=2000, for_s=4.0):
        row = row_of(line, 1)
        assert line.view.paused
    assert (row.gate, row.frame_index) == (Reason.CAMERA_LOST, -1)


def test_image_that_a_trigger_got_as_the_daemon_stopped_is_not_handed_out_again(line: Line) -> None:
    """A stop ends the pause that held it: the trigger is answered by it, so it is through."""
    with held_drop(line, deadline_ms=60_000, for_s=PATIENCE_S):
        assert line.view.paused
    row = row_of(line, 1)
    assert (row.gate, row.frame_index) == (None, 0)
    source = load_settings(line.folder / "inspectd.toml").cameras["cam1"].source
    with closing(open_source(source)) as again:
        assert again.read(1.0) is None
