"""`inspectd demo`: runs the daemon on the sample clip and shows each verdict, a summary and a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inspectd.demo.daemon import Published, running
from inspectd.demo.sheet import draw_sheet
from inspectd.demo.truth import Score, Truth, compare, read_truth
from inspectd.errors import ConfigError, ExitCode

FOLDER = Path(__file__).resolve().parent
STYLES = {"pass": "green", "fail": "bold red", "error": "bold yellow"}


def show(keep: Path, *, picture: bool, folder: Path = FOLDER) -> ExitCode:
    """Runs the demo.

    Args:
        keep: where the picture, the verdicts, the journal and the daemon's log go.
        picture: whether to write the contact sheet.
        folder: the demo's files: `inspectd.toml`, the recipe, the model, `sample.mp4` and `sample.json`.

    Returns:
        `DONE` when every part got exactly one verdict and 95 % of them are right, else `FOUND_WRONG`.

    Raises:
        ConfigError: a file is missing, or `keep` cannot be written.
        TransportError: the daemon failed.
    """
    console = Console(highlight=False)
    truth = read_truth(folder / "sample.json")
    console.print(f"{len(truth.parts)} parts pass a camera; a daemon of its own inspects them:")
    started_s = time.monotonic()
    with running(folder, keep) as daemon, console.status("starting the daemon") as status:

        def on_state(state: str) -> None:
            status.update("loading the model" if state == "starting" else "inspecting")

        published = daemon.collect(lambda verdict: console.print(line_of(truth, verdict)), on_state)
    verdicts = [published.verdicts[seq] for seq in sorted(published.verdicts)]
    score = compare(truth, verdicts)
    console.print(summary(score, time.monotonic() - started_s))
    _keep(folder, keep, truth, published, score, picture=picture)
    if picture:
        console.print(f"picture: {keep / 'parts.png'}", soft_wrap=True)
    console.print(f"verdicts, journal and log: {keep}/", soft_wrap=True)
    return ExitCode.DONE if score.good_enough else ExitCode.FOUND_WRONG


def line_of(truth: Truth, verdict: Mapping[str, Any]) -> Text:
    """One verdict as a line: the part, the verdict, its score, its largest region, and whether that is so."""
    part = truth.part_of(verdict)
    decision = verdict["decision"]
    number = "?" if part is None else str(part.id)
    line = Text(f"part {number:>3}  ").append(f"{decision.upper():5}", style=STYLES.get(decision, ""))
    line.append(f"  {verdict['reason']:14}" if verdict["score"] is None else f"  {verdict['score']:.4f}")
    line.append(f"  {_region(verdict):25}", style="dim")
    if part is None:
        return line.append("  there is no such part", style="bold red")
    what = ", ".join(part.defects) or "good"
    right = part.is_right(verdict)
    return line.append(f"  {what}" if right else f"  WRONG, it is: {what}", style="" if right else "bold red")


def _region(verdict: Mapping[str, Any]) -> str:
    if not verdict["regions"]:
        return "no region"
    x, y, w, h = verdict["regions"][0]["bbox_xywh_px"]
    more = len(verdict["regions"]) - 1
    return f"{w}x{h} px at {x},{y}" + (f" +{more}" if more else "")


def summary(score: Score, took_s: float) -> Table:
    """The table at the end."""
    table = Table("", "parts", show_header=True)
    table.add_row("all", str(score.parts))
    table.add_row("correct", f"{score.right} ({score.right / score.parts:.1%})")
    table.add_row("missed", str(score.missed), style="red" if score.missed else "")
    table.add_row("false rejects", str(score.false_rejects), style="red" if score.false_rejects else "")
    for name in ("errors", "unjudged", "repeated", "stray"):
        count = getattr(score, name)
        if count:
            table.add_row(name, str(count), style="bold red")
    if score.latency_p50_ms is not None and score.latency_p99_ms is not None:
        table.add_row("latency p50 / p99", f"{score.latency_p50_ms:.0f} ms / {score.latency_p99_ms:.0f} ms")
    table.add_row("took", f"{took_s:.1f} s")
    return table


def _keep(folder: Path, keep: Path, truth: Truth, published: Published, score: Score, *, picture: bool) -> None:
    verdicts = [published.verdicts[seq] for seq in sorted(published.verdicts)]
    title = f"inspectd demo: {score.right} of {score.parts} parts judged right"
    try:
        lines = "".join(f"{json.dumps(verdict)}\n" for verdict in verdicts)
        (keep / "verdicts.jsonl").write_text(lines, encoding="utf-8")
        if picture:
            sheet = draw_sheet(folder / "sample.mp4", truth, verdicts, published.masks, title)
            (keep / "parts.png").write_bytes(sheet)
    except OSError as error:
        raise ConfigError(f"{keep}: {error.strerror or error}; choose another folder with --keep") from error
