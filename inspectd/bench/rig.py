"""What the benchmark puts into the real daemon: cameras that hold their pictures in memory, and a detector.

Everything else is what `inspectd run` starts: supervisor, captures, worker, publisher, sockets, journal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspectd.inspection import CropDetector
from inspectd.recipe import Recipe
from inspectd.records import Frame, MapF32, ModelIdentity, PixelsU8
from inspectd.settings import Settings
from inspectd.source_settings import Source
from inspectd.stages.lifecycle import Charge, Life, Stage, Work, live, stage_work
from inspectd.supervisor import Supervisor

PICTURES = 4
"""Different pictures of a camera, in turn: as many as show that nothing is cached and little memory is taken."""
GRID_HW = (15, 15)
COLD, HOT = 0.1, 0.9
RECIPE = """object = "part"
deadline_ms = {deadline_ms}
[decision]
threshold = 0.5
pixel_threshold = 0.5
[model]
backbone = "{backbone}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """A model on random weights: the times of a real one."""

    backbone: str = "ViT-B-16-plus-240"
    config: Path | None = None
    scales: tuple[int, ...] = (2, 3)
    device: str = "auto"
    precision: str = "auto"

    def build(self, beat: Callable[[], None]) -> CropDetector:
        """The detector.

        Raises:
            ConfigError: a backbone, device or precision that cannot be had.
        """
        from inspectd.detect import measure  # noqa: PLC0415 - only the worker carries torch
        from inspectd.detect.architecture import read_architecture  # noqa: PLC0415
        from inspectd.detect.build import choose_device, choose_precision  # noqa: PLC0415
        from inspectd.detect.options import WinclipConfig  # noqa: PLC0415

        architecture, device = read_architecture(self.backbone, self.config), choose_device(self.device)
        precision = choose_precision(self.precision, device)
        config = WinclipConfig(scales=self.scales)
        return measure.random_detector(architecture, config, device=device, precision=precision, beat=beat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """One daemon of the benchmark.

    `folder` holds its files; its cameras start when `go` lies there, with the moment (monotonic ns) as its text.
    """

    folder: Path
    cameras: int
    fps: float
    frames: int
    """What each camera gives."""
    size_wh_px: tuple[int, int]
    failing_every: int
    """Every so manyth frame has regions."""
    together: bool
    """All cameras expose at the same moments; else their moments are spread evenly."""
    model: RandomModel | None
    """The model to run; None: maps that are ready."""
    deadline_ms: float
    threads: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras."""
        return tuple(f"cam{number}" for number in range(1, self.cameras + 1))

    @property
    def verdicts(self) -> str:
        """The public endpoint."""
        return f"ipc://{self.folder}/verdicts"

    @property
    def control(self) -> str:
        """The endpoint for requests."""
        return f"ipc://{self.folder}/control"

    def start(self, at_ns: int) -> None:
        """Lets the cameras begin at a moment of the monotonic clock."""
        late = self.folder / "going"
        late.write_text(str(at_ns))
        late.rename(self.folder / "go")

    def settings(self) -> Settings:
        """The daemon's configuration; the cameras' addresses are never asked."""
        source = {"kind": "rtsp", "url": "rtsp://memory/", "max_size_wh_px": self.size_wh_px}
        return Settings(
            state_dir=self.folder / "state",
            recipes_dir=self.folder,
            endpoints={"verdicts": self.verdicts, "control": self.control, "metrics": ""},  # type: ignore[arg-type]
            cameras={name: {"source": source, "recipe": "part"} for name in self.names},  # type: ignore[misc]
            worker={"threads": self.threads},  # type: ignore[arg-type]
            log={"level": "warning"},  # type: ignore[arg-type]
        )

    def serve(self) -> None:
        """The daemon, in a process of its own; it ends by SIGTERM. `inspectd run`, with other cameras and detector."""
        for name in [name for name in os.environ if name.startswith("INSPECTD_")]:
            del os.environ[name]
        text = RECIPE.format(deadline_ms=self.deadline_ms, backbone="bench")
        (self.folder / "part.toml").write_text(text, encoding="utf-8")
        sys.exit(Supervisor(self.settings(), child=partial(_live, self)).run())

    def work_of(self, stage: Stage) -> Work:
        """What a child of this daemon does."""
        match stage:
            case Stage.CAPTURE:
                return self._capture
            case Stage.WORKER:
                return self._work
            case Stage.PUBLISHER:
                return stage_work(stage)

    def _capture(self, life: Life) -> None:
        from inspectd.stages.capture import Capture  # noqa: PLC0415 - each process imports its own stage only

        place = self.names.index(life.charge.camera)
        Capture(life, life.charge.camera, opens=partial(MemoryCamera, self, place)).run()

    def _work(self, life: Life) -> None:
        from inspectd.stages.worker import Worker  # noqa: PLC0415 - as above

        Worker(life, builds=self._build).run()

    def _build(self, _: Recipe, *, beat: Callable[[], None], **__: object) -> CropDetector:
        if self.model is None:
            return ReadyMaps(self.failing_every)
        model = self.model.build(beat)
        return TimedModel(model, self.failing_every)


