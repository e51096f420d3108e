"""What a replay adds up to, and how it differs from another one. Pure, but for reading and writing the files.

A replay's folder holds `verdicts.jsonl`, one verdict of the public contract a line; that is all a comparison needs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inspectd.errors import ConfigError
from inspectd.records import Decision, Verdict

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One verdict as far as a comparison looks."""

    frame_index: int
    decision: Decision
    reason: str
    score: float | None
    model_sha256: str | None
    recipe_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A frame that is judged in another way than before; None where it was not judged at all."""

    frame_index: int
    before: Judged | None
    now: Judged | None

    def __str__(self) -> str:
        return f"frame {self.frame_index}: {_word(self.before)} before, {_word(self.now)} now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A replay beside its baseline. `max_score_change` is over the frames that both scored."""

    compared: int
    flips: tuple[Flip, ...]
    max_score_change: float
    other_model: bool
    other_recipe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A replay in numbers. Scores are quantiles 0, 0.5, 0.99 and 1 of the finite ones; empty where there is none."""

    source: str
    recipe: str
    threshold: float
    frames: int
    inspected: int
    decisions: dict[str, int]
    reasons: dict[str, int]
    score_quantiles: tuple[float, ...]
    infer_ms_p50: float | None
    took_s: float
    model: dict[str, str] = field(default_factory=dict)


def summary(
    verdicts: Sequence[Verdict], *, source: str, recipe: str, threshold: float, frames: int, took_s: float
) -> Summary:
    """Adds up verdicts; `frames` is how many were read."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    times_ms = [verdict.latency_ms.infer for verdict in verdicts if verdict.latency_ms.infer is not None]
    model = next((verdict.model for verdict in verdicts if verdict.model is not None), None)
    return Summary(
        source=source,
        recipe=recipe,
        threshold=threshold,
        frames=frames,
        inspected=len(verdicts),
        decisions={decision.value: sum(verdict.decision is decision for verdict in verdicts) for decision in Decision},
        reasons=dict(Counter(verdict.reason.value for verdict in verdicts).most_common()),
        score_quantiles=tuple(np.quantile(scores, (0, 0.5, 0.99, 1)).tolist()) if scores else (),
        infer_ms_p50=float(np.median(times_ms)) if times_ms else None,
        took_s=took_s,
        model={} if model is None else asdict(model),
    )


def judged(verdict: Mapping[str, Any]) -> Judged:
    """A verdict of the public contract, read from JSON.

    Raises:
        ValueError: it has no frame, or is no verdict.
    """
    try:
        return Judged(
            frame_index=int(verdict["frame"]["index"]),
            decision=Decision(verdict["decision"]),
            reason=str(verdict["reason"]),
            score=None if verdict["score"] is None else float(verdict["score"]),
            model_sha256=None if verdict["model"] is None else verdict["model"].get("sha256"),
            recipe_sha256=str(verdict["recipe"]["sha256"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no verdict with a frame ({error!r})") from error


def read_verdicts(folder: Path) -> list[Judged]:
    """The verdicts of a replay's folder.

    Raises:
        ConfigError: there are none, or a line is no verdict.
    """
    path = folder / VERDICTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"{path}: {why} (a baseline is the folder of an earlier replay)") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(judged(json.loads(line)))
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not a verdict: {error}") from error
    if not found:
        raise ConfigError(f"{path}: holds no verdict")
    return found


def compare(before: Sequence[Judged], now: Sequence[Judged]) -> Comparison:
    """Frame by frame: another decision, a verdict too few or one too many is a flip; another score alone is none."""
    old, new = _by_frame(before), _by_frame(now)
    flips = [
        Flip(frame_index=key[0], before=old.get(key), now=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if _decision(old.get(key)) != _decision(new.get(key))
    ]
    both = [(old[key], new[key]) for key in old.keys() & new.keys()]
    changes = [abs(a.score - b.score) for a, b in both if a.score is not None and b.score is not None]
    return Comparison(
        compared=len(both),
        flips=tuple(flips),
        max_score_change=max(changes, default=0.0),
        other_model=any(a.model_sha256 != b.model_sha256 for a, b in both if a.model_sha256 and b.model_sha256),
        other_recipe=any(a.recipe_sha256 != b.recipe_sha256 for a, b in both),
    )


def write_report(folder: Path, found: Summary, comparison: Comparison | None) -> None:
    """Writes `report.json` and `report.md`.

    Raises:
        OSError: the folder cannot be written.
    """
    content = asdict(found) | {"comparison": None if comparison is None else asdict(comparison)}
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(found, comparison), encoding="utf-8")


def markdown(found: Summary, comparison: Comparison | None) -> str:
    """The report for people."""
    errors = [f"{count} {reason}" for reason, count in found.reasons.items() if reason not in ("ok", "anomaly")]
    rows = [
        ("recording", found.source),
        ("recipe", f"{found.recipe}, threshold {found.threshold:.4f}"),
        ("model", " ".join(found.model.get(key, "") for key in ("detector", "backbone", "precision"))),
        ("frames", f"{found.frames} read, {found.inspected} inspected in {found.took_s:.1f} s"),
        ("verdicts", ", ".join(f"{count} {decision}" for decision, count in found.decisions.items())),
        ("errors", ", ".join(errors) or "none"),
    ]
    if found.score_quantiles:
        low, median, high, top = found.score_quantiles
        rows.append(("score", f"{low:.4f} least, {median:.4f} median, {high:.4f} p99, {top:.4f} largest"))
    if found.infer_ms_p50 is not None:
        rows.append(("model time", f"{found.infer_ms_p50:.1f} ms a batch (median)"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"# Replay\n\n| | |\n|---|---|\n{table}\n" + ("" if comparison is None else _against_baseline(comparison))


def _against_baseline(comparison: Comparison) -> str:
    flips, change = len(comparison.flips), comparison.max_score_change
    lines = ["\n## Against the baseline\n"]
    lines += [f"{comparison.compared} frames in both, {flips} flips, scores differ by at most {change:.2g}."]
    if comparison.other_model:
        lines.append("\nThe model is another one.")
    if comparison.other_recipe:
        lines.append("\nThe recipe or its thresholds are others.")
    lines += ["", *(f"- {flip}" for flip in comparison.flips)]
    return "\n".join(lines).rstrip() + "\n"


def _by_frame(verdicts: Sequence[Judged]) -> dict[tuple[int, int], Judged]:
    """Verdicts by frame index; the second number tells several verdicts on one frame apart."""
    seen: Counter[int] = Counter()
    found = {}
    for verdict in verdicts:
        found[(verdict.frame_index, seen[verdict.frame_index])] = verdict
        seen[verdict.frame_index] += 1
    return found


def _decision(verdict: Judged | None) -> Decision | None:
    return None if verdict is None else verdict.decision


def _word(verdict: Judged | None) -> str:
    if verdict is None:
        return "no verdict"
    return f"{verdict.decision}/{verdict.reason}" + ("" if verdict.score is None else f" {verdict.score:.4f}")
