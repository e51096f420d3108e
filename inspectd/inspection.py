"""Inspector: frames and a recipe -> inspections. The one path, for daemon, replay, calibration and evaluation alike.

Letters: H, W frame height and width; h, w the inspected box; G the sides of the model's grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import ConfigError, SourceError
from inspectd.images import bgr_to_rgb, read_image_bgr
from inspectd.quality import Look, fault, look
from inspectd.recipe import QualityLimits, Recipe
from inspectd.records import Decision, FailOn, Inspection, MapF32, ModelIdentity, PixelsU8, Reason
from inspectd.regions import Regions, filters_error, find_regions
from inspectd.viewport import (
    MaskBool,
    Viewport,
    box_of,
    frame_size_error,
    nearest_kinds,
    polygon_mask,
    stitch,
    viewport,
)
from inspectd.voting import decide

_MOST_TILES_KEPT = 64
"""Windows of a frame with more tiles are not kept: 3 MB a tile and camera with the default backbone."""
_VIEWPORTS_KEPT = 16
"""Frame sizes whose geometry is remembered: cameras change theirs rarely."""
_FILLED_RGB = (123, 117, 104)
"""The mean of the pictures that CLIP was trained on: what it is given then is nearly 0."""


class ScoredCrop(Protocol):
    """A detector's word on one crop: `score`, larger is more anomalous, perhaps not finite; `map (G, G) float32`, None
    where the detector gives none; `defects (K, G, G)`, how near a patch is to each of the recipe's kinds of defects."""

    @property
    def score(self) -> float: ...
    @property
    def map(self) -> MapF32 | None: ...
    @property
    def defects(self) -> MapF32 | None: ...


