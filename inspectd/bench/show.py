"""The findings as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inspectd.bench.pipeline import Flow, Spread
from inspectd.errors import ConfigError


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
