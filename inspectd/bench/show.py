"""The findings as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inspectd.bench.findings import Drift, ModelBench, Timing
from inspectd.bench.pipeline import Flow, Spread
from inspectd.bench.recipe_drift import RecipeDrift
from inspectd.errors import ConfigError

_NAMED = 5
"""Frames whose decision flips are named up to so many."""


def write_json(findings: dict[str, object], path: Path) -> None:
    """Writes findings, records within them as objects.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(findings, indent=1, default=asdict) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def show_pipeline(flows: Sequence[Flow], console: Console) -> None:
    """Prints what the daemon adds and costs: one line a load, then where it goes."""
    table = Table("cameras x fps", "frames/s", "verdicts", "skipped", "added p50 / p99 ms", "commit p50 / p99 ms")
    for name in ("CPU ms a frame", "idle CPU"):
        table.add_column(name, justify="right")
    for flow in flows:
        table.add_row(
            f"{flow.cameras} x {flow.fps:g}",
            f"{flow.rate_fps:.1f}",
            f"{flow.verdicts} of {flow.frames}",
            str(flow.skipped),
            _pair(flow.added_ms),
            _pair(flow.commit_ms),
            f"{flow.cpu_ms_per_frame:.1f}",
            f"{flow.idle_cpu_percent:.1f} %",
        )
    console.print(table)
    for flow in flows:
        _show_flow(flow, console)


def _show_flow(flow: Flow, console: Console) -> None:
    console.print(
        f"{flow.cameras} x {flow.fps:g}: " + _listed(f"{count} {name}" for name, count in flow.reasons.items())
    )
    console.print("  p50 / p99 ms: " + _listed(f"{name} {_pair(spread)}" for name, spread in flow.parts_ms.items()))
    console.print(f"  from exposure to subscriber: {_pair(flow.total_ms)}")
    console.print(
        "  CPU ms a frame: " + _listed(f"{name} {spent:.2f}" for name, spent in flow.cpu_ms_by_process.items())
    )
    console.print(
        "  idle, % of a core: " + _listed(f"{name} {share:.1f}" for name, share in flow.idle_by_process.items())
    )
    console.print("  resident MB: " + _listed(f"{name} {size:.0f}" for name, size in flow.memory_mb.items()))


def _pair(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.p50:.1f} / {spread.p99:.1f}"


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def model_findings(found: ModelBench) -> dict[str, object]:
    """The findings as a dict for JSON, rates and shares included."""
    timings = [asdict(one) | _derived(one) for one in found.timings]
    return asdict(found) | {"timings": timings}


def _derived(one: Timing) -> dict[str, object]:
    return {"frames_per_s": one.frames_per_s, "latency_ms": one.latency_ms, "share": one.share}


def show_model(found: ModelBench, console: Console) -> None:
    """Prints the findings of `bench model`."""
    before, after = found.load_average
    console.print(
        f"{found.backbone} on random weights, {found.device}, {found.machine}, {found.threads} threads, "
        f"{found.versions}; {found.rounds} interleaved rounds, load average {before:.1f} -> {after:.1f}"
    )
    console.print(_timing_table(found.timings))
    exact = found.exactness
    console.print(
        f"largest differences from all windows: maps in a region {exact.region_map:.1e}, with reuse "
        f"{exact.reuse_map:.1e}, scores of localise on fail {exact.localise_score:.1e}"
    )
    for drift in found.drifts:
        _show_drift(drift, console, "random weights")
    console.print("one frame, ms: " + _listed(f"{name} {spent:.1f}" for name, spent in found.stages_ms.items()))
    for bank in found.banks:
        console.print(f"{bank.references} references: {bank.megabytes:.1f} MB, {bank.frame_ms:.0f} ms a frame")
    console.print(
        f"text embeddings: cold {found.text_cold_s:.2f} s, from the cache {found.text_warm_s * 1e3:.1f} ms "
        f"({found.text_cold_s / found.text_warm_s:.0f} times)"
    )
    gpu = "" if found.gpu_memory_mb is None else f", on the GPU {found.gpu_memory_mb:.0f} MB"
    console.print(f"resident memory {found.memory_mb:.0f} MB{gpu}")


def show_drifts(found: RecipeDrift, console: Console) -> None:
    """Prints the findings of `bench drift`."""
    if found.unscored:
        console.print(f"{found.unscored} frames have no score in fp32 and are left out")
    for drift in found.drifts:
        _show_drift(drift, console, f"recipe {found.recipe} on {found.device}")


def _show_drift(drift: Drift, console: Console, model: str) -> None:
    flipped = f": {_listed(drift.flipped[:_NAMED])}" + (" …" if len(drift.flipped) > _NAMED else "")
    broken = f"; {drift.not_finite} frames get no finite score" if drift.not_finite else ""
    console.print(
        f"{drift.precision} against fp32 on {drift.frames} frames ({model}, scores from {drift.score_low:.3f} "
        f"to {drift.score_high:.3f}): scores move by {drift.score_max:.1e} at most, {drift.score_mean:.1e} on "
        f"average, maps by {drift.map_max:.1e}; the threshold is {drift.threshold:.4f}, the nearest score "
        f"{drift.nearest:.1e} from it, {drift.within_reach} frames within reach; "
        f"{len(drift.flipped)} decisions flip{flipped if drift.flipped else ''}{broken}"
    )


def _timing_table(timings: Sequence[Timing]) -> Table:
    table = Table(
        "variant",
        "precision",
        "batch",
        "ms a frame",
        "latency p50 / p99 ms",
        "frames/s",
        "GFLOP",
        "GFLOP/s",
        "of limit",
        "x",
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for one in timings:
        table.add_row(
            one.name,
            one.precision,
            str(one.batch),
            f"{one.p50_ms:.1f}",
            " / ".join(f"{spent:.1f}" for spent in one.latency_ms),
            f"{one.frames_per_s:.2f}",
            f"{one.gflop:.1f}",
            f"{one.rate_gflops:.0f}",
            f"{one.share:.0%}",
            f"{one.against_full:.2f}",
        )
    return table
