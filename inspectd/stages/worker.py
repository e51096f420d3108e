"""The worker: batches the accepted frames of all cameras through their recipes' models. One process per device.

A turn: take new rows from the ticket table, drop what would come too late, run a batch if one should go, send results,
free the slots. It beats between the model's steps, so a worker that is silent is one that does not compute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inspectd.detect.build import build_detector, choose_device, set_threads
from inspectd.errors import ConfigError
from inspectd.images import encode_label_png
from inspectd.inspection import CropDetector, Crops, Inspector, Moment
from inspectd.log import get_logger
from inspectd.recipe import Recipe
from inspectd.records import Decision, Inspection, MaskPlace, PixelsU8, Reason, VoteRule
from inspectd.sources.open import probe
from inspectd.stages.batching import Batcher, Ticket
from inspectd.stages.lifecycle import Life, Stage
from inspectd.stages.pictures import Exposure, Pictures
from inspectd.stages.preview import PreviewClock, preview_jpeg
from inspectd.transport.pipes import Inbox, Outbox, stage_endpoint
from inspectd.transport.ring import Ring
from inspectd.transport.rows import Row
from inspectd.transport.sockets import wait
from inspectd.transport.wire import Extra, PictureHead, Result, picture_parts, result_bytes
from inspectd.voting import Ballot, vote

IDLE_S = 0.02
LOADING_LIMIT_NS = 600_000_000_000
LEAST_LIMIT_NS = 2_000_000_000
"""A machine whose disk stalls was seen to hold up a sound worker for over a second; its reload would cost more."""
WARM_RUNS = 3
WARM_PATIENCE_S = 5.0
"""So long a recipe that is too slow for its deadline is measured again: a machine is busy when a daemon starts."""


def work(life: Life) -> None:
    """The worker's process."""
    Worker(life).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Station:
    """What the worker knows of one camera."""

    name: str
    recipe: Recipe
    group: int
    ring: Ring


