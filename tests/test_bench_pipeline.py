"""`bench pipeline`: the real daemon on cameras in memory; the findings add up, and programs can read them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests_detect import small_detector, some_crops
from typer.testing import CliRunner

from inspectd.bench.pipeline import Load, Spread, parse_loads, parse_size
from inspectd.bench.processes import children, cpu_s, memory_mb
from inspectd.bench.rig import GRID_HW, ReadyMaps, TimedModel
from inspectd.cli import app
from inspectd.errors import ConfigError


def test_every_frame_is_answered_and_the_findings_add_up(tmp_path: Path):
    """Two small cameras for a second: one verdict a frame, a share with regions, times in their order."""
    out = tmp_path / "pipeline.json"
    words = ["bench", "pipeline", "--load", "2x20", "--seconds", "1", "--idle", "0.5", "--size", "320x240"]
    done = CliRunner().invoke(app, [*words, "--failing", "0.25", "--json", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    (flow,) = json.loads(out.read_text())["flows"]
    assert flow["verdicts"] + flow["skipped"] == flow["frames"] == 40
    assert flow["reasons"]["fail/anomaly"] == flow["verdicts"] // 4
    assert set(flow["reasons"]) == {"pass/ok", "fail/anomaly"}
    assert 0 < flow["commit_ms"]["p50"] < flow["added_ms"]["p50"] <= flow["total_ms"]["p99"]
    assert flow["cpu_ms_per_frame"] == pytest.approx(sum(flow["cpu_ms_by_process"].values()))
    assert set(flow["memory_mb"]) >= {"supervisor", "publisher", "worker", "capture-cam1", "capture-cam2"}


def test_maps_fail_as_often_as_asked():
    """Every fourth map has a hot place, and its score says so."""
    found = ReadyMaps(4).score([None] * 8)  # type: ignore[list-item]
    assert [one.score > 0.5 for one in found] == [False, False, False, True] * 2
    assert all((one.map.max() > 0.5) == (one.score > 0.5) and one.map.shape == GRID_HW for one in found)


def test_model_takes_its_time_and_says_what_is_ready(tmp_path: Path):
    """With a model every crop is scored by it, and as many frames fail as were asked for."""
    model = small_detector(tmp_path)
    asked: list[int] = []
    score, model.score = model.score, lambda crops, **more: (asked.append(len(crops)), score(crops, **more))
    found = TimedModel(model, 2).score(some_crops(4))
    assert asked == [4]
    assert [one.score > 0.5 for one in found] == [False, True] * 2
    assert all((one.map.max() > 0.5) == (one.score > 0.5) and one.map.shape == model.grid_hw for one in found)


def test_quantiles_of_times():
    """p50, p99 and the largest; nothing of nothing."""
    spread = Spread.of([float(value) for value in range(101)])
    assert spread == Spread(p50=50.0, p99=99.0, most=100.0)
    assert Spread.of([]) is None


def test_loads_and_sizes_are_read():
    """`4x25` is four cameras of 25 frames a second."""
    assert parse_loads("1x10,4x12.5") == (Load(cameras=1, fps=10), Load(cameras=4, fps=12.5))
    assert parse_size("1920x1080") == (1920, 1080)


@pytest.mark.parametrize("text", ["4", "x", "0x10", "4x0", "4x-1", "4xnan", "axb", "1x2x3", ""])
def test_what_is_no_load_is_named(text: str):
    """One line says what is expected."""
    with pytest.raises(ConfigError, match="4x10"):
        parse_loads(text)


def test_cpu_time_and_memory_of_a_process():
    """A tenth of a second of work shows; a process that has gone costs nothing."""
    before, until_s = cpu_s(os.getpid()), time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    assert cpu_s(os.getpid()) - before >= 0.08
    assert memory_mb() > 10
    assert (cpu_s(1 << 30), memory_mb(1 << 30), children(1 << 30)) == (0.0, 0.0, [])
