"""A recipe file and a small real detector for tests of what lies above `detect`: brightness is the anomaly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectd.recipe import Recipe, load_recipe
from inspectd.records import ModelIdentity

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Brightness:
    """What `BrightDetector` says of one crop."""

    score: float
    map: NDArray[np.float32] | None
    defects: NDArray[np.float32] | None = None


class BrightDetector:
    """Anomaly is brightness: the map is each patch's mean grey level / 255, the score the largest inside the region.

    A grid as fine as the crop makes the map the picture itself, so that regions can be checked to the pixel.
    `crops` keeps the shapes that were asked for, `regions` their masks.
    """

    identity = ModelIdentity(
        detector="bright", backbone="none", weights_sha256="0" * 64, precision="fp32", sha256="b" * 64
    )

    def __init__(self, grid_hw: tuple[int, int] = (15, 15), *, maps: bool = True) -> None:
        self.grid_hw = grid_hw
        self.maps = maps
        self.crops: list[NDArray[np.uint8]] = []
        self.regions: list[NDArray[np.bool_] | None] = []
        self.references: list[NDArray[np.uint8]] = []

    def score(
        self,
        crops_rgb: Sequence[NDArray[np.uint8]],
        *,
        regions: Sequence[NDArray[np.bool_] | None] | None = None,
        localise_from: float | None = None,
        memories: Sequence[None] | None = None,
    ) -> list[Brightness]:
        del localise_from, memories  # every crop gets its map
        self.crops += list(crops_rgb)
        self.regions += list(regions or [])
        return [self._one(*pair) for pair in zip(crops_rgb, regions or [None] * len(crops_rgb), strict=True)]

    def memory(self) -> None:
        """There is nothing to reuse."""

    def enroll(self, references_rgb: Sequence[NDArray[np.uint8]]) -> None:
        self.references += list(references_rgb)

    def rehearse(
        self, crops_rgb: Sequence[NDArray[np.uint8]], *, regions: Sequence[NDArray[np.bool_] | None] | None = None
    ) -> None:
        """There is nothing to prepare."""

    def _one(self, crop: NDArray[np.uint8], region: NDArray[np.bool_] | None) -> Brightness:
        grey = crop.mean(axis=2, dtype=np.float32) / 255
        grid = cv2.resize(grey, self.grid_hw[::-1], interpolation=cv2.INTER_AREA)
        inside = grid if region is None else grid[region]
        return Brightness(float(inside.max()), grid if self.maps else None)


def bright_recipe(folder: Path, text: str = "", *, threshold: float | None = 0.5, name: str = "part") -> Recipe:
    """A recipe from TOML text; without a threshold it is for calibration."""
    decision = "" if threshold is None else f"[decision]\nthreshold = {threshold}\npixel_threshold = {threshold}\n"
    if "[decision]" in text:
        decision = ""
    path = folder / f"{name}.toml"
    path.write_text(f'object = "part"\n{text}\n{decision}', encoding="utf-8")
    return load_recipe(path, require_thresholds=threshold is not None or "[decision]" in text)


def dark_frame(width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """A black frame, `(height, width, 3)`."""
    return np.zeros((height, width, 3), np.uint8)