class Worker:
    """One generation of the worker. `builds` makes a recipe's detector: a benchmark has one of its own."""

    def __init__(self, life: Life, builds: Callable[..., CropDetector] = build_detector) -> None:
        self._life, self._builds = life, builds
        self._charge = life.charge
        self._table = life.table
        self._beats = _StepClock(life)
        self._inspectors: list[Inspector] = []
        self._stations = self._prepare()
        self._views = [self._table.camera(index) for index in range(len(self._stations))]
        self._cursors = [view.answered_through for view in self._views]
        self._frameless: list[tuple[int, int]] = []
        self._frame_step_ns = 0
        self._refused: set[str] = set()
        settings = self._charge.settings
        self._batcher = Batcher(
            max_batch=settings.worker.max_batch,
            max_wait_ns=round(settings.worker.max_wait_ms * 1e6),
            reserve_ns=round(settings.publisher.publish_reserve_ms * 1e6),
        )
        self._previews = PreviewClock(settings.publisher.preview_fps)
        self._pictures = Pictures(settings.evidence)
        self._wakes = Inbox(stage_endpoint(settings.sockets_dir, Stage.WORKER, self._charge.generation, "wake"))
        self._results = Outbox(
            lambda generation: stage_endpoint(settings.sockets_dir, Stage.PUBLISHER, generation, "results"),
            lambda: self._table.publisher_generation,
        )

    def run(self) -> None:
        """Warms up, says so, then turns until told to stop."""
        self._warm_up()
        self._life.settle()
        self._table.worker_is_ready(self._charge.generation)
        get_logger().info(
            "worker_ready",
            models=[inspector.identity.backbone for inspector in self._inspectors],
            precision=[inspector.identity.precision for inspector in self._inspectors],
            device=str(choose_device(self._charge.settings.worker.device)),
            frame_ms=round(self._batcher.frame_ns / 1e6, 1),
        )
        while not self._life.stopping:
            wait([self._wakes], self._patience_s())
            for _ in self._wakes.drain():
                pass
            self._life.beat()
            self._take_rows()
            self.turn(time.monotonic_ns())
            self._pictures.forward(self._results)

    def turn(self, now_ns: int) -> None:
        """Runs the next batch, if one should go now."""
        for ticket in self._batcher.hopeless(now_ns):
            self._release(ticket)
            inspector = self._inspectors[ticket.group]
            self._send(ticket, inspector, vote([_refusal(Reason.OVERLOAD, inspector)], VoteRule.WORST), now_ns)
        batch = self._batcher.take(now_ns)
        if batch:
            self._run(batch)

    # -- before the first frame -------------------------------------------------------------------------------------

    def _prepare(self) -> list[_Station]:
        """Builds one inspector for each different recipe and attaches every camera's ring."""
        self._life.heart.limit(LOADING_LIMIT_NS)
        settings = self._charge.settings
        set_threads(settings.worker.threads)
        groups: dict[str, int] = {}
        stations = []
        for index, name in enumerate(settings.cameras):
            recipe = self._charge.recipes[name]
            if recipe.sha256 not in groups:
                groups[recipe.sha256] = len(self._inspectors)
                detector = self._builds(
                    recipe,
                    weights_dir=settings.weights_dir,
                    cache_dir=settings.cache_dir,
                    device=settings.worker.device,
                    precision=settings.worker.precision,
                    fused=settings.worker.fused,
                    beat=self._beats.step,
                )
                inspector = Inspector(recipe, detector, beat=self._beats.step)
                recipe.require_model(inspector.identity.sha256)
                self._inspectors.append(inspector)
            ring = Ring.attach(self._table.ring_name(index))
            stations.append(_Station(name=name, recipe=recipe, group=groups[recipe.sha256], ring=ring))
        return stations

    def _warm_up(self) -> None:
        """Runs every model on noise, learns its time and its slowest step, and sets the heart's limit by it."""
        settings = self._charge.settings
        reserve_ms = settings.publisher.publish_reserve_ms
        for inspector in self._inspectors:
            width, height = self._frame_size_wh_px(inspector.recipe)
            noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            deadline_ms, frames = inspector.recipe.deadline_ms, inspector.recipe.vote.frames
            inspector.rehearse(noise, max(settings.worker.max_batch, frames))
            self._beats.forget()
            enough_ms = deadline_ms - reserve_ms if self._has_deadline(inspector.recipe) else math.inf
            frame_ms = _best_ms(inspector, noise, enough_ms / frames)
            self._batcher.measured(1, round(frame_ms * 1e6))
            self._frame_step_ns = max(self._frame_step_ns, self._beats.slowest_ns)
            part_ms = frame_ms * frames
            if part_ms > enough_ms:
                needs = "one frame takes" if frames == 1 else f"{frames} frames (vote.frames) take"
                raise ConfigError(
                    f"{inspector.recipe.path}: deadline_ms: {deadline_ms:g} is shorter than {needs} here "
                    f"({part_ms:.0f} ms and {reserve_ms:g} ms of publish_reserve_ms); allow more, or less work a frame"
                )
        self._limit_silence(1)

    def _limit_silence(self, frames: int) -> None:
        """A silence of three times the model's slowest step is a death; a step over a batch takes that much longer."""
        self._life.heart.limit(max(LEAST_LIMIT_NS, 3 * self._frame_step_ns * frames))

    def _frame_size_wh_px(self, recipe: Recipe) -> tuple[int, int]:
        """The largest frame of the recipe's cameras, as far as it is known before they run."""
        cameras = self._charge.settings.cameras.items()
        sizes = [probe(camera.source).size_wh_px for name, camera in cameras if self._charge.recipes[name] == recipe]
        return max(sizes, key=lambda size: size[0] * size[1])

    def _has_deadline(self, recipe: Recipe) -> bool:
        cameras = self._charge.settings.cameras
        return any(
            self._charge.recipes[name].sha256 == recipe.sha256 and getattr(camera.source, "pace", None) != "fast"
            for name, camera in cameras.items()
        )

    # -- tickets ----------------------------------------------------------------------------------------------------

    def _take_rows(self) -> None:
        now_ns = time.monotonic_ns()
        waiting, self._frameless = self._frameless, []
        for camera, seq in waiting:
            self._take_row(camera, seq, now_ns)
        for camera, view in enumerate(self._views):
            high_water = view.high_water
            for seq in range(max(self._cursors[camera], view.answered_through) + 1, high_water + 1):
                self._take_row(camera, seq, now_ns)
            self._cursors[camera] = high_water

    def _take_row(self, camera: int, seq: int, now_ns: int) -> None:
        if seq <= self._views[camera].answered_through:
            return
        row = self._views[camera].row(seq)
        if row is None or row.gate is not None:
            return
        if row.slot < 0:  # a trigger whose frame is still to come
            self._frameless.append((camera, seq))
            return
        self._batcher.add(Ticket(camera=camera, group=self._stations[camera].group, row=row, arrived_ns=now_ns))

    def _patience_s(self) -> float:
        wake_ns = self._batcher.wake_ns()
        if wake_ns is None:
            return IDLE_S
        return min(IDLE_S, max(0.0, (wake_ns - time.monotonic_ns()) / 1e9))

    # -- a batch ------------------------------------------------------------------------------------------------------

    def _run(self, batch: list[Ticket]) -> None:
        inspector = self._inspectors[batch[0].group]
        taken_ns = time.monotonic_ns()
        previewed = self._previewed(batch, taken_ns)
        inspector.keep_maps = bool(previewed) or self._pictures.wants_maps
        crops = [self._crops(inspector, ticket) for ticket in batch]
        sound = [crop for own in crops for crop in own if isinstance(crop, Crops)]
        self._limit_silence(max(1, len(sound)))
        inspected = inspector.inspect_crops(sound) if sound else []
        judged = sum(each.reason is not Reason.FRAME_QUALITY for each in inspected)
        if judged:
            self._batcher.measured(judged, time.monotonic_ns() - taken_ns)
        inspections = iter(inspected)
        for ticket, own in zip(batch, crops, strict=True):
            self._life.beat()
            found = [_refusal(crop, inspector) if isinstance(crop, Reason) else next(inspections) for crop in own]
            ballot = vote(found, inspector.recipe.vote.rule)
            self._say_refused(self._stations[ticket.camera].name, ballot.inspection)
            self._send(ticket, inspector, ballot, taken_ns)
            shown = own[ballot.index]
            if ticket in previewed and isinstance(shown, Crops):
                jpeg = preview_jpeg(shown, ballot.inspection, inspector.recipe.pixel_threshold)
                self._send_preview(ticket, shown, jpeg)
            if isinstance(shown, Crops):
                self._offer_picture(ticket, shown, ballot.inspection, inspector.recipe.pixel_threshold)

    def _previewed(self, batch: list[Ticket], now_ns: int) -> list[Ticket]:
        """The frames of a batch whose pictures somebody wants to see."""
        return [
            ticket
            for ticket in batch
            if self._views[ticket.camera].preview_wanted and self._previews.is_due(ticket.camera, now_ns)
        ]

    def _send_preview(self, ticket: Ticket, crop: Crops, jpeg: bytes) -> None:
        """After the verdict, never before it; a picture that finds no room is dropped."""
        height, width = crop.view.size_hw_px
        head = PictureHead(what=Extra.PREVIEW, camera=ticket.camera, seq=ticket.row.seq, size_wh_px=(width, height))
        self._results.send(picture_parts(head, jpeg))

    def _offer_picture(self, ticket: Ticket, crop: Crops, inspection: Inspection, pixel_threshold: float) -> None:
        """A frame that comes so late that its verdict is an error by now counts as one."""
        due_ns = ticket.row.deadline_ns - round(self._charge.settings.publisher.publish_reserve_ms * 1e6)
        late = ticket.row.deadline_ns and time.monotonic_ns() >= due_ns
        self._pictures.offer(
            Exposure(
                camera=ticket.camera,
                seq=ticket.row.seq,
                decision=Decision.ERROR if late else inspection.decision,
                crops=crop,
                inspection=inspection,
                pixel_threshold=pixel_threshold,
            )
        )

    def _crops(self, inspector: Inspector, ticket: Ticket) -> list[Crops | Reason]:
        """The model's input, copied out of the slots of the part, which are free from then on; or why there is none."""
        ring = self._stations[ticket.camera].ring
        try:
            generation = self._views[ticket.camera].capture_generation
            moment = Moment(camera=self._stations[ticket.camera].name, generation=generation, seq=ticket.row.seq)
            return [_crop(inspector, ring, ticket.row.seen_in(shot), moment) for shot in range(ticket.frames)]
        finally:
            self._release(ticket)

    def _release(self, ticket: Ticket) -> None:
        ring = self._stations[ticket.camera].ring
        for row in map(ticket.row.seen_in, range(ticket.frames)):
            ring.release(row.slot, row.slot_generation)

    def _say_refused(self, camera: str, inspection: Inspection) -> None:
        """One line at the beginning of each run of frames that are refused for what they look like."""
        if inspection.detail is None:
            self._refused.discard(camera)
        elif camera not in self._refused:
            self._refused.add(camera)
            get_logger().warning("frames_refused", camera=camera, reason=inspection.reason, detail=inspection.detail)

    def _send(self, ticket: Ticket, inspector: Inspector, ballot: Ballot, taken_ns: int) -> None:
        inspection = ballot.inspection
        mask_png = _encoded(inspection)
        place = None
        if mask_png is not None and inspection.mask is not None:
            height, width = inspection.mask.labels.shape
            place = MaskPlace(origin_xy_px=inspection.mask.origin_xy_px, size_wh_px=(width, height))
        now_ns = time.monotonic_ns()
        infer_ms = inspection.infer_ms
        result = Result(
            camera=ticket.camera,
            seq=ticket.row.seq,
            worker_generation=self._charge.generation,
            decision=inspection.decision,
            reason=inspection.reason,
            score=inspection.score,
            threshold=inspection.threshold,
            regions=inspection.regions,
            regions_truncated=inspection.regions_truncated,
            mask=place,
            recipe=self._stations[ticket.camera].recipe.info,  # the inspector's may be its twin by another name
            model=inspector.identity,
            queue_ms=_queue_ms(ticket.row.seen_in(ballot.index), taken_ns),
            infer_ms=infer_ms,
            post_ms=max(0.0, (now_ns - taken_ns) / 1e6 - infer_ms),
            shot=ballot.index,
            votes=ballot.votes,
        )
        body = [result_bytes(result)] if mask_png is None else [result_bytes(result), mask_png]
        generation = self._results.send(body)
        view = self._views[ticket.camera]
        if generation is None:
            view.results_dropped += 1
            generation = self._table.publisher_generation
        view.mark_result(ticket.row.seq, generation, now_ns)


