"""Replay: a recording through the same Inspector as live frames, to verdicts, masks, pictures and a report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from inspectd.errors import ConfigError
from inspectd.evaluation.evidence import Evidence, writing
from inspectd.evaluation.recordings import EVERY_FRAME, chosen, source_of
from inspectd.evaluation.report import Comparison, Summary, compare, judged, read_verdicts, summary, write_report
from inspectd.inspection import Crops, Inspector, Moment
from inspectd.records import (
    Decision,
    Frame,
    FrameInfo,
    Inspection,
    Latency,
    MaskPlace,
    Reason,
    Trigger,
    TriggerKind,
    Verdict,
)
from inspectd.settings import TriggerSettings
from inspectd.sources.open import open_source, probe
from inspectd.sources.presence import Part
from inspectd.transport.wire import verdict_body
from inspectd.voting import Ballot, vote

BATCH = 8
SESSION = "replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay came to; `comparison` is None without a baseline."""

    summary: Summary
    comparison: Comparison | None
    out_dir: Path

    @property
    def flipped(self) -> bool:
        """Whether any frame is judged in another way than in the baseline: the command line exits 1."""
        return self.comparison is not None and bool(self.comparison.flips)


def replay(
    inspector: Inspector,
    path: Path,
    out_dir: Path,
    *,
    trigger: TriggerSettings = EVERY_FRAME,
    baseline: Path | None = None,
    pictures: bool = True,
    batch: int = BATCH,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
) -> Replayed:
    """Inspects a recording and writes `verdicts.jsonl`, `masks/`, `annotated/`, `sheet.png` and the report.

    Args:
        path: a video file, or a folder of images.
        out_dir: made if missing; one that holds a replay already is refused.
        trigger: which frames are inspected: every one, every n-th, or one a part (`presence`).
        baseline: the folder of an earlier replay to compare with.
        pictures: False leaves `annotated/` and `sheet.png` out.
        progress: called with the frames read so far, and how many there are if the recording says so.

    Raises:
        ConfigError: the recording, the recipe, the baseline or the folder cannot be used; thresholds of another model.
        SourceError: the recording breaks off.
    """
    recipe = inspector.recipe
    recipe.require_model(inspector.identity.sha256)
    before = None if baseline is None else read_verdicts(baseline)
    total = _check(inspector, path)
    kind = TriggerKind(trigger.kind)
    started_s = time.monotonic()
    verdicts: list[Verdict] = []
    with (
        closing(open_source(source_of(path))) as source,
        Evidence(out_dir, pictures=pictures, title=f"{recipe.name} · {path.name}") as evidence,
    ):
        parts = chosen(source, recipe, trigger, lambda: progress(source.next_index, total))
        for part, ballot in _inspected(inspector, parts, batch):
            frame = part.frames[ballot.index]
            verdict = _verdict(inspector, frame, ballot, seq=len(verdicts) + 1, camera=camera_of(path), kind=kind)
            verdicts.append(verdict)
            evidence.add(verdict, ballot.inspection, frame)
        evidence.finish()
        read = source.next_index
    found = summary(
        verdicts,
        source=path.name,
        recipe=recipe.name,
        threshold=recipe.threshold,
        frames=read,
        took_s=time.monotonic() - started_s,
    )
    now = [judged(json.loads(verdict_body(verdict))) for verdict in verdicts]
    comparison = None if before is None else compare(before, now)
    with writing(out_dir):
        write_report(out_dir, found, comparison)
    return Replayed(summary=found, comparison=comparison, out_dir=out_dir)


def camera_of(path: Path) -> str:
    """A camera's name for a recording.

    >>> camera_of(Path("/data/Belt 2 (north).mp4"))
    'belt_2_north'
    """
    return re.sub(r"[^a-z0-9_-]+", "_", path.stem.lower()).strip("_")[:32] or "recording"


def _check(inspector: Inspector, path: Path) -> int | None:
    """How many frames the recording says it has; refuses one that the recipe cannot look at."""
    info = probe(source_of(path))
    error = inspector.frame_size_error(info.size_wh_px)
    if error is not None:
        raise ConfigError(f"{path}: {error}")
    return info.frames


def _inspected(inspector: Inspector, parts: Iterator[Part], batch: int) -> Iterator[tuple[Part, Ballot]]:
    """Parts with the word of their frames, in order. A damaged frame, or one of an impossible size, is an error."""
    rule = inspector.recipe.vote.rule
    seqs = count(1)
    while group := list(islice(parts, batch)):
        crops = [
            [_crops(inspector, frame, seq) for frame in part.frames] for part, seq in zip(group, seqs, strict=False)
        ]
        found = iter(inspector.inspect_crops([crop for each in crops for crop in each if crop is not None]))
        for part, own in zip(group, crops, strict=True):
            yield part, vote([_corrupt(inspector) if crop is None else next(found) for crop in own], rule)


def _crops(inspector: Inspector, frame: Frame, seq: int) -> Crops | None:
    height, width = frame.pixels_bgr.shape[:2]
    if frame.damage is not None or inspector.frame_size_error((width, height)) is not None:
        return None
    return inspector.crop(frame.pixels_bgr, Moment(camera=SESSION, generation=0, seq=seq))


def _corrupt(inspector: Inspector) -> Inspection:
    return Inspection(
        decision=Decision.ERROR, reason=Reason.FRAME_CORRUPT, score=None, threshold=inspector.recipe.threshold
    )


def _verdict(
    inspector: Inspector, frame: Frame, ballot: Ballot, *, seq: int, camera: str, kind: TriggerKind
) -> Verdict:
    """The verdict of the contract; a recording has no deadline, is not journaled, and was not captured now."""
    inspection = ballot.inspection
    height, width = frame.pixels_bgr.shape[:2]
    sound = inspection.decision is not Decision.ERROR
    seen = inspection.infer_ms > 0
    return Verdict(
        session=SESSION,
        camera=camera,
        seq=seq,
        trigger=Trigger(kind=kind),
        decision=inspection.decision,
        reason=inspection.reason,
        recipe=inspector.recipe.info,
        deadline_ms=None,
        journaled=False,
        simulated=True,
        score=inspection.score,
        threshold=inspection.threshold,
        regions=inspection.regions,
        regions_truncated=inspection.regions_truncated,
        mask=_place(inspection) if sound else None,
        frame=FrameInfo(index=frame.index, size_wh_px=(width, height), pts_s=frame.pts_s, time_kind=frame.time_kind),
        model=inspector.identity,
        captured_utc_ns=frame.captured_utc_ns,
        votes=ballot.votes,
        latency_ms=Latency(infer=inspection.infer_ms, post=inspection.post_ms) if seen else Latency(),
    )


def _place(inspection: Inspection) -> MaskPlace | None:
    if inspection.mask is None:
        return None
    height, width = inspection.mask.labels.shape
    return MaskPlace(origin_xy_px=inspection.mask.origin_xy_px, size_wh_px=(width, height))