def _live(rig: Rig, charge: Charge, stage: Stage) -> None:
    live(charge, stage, rig.work_of)


class MemoryCamera:
    """A live camera whose raw frames lie in memory: one to show that it is there, then, from `go` on, so many a second.

    Like a driver it keeps the newest frame: what was not fetched before the next one is missed, and counted.
    """

    simulated = False
    live = True
    is_there = False

    def __init__(self, rig: Rig, place: int, settings: Source, *, start_index: int = 0) -> None:
        del settings
        self._rig = rig
        self._phase_ns = 0 if rig.together else round(1e9 / rig.fps * place / rig.cameras)
        self._begin_ns: int | None = None
        self._shown = False
        width, height = self.size_wh_px = rig.size_wh_px
        noise = np.random.default_rng(place).integers(0, 256, (PICTURES, height, width, 3), dtype=np.uint8)
        self._pictures: list[PixelsU8] = list(noise)
        self.next_index = start_index
        self.frames_missed = 0

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, None where none is exposed within that time."""
        if not self._shown:
            self._shown = True
            return self._frame(PICTURES - 1, time.monotonic_ns())  # not the next one: that would be a frozen picture
        if self._begin_ns is None:
            self._begin_ns = self._when_to_begin()
        now_ns = time.monotonic_ns()
        if self._begin_ns is None or self.next_index >= self._rig.frames:
            time.sleep(timeout_s)
            return None
        newest = min(self._rig.frames - 1, int((now_ns - self._begin_ns) / 1e9 * self._rig.fps))
        if newest > self.next_index:
            self.frames_missed += newest - self.next_index
            self.next_index = newest
        due_ns = self._begin_ns + round(self.next_index / self._rig.fps * 1e9)
        time.sleep(min(timeout_s, max(0.0, (due_ns - now_ns) / 1e9)))
        if time.monotonic_ns() < due_ns:
            return None
        self.next_index += 1
        return self._frame(self.next_index - 1, due_ns)

    def acknowledge(self) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing is held."""

    def _when_to_begin(self) -> int | None:
        try:
            return int((self._rig.folder / "go").read_text()) + self._phase_ns
        except FileNotFoundError:
            return None

    def _frame(self, index: int, exposed_ns: int) -> Frame:
        return Frame(
            index=index,
            pixels_bgr=self._pictures[index % PICTURES],
            captured_ns=exposed_ns,
            captured_utc_ns=time.time_ns() - (time.monotonic_ns() - exposed_ns),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """What the benchmark's detector says of a crop."""

    score: float
    map: MapF32
    defects: MapF32 | None = None


class ReadyMaps:
    """A detector that takes no time: a cold map, and every so manyth time one with two hot places."""

    identity = ModelIdentity(detector="bench", backbone="none", weights_sha256="0" * 64, precision="fp32", sha256="0")

    def __init__(self, failing_every: int, grid_hw: tuple[int, int] = GRID_HW) -> None:
        self.grid_hw = height, width = grid_hw
        self._failing_every, self._count = failing_every, 0
        self._cold = np.full(grid_hw, COLD, np.float32)
        self._hot = self._cold.copy()
        self._hot[height // 5 : 2 * height // 5, 4 * width // 15 : 7 * width // 15] = HOT
        self._hot[2 * height // 3 : 4 * height // 5, 3 * width // 5 : 11 * width // 15] = HOT

    def score(
        self,
        crops_rgb: Sequence[PixelsU8],
        *,
        regions: Sequence[NDArray[np.bool_] | None] | None = None,
        localise_from: float | None = None,
        memories: Sequence[None] | None = None,
    ) -> list[Ready]:
        """The next ready maps."""
        del regions, localise_from, memories
        return [self._next() for _ in crops_rgb]

    def memory(self) -> None:
        """Nothing is reused."""

    def enroll(self, references_rgb: Sequence[PixelsU8]) -> None:
        """There is nothing to compare with."""

    def rehearse(
        self, crops_rgb: Sequence[PixelsU8], *, regions: Sequence[NDArray[np.bool_] | None] | None = None
    ) -> None:
        """Everything is ready."""

    def _next(self) -> Ready:
        self._count += 1
        failing = self._count % self._failing_every == 0
        return Ready(HOT, self._hot) if failing else Ready(COLD, self._cold)


class TimedModel(ReadyMaps):
    """A model that takes its time, and whose words are ready maps: what random weights say has regions everywhere."""

    def __init__(self, model: CropDetector, failing_every: int) -> None:
        super().__init__(failing_every, model.grid_hw)
        self._model = model

    def score(self, crops_rgb: Sequence[PixelsU8], **how: Any) -> list[Ready]:
        """The next ready maps, when the model has scored the crops."""
        self._model.score(crops_rgb, **how)
        return super().score(crops_rgb)

    def enroll(self, references_rgb: Sequence[PixelsU8]) -> None:
        """Lets the model compare with the references."""
        self._model.enroll(references_rgb)

    def rehearse(
        self, crops_rgb: Sequence[PixelsU8], *, regions: Sequence[NDArray[np.bool_] | None] | None = None
    ) -> None:
        """Lets the model make ready."""
        self._model.rehearse(crops_rgb, regions=regions)