def _crop(inspector: Inspector, ring: Ring, row: Row, moment: Moment) -> Crops | Reason:
    """The model's input, copied out of one slot; or why there is none."""
    pixels = ring.view(row.slot, row.slot_generation, row.height_px, row.width_px)
    if pixels is None or inspector.frame_size_error((row.width_px, row.height_px)) is not None:
        return Reason.FRAME_CORRUPT
    crops = inspector.crop(pixels, moment)
    return crops if ring.still(row.slot, row.slot_generation) else Reason.FRAME_CORRUPT


def _refusal(reason: Reason, inspector: Inspector) -> Inspection:
    """The word on a frame that never reached the model."""
    return Inspection(decision=Decision.ERROR, reason=reason, score=None, threshold=inspector.recipe.threshold)


class _StepClock:
    """Beats the heart between the model's steps and remembers the slowest one."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.forget()

    def forget(self) -> None:
        """Starts measuring anew."""
        self.slowest_ns = 0
        self._last_ns = time.monotonic_ns()

    def step(self) -> None:
        """One step of the model has ended."""
        now_ns = time.monotonic_ns()
        self.slowest_ns = max(self.slowest_ns, now_ns - self._last_ns)
        self._last_ns = now_ns
        self._life.beat()


def _best_ms(inspector: Inspector, pixels_bgr: PixelsU8, enough_ms: float) -> float:
    """The time of the fastest of some inspections; of more of them as long as none was fast enough."""
    until_s = time.monotonic() + WARM_PATIENCE_S
    best_ms = min(_inspect_ms(inspector, pixels_bgr) for _ in range(WARM_RUNS))
    while best_ms > enough_ms and time.monotonic() < until_s:
        best_ms = min(best_ms, _inspect_ms(inspector, pixels_bgr))
    return best_ms


def _inspect_ms(inspector: Inspector, pixels_bgr: PixelsU8) -> float:
    started_ns = time.monotonic_ns()
    inspector.inspect([pixels_bgr])
    return (time.monotonic_ns() - started_ns) / 1e6


def _encoded(inspection: Inspection) -> bytes | None:
    """The mask's PNG; a mask that cannot be encoded never delays or drops a `fail` (contract §3)."""
    if inspection.mask is None or inspection.decision is Decision.ERROR:
        return None
    try:
        return encode_label_png(inspection.mask.labels)
    except ValueError as error:
        get_logger().error("mask_unencodable", error=str(error))
        return None


def _queue_ms(row: Row, taken_ns: int) -> float:
    return max(0.0, (taken_ns - row.captured_ns) / 1e6 - row.capture_ms)
