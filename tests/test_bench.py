"""`bench model` on a small backbone: the findings are there, they add up, and they can be read by a program."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from tests_detect import some_crops, write_model

from inspectd.bench.model import ModelPlan, bench_model, drift_between, show, write_json
from inspectd.detect.winclip import Scored
from inspectd.errors import ConfigError


@pytest.fixture
def plan(tmp_path: Path) -> ModelPlan:
    config, _ = write_model(tmp_path)
    for at, crop in enumerate(some_crops(3)):
        cv2.imwrite(str(tmp_path / f"{at}.png"), crop)
    images = tuple(sorted(tmp_path.glob("*.png")))
    return ModelPlan(config=config, precisions=("fp32", "bf16"), batches=(1, 2), rounds=2, images=images)


def test_every_variant_is_measured(plan: ModelPlan, tmp_path: Path):
    """Each precision is timed whole, in a region, on the image alone and localising on failure; JSON holds it all."""
    found = bench_model(plan)
    names = {timing.name.split(",")[0] for timing in found.timings}
    assert names == {"full", "region", "image only", "localise on fail"}
    assert len(found.timings) == 2 * (len(plan.batches) + 3)
    assert all(0 < timing.p50_ms <= timing.p99_ms and timing.share > 0 for timing in found.timings)
    assert {drift.precision for drift in found.drifts if drift.score_max == 0} == {"fp32"}
    assert found.text_warm_s < found.text_cold_s
    assert [bank.references for bank in found.banks] == [1, 4, 32, 128]
    write_json(found, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text())["timings"][0]["frames_per_s"] > 0
    out = StringIO()
    show(found, Console(file=out, width=200))
    assert "localise on fail" in out.getvalue()


def test_trace_is_written(plan: ModelPlan, tmp_path: Path):
    """`--profile` leaves a trace with the model's own steps."""
    trace = tmp_path / "trace.json"
    bench_model(ModelPlan(config=plan.config, rounds=1, trace=trace))
    assert "linear" in trace.read_text()


def test_drift_counts_decisions_that_flip():
    """Of three frames one moves over the threshold."""
    maps = np.zeros((2, 2), np.float32)
    exact = [Scored(score, maps) for score in (0.1, 0.5, 0.9)]
    moved = [Scored(score, maps + np.float32(0.25)) for score in (0.1, 0.6, 0.9)]
    drift = drift_between(exact, moved, precision="bf16", threshold=0.55)
    assert (drift.flipped, drift.map_max) == (1, 0.25)
    assert drift.score_max == pytest.approx(0.1)


def test_file_that_cannot_be_written_is_named(plan: ModelPlan, tmp_path: Path):
    """A JSON file in a folder that is not there is one line."""
    found = bench_model(ModelPlan(config=plan.config, rounds=1))
    with pytest.raises(ConfigError, match="gone"):
        write_json(found, tmp_path / "gone" / "bench.json")