class CropDetector(Protocol):
    """What the Inspector asks of a detector; `detect.winclip.Detector` is one.

    `memory` gives what one tile of one camera hands back to `score` with each of its frames, in order, so that what did
    not change is not computed again; None where there is no such thing. `rehearse` makes ready for batches of just such
    crops.
    """

    @property
    def identity(self) -> ModelIdentity: ...
    @property
    def grid_hw(self) -> tuple[int, int]: ...
    def memory(self) -> Any: ...
    def score(
        self,
        crops_rgb: Sequence[PixelsU8],
        *,
        regions: Sequence[NDArray[np.bool_] | None] | None = None,
        localise_from: float | None = None,
        memories: Sequence[Any] | None = None,
    ) -> Sequence[ScoredCrop]: ...
    def enroll(self, references_rgb: Sequence[PixelsU8]) -> None: ...
    def rehearse(
        self, crops_rgb: Sequence[PixelsU8], *, regions: Sequence[NDArray[np.bool_] | None] | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Which frame of which camera: what tells whether one follows another. `generation` is capture's."""

    camera: str
    generation: int
    seq: int

    def follows(self, earlier: Moment) -> bool:
        """Whether nothing was lost between the two; several frames of one part have one seq."""
        same = (self.camera, self.generation) == (earlier.camera, earlier.generation)
        return same and self.seq - earlier.seq in (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crops:
    """What the model needs of one frame, owned: the frame's own memory may be reused.

    `images_rgb` are `(h, w, 3) uint8`, one for each tile of `view`. `look` is how the region looks, where
    the recipe has limits for it. A frame without a `moment` stands for itself.
    """

    view: Viewport
    images_rgb: tuple[PixelsU8, ...]
    look: Look | None
    moment: Moment | None
    crop_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """The model's word on one frame before any threshold: scores and maps of its tiles."""

    view: Viewport
    look: Look | None
    scores: tuple[float, ...]
    grid_maps: tuple[MapF32 | None, ...]
    grid_defects: tuple[MapF32 | None, ...]

    @property
    def score(self) -> float:
        """The frame's score: the largest of its tiles', or their mean. Means nothing unless `finite`."""
        return math.fsum(self.scores) / len(self.scores) if self.view.averaged else max(self.scores)

    @property
    def finite(self) -> bool:
        """Whether the model can vouch: every score and every value of every map is finite."""
        return all(map(math.isfinite, self.scores)) and all(np.isfinite(grid).all() for grid in self._maps())

    @property
    def mapped(self) -> bool:
        """Whether every tile has a map, so that the absence of regions says something."""
        return len(self._maps()) == len(self.grid_maps)

    @property
    def peak(self) -> float:
        """No pixel of the map is larger; -inf where there is no map."""
        return max((float(grid.max()) for grid in self._maps()), default=-math.inf)

    @property
    def roi(self) -> MaskBool | None:
        """`(h, w)` bool: where the map counts; None: everywhere."""
        return self.view.roi

    def anomaly_map(self) -> MapF32 | None:
        """`(h, w) float32` over the box; None where the detector gives none."""
        return stitch(self.view, self.grid_maps)

    def _maps(self) -> list[MapF32]:
        return [grid for grid in self.grid_maps if grid is not None]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What the detector remembers of one camera's last frame, for each tile of its view."""

    moment: Moment
    view: Viewport
    memories: tuple[Any, ...]


def inspection_error(recipe: Recipe, size_wh_px: tuple[int, int]) -> str | None:
    """Why frames of that size cannot be inspected, in one line: by their size, or by filters that hold all back."""
    error = frame_size_error(recipe, size_wh_px)
    if error is not None:
        return error
    box = box_of(recipe, size_wh_px)
    roi = np.ones((box[3], box[2]), np.bool_) if recipe.region is None else polygon_mask(recipe.region.polygon_px, box)
    error = filters_error(recipe.filters, roi)
    return error and f"{recipe.path}: {error}"


class Inspector:
    """One recipe on one detector. Not for use by several threads at once."""

    def __init__(
        self,
        recipe: Recipe,
        detector: CropDetector,
        *,
        keep_maps: bool = False,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Enrolls the recipe's reference images, cropped just as frames will be. `beat` is called after each frame.

        Raises:
            ConfigError: a reference image cannot be read, or is of a size that the recipe cannot look at.
        """
        self._recipe, self._detector, self.keep_maps, self._beat = recipe, detector, keep_maps, beat
        self._viewports: dict[tuple[int, int], Viewport] = {}
        self._kept: dict[str, _Kept] = {}
        if recipe.reference_paths:
            detector.enroll([image for path in recipe.reference_paths for image in self._reference(path)])

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self._recipe

    @property
    def identity(self) -> ModelIdentity:
        """The model, its `sha256` over all that can change a score: weights, prompts, references, preprocessing,
        region, tiling, mode and precision (contract I2)."""
        return self._detector.identity

    def frame_size_error(self, size_wh_px: tuple[int, int]) -> str | None:
        """Why frames of that size cannot be inspected, in one line; None when they can."""
        return None if size_wh_px in self._viewports else inspection_error(self._recipe, size_wh_px)

    def crop(self, pixels_bgr: PixelsU8, moment: Moment | None = None) -> Crops:
        """Copies out of a frame `(H, W, 3) uint8` BGR what the model needs.

        Args:
            moment: which frame it is; windows that did not change since the one before may then be reused.

        Raises:
            SourceError: frames of that size cannot be inspected.
        """
        start_ns = perf_counter_ns()
        if pixels_bgr.ndim != 3 or pixels_bgr.shape[2] != 3 or pixels_bgr.dtype != np.uint8:
            raise SourceError(f"a frame is {pixels_bgr.shape} {pixels_bgr.dtype}, expected (H, W, 3) uint8 BGR")
        view = self._viewport((pixels_bgr.shape[1], pixels_bgr.shape[0]))
        box = view.box(pixels_bgr)
        images = tuple(view.tiles_of(self._shown(box, view)))
        seen = look(box, view.roi) if self._recipe.quality.wanted else None
        return Crops(view=view, images_rgb=images, look=seen, moment=moment, crop_ms=_ms_since(start_ns))

    def _shown(self, box_bgr: PixelsU8, view: Viewport) -> PixelsU8:
        """A copy of the box `(h, w, 3) uint8` RGB as the model is to see it."""
        shown = bgr_to_rgb(box_bgr)
        if view.roi is not None and self._recipe.region is not None and self._recipe.region.outside == "filled":
            shown[~view.roi] = _FILLED_RGB
        return shown

    def rehearse(self, pixels_bgr: PixelsU8, most: int) -> None:
        """Makes the detector ready for batches of 1 to `most` frames of this size `(H, W, 3) uint8` BGR.

        Raises:
            SourceError: frames of that size cannot be inspected.
        """
        crops = self.crop(pixels_bgr)
        inside = [tile.inside for tile in crops.view.tiles]
        for count in range(1, most + 1):
            self._detector.rehearse(list(crops.images_rgb) * count, regions=inside * count)

    def inspect(self, frames_bgr: Sequence[PixelsU8]) -> list[Inspection]:
        """Inspects frames `(H, W, 3) uint8` BGR, in their order, alike at any batch size.

        Raises:
            ConfigError: the recipe has no thresholds.
            SourceError: frames of that size cannot be inspected.
        """
        return self.inspect_crops([self.crop(pixels_bgr) for pixels_bgr in frames_bgr])

    def inspect_crops(self, crops: Sequence[Crops]) -> list[Inspection]:
        """Inspects what `crop` made of frames, in their order. A picture that is not one to judge is never scored.

        Raises:
            ConfigError: the recipe has no thresholds.
        """
        threshold, pixel_threshold = self._recipe.threshold, self._recipe.pixel_threshold
        limits = self._recipe.quality_limits
        poor = [_poor(frame, limits, threshold) for frame in crops]
        usable = [frame for frame, refused in zip(crops, poor, strict=True) if refused is None]
        start_ns = perf_counter_ns()
        measured = iter(self.measure(usable, localise_from=threshold) if usable else [])
        infer_ms = _ms_since(start_ns)
        return [
            refused
            or self._inspection(next(measured), threshold, pixel_threshold, crop_ms=frame.crop_ms, infer_ms=infer_ms)
            for frame, refused in zip(crops, poor, strict=True)
        ]

    def measure(self, crops: Sequence[Crops], *, localise_from: float | None = None) -> list[Measurement]:
        """Scores and maps without any threshold, for frames in their order.

        Args:
            localise_from: the score from which a tile needs a map (the detector's mode decides); None: all do.
        """
        images = [image for frame in crops for image in frame.images_rgb]
        regions = [tile.inside for frame in crops for tile in frame.view.tiles]
        memories = [memory for frame in crops for memory in self._memories(frame)]
        scored = iter(self._detector.score(images, regions=regions, localise_from=localise_from, memories=memories))
        measured = []
        for frame in crops:
            own = [next(scored) for _ in frame.view.tiles]
            scores, maps = tuple(one.score for one in own), tuple(one.map for one in own)
            kinds = tuple(one.defects for one in own)
            measured.append(
                Measurement(view=frame.view, look=frame.look, scores=scores, grid_maps=maps, grid_defects=kinds)
            )
        return measured

    def _memories(self, frame: Crops) -> Sequence[Any]:
        """For each tile what is kept of its windows; kept anew after a gap, and for frames of another size."""
        nothing = [None] * len(frame.view.tiles)
        moment = frame.moment
        if moment is None or not self._recipe.detector.reuse or len(nothing) > _MOST_TILES_KEPT:
            return nothing
        kept = self._kept.get(moment.camera)
        if kept is None or kept.view is not frame.view or not moment.follows(kept.moment):
            kept = _Kept(moment, frame.view, tuple(self._detector.memory() for _ in nothing))
        self._kept[moment.camera] = replace(kept, moment=moment)
        return kept.memories

    def measure_frames(self, frames_bgr: Sequence[PixelsU8]) -> list[Measurement]:
        """`measure` for frames `(H, W, 3) uint8` BGR: for calibration, which has no threshold yet.

        Raises:
            SourceError: frames of that size cannot be inspected.
        """
        return self.measure([self.crop(pixels_bgr) for pixels_bgr in frames_bgr])

    def _inspection(
        self, measured: Measurement, threshold: float, pixel_threshold: float, *, crop_ms: float, infer_ms: float
    ) -> Inspection:
        start_ns = perf_counter_ns()
        refusal = self._refusal(measured)
        if refusal is not None:
            decision, reason, score = Decision.ERROR, refusal, None
            anomaly_map, found = None, Regions()
        else:
            score = measured.score
            anomaly_map, found = self._regions(measured, pixel_threshold)
            decision, reason = decide(score, threshold, len(found.regions), self._recipe.decision.fail_on)
        self._beat()
        return Inspection(
            decision=decision,
            reason=reason,
            score=score,
            threshold=threshold,
            regions=found.regions,
            regions_truncated=found.truncated,
            mask=found.mask,
            anomaly_map=anomaly_map if self.keep_maps else None,
            map_origin_xy_px=measured.view.origin_xy_px,
            crop_ms=crop_ms,
            infer_ms=infer_ms,
            post_ms=_ms_since(start_ns),
        )

    def _refusal(self, measured: Measurement) -> Reason | None:
        """Why there can be no verdict; None when there can."""
        if not measured.finite:
            return Reason.NOT_FINITE
        if self._recipe.decision.fail_on is not FailOn.SCORE and not measured.mapped:
            return Reason.INTERNAL  # without a map "no region" would be a silent pass
        return None

    def _regions(self, measured: Measurement, pixel_threshold: float) -> tuple[MapF32 | None, Regions]:
        hot = measured.peak >= pixel_threshold  # elsewhere no pixel reaches it, and the map need not be drawn
        anomaly_map = measured.anomaly_map() if hot or self.keep_maps else None
        if not hot or anomaly_map is None:
            return anomaly_map, Regions()
        filters, origin = self._recipe.filters, measured.view.origin_xy_px
        found = find_regions(anomaly_map, measured.roi, pixel_threshold, filters, origin)
        return anomaly_map, self._named(found, measured)

    def _named(self, found: Regions, measured: Measurement) -> Regions:
        """The regions with the kind of defect that each is nearest to, where the recipe names kinds."""
        names = list(self._recipe.prompts.defects)
        if not names or found.mask is None:
            return found
        kinds = nearest_kinds(measured.view, measured.grid_defects, found.mask.labels, found.mask.origin_xy_px)
        named = zip(found.regions, kinds, strict=True)
        regions = (replace(region, defect=None if kind is None else names[kind]) for region, kind in named)
        return replace(found, regions=tuple(regions))

    def _viewport(self, size_wh_px: tuple[int, int]) -> Viewport:
        found = self._viewports.get(size_wh_px)
        if found is None:
            error = inspection_error(self._recipe, size_wh_px)
            if error is not None:
                raise SourceError(error)
            found = viewport(self._recipe, size_wh_px, self._detector.grid_hw)
            if len(self._viewports) >= _VIEWPORTS_KEPT:
                self._viewports.clear()
            self._viewports[size_wh_px] = found
        return found

    def _reference(self, path: Path) -> tuple[PixelsU8, ...]:
        try:
            return self.crop(read_image_bgr(path)).images_rgb
        except SourceError as error:
            raise ConfigError(f"{path}: references.folder: {error}") from error


def _poor(frame: Crops, limits: QualityLimits, threshold: float) -> Inspection | None:
    """The word on a picture that is not one to judge; None for one that is."""
    detail = None if frame.look is None else fault(frame.look, limits)
    if detail is None:
        return None
    return Inspection(
        decision=Decision.ERROR,
        reason=Reason.FRAME_QUALITY,
        detail=detail,
        score=None,
        threshold=threshold,
        crop_ms=frame.crop_ms,
    )


def _ms_since(start_ns: int) -> float:
    return (perf_counter_ns() - start_ns) / 1e6
