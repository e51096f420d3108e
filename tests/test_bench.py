"""`bench model` on a small backbone: the findings are there, they add up, and they can be read by a program."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from tests_detect import CPU, small_detector, some_crops, write_model
from typer.testing import CliRunner

from inspectd.bench.drift import drift_between
from inspectd.bench.findings import ModelPlan
from inspectd.bench.model import bench_model
from inspectd.bench.show import model_findings, show_model, write_json
from inspectd.cli import app
from inspectd.detect import measure
from inspectd.detect.architecture import read_architecture
from inspectd.detect.gemm import Precision
from inspectd.detect.judging import Scored
from inspectd.detect.options import WinclipConfig
from inspectd.errors import ConfigError


@pytest.fixture
def plan(tmp_path: Path) -> ModelPlan:
    config, _ = write_model(tmp_path)
    for at, crop in enumerate(some_crops(3)):
        cv2.imwrite(str(tmp_path / f"{at}.png"), crop)
    images = tuple(sorted(tmp_path.glob("*.png")))
    size = (320, 240)
    return ModelPlan(
        config=config, precisions=("fp32", "bf16"), batches=(1, 2), rounds=1, images=images, frame_size_wh_px=size
    )


def test_every_variant_is_measured(plan: ModelPlan, tmp_path: Path):
    """Each precision is timed whole and in every way that computes less; JSON and tables hold it all."""
    found = bench_model(plan)
    names = {timing.name.split(",")[0] for timing in found.timings}
    assert names == {"all windows", "region", "reuse", "image only", "localise on fail"}
    assert len(found.timings) == 2 * (3 * len(plan.batches) + 2)
    assert all(one.against_full == 1 for one in found.timings if (one.name, one.batch) == ("all windows", 1))
    assert all(0 < timing.p50_ms <= timing.p99_ms and timing.share > 0 for timing in found.timings)
    (drift,) = found.drifts
    assert (drift.precision, drift.frames, 0 < drift.score_max < 0.1) == ("bf16", 3, True)
    exact = found.exactness
    assert max(exact.reuse_map, exact.localise_score, exact.region_map) < 1e-6
    assert set(found.stages_ms) >= {"preprocess", "whole", "windows 2", "windows 3", "scoring", "upsample", "regions"}
    assert found.text_warm_s < found.text_cold_s
    assert [bank.references for bank in found.banks] == [1, 4, 32, 128]
    write_json(model_findings(found), tmp_path / "bench.json")
    first, second, *_ = json.loads((tmp_path / "bench.json").read_text())["timings"]
    assert first["frames_per_s"] > 0
    assert second["latency_ms"] == [second["p50_ms"] * 2, second["p99_ms"] * 2]
    out = StringIO()
    show_model(found, Console(file=out, width=200))
    assert "localise on fail" in out.getvalue()


def test_trace_is_written(plan: ModelPlan, tmp_path: Path):
    """`--profile` leaves a trace with the model's own steps."""
    trace = tmp_path / "trace.json"
    bench_model(ModelPlan(config=plan.config, rounds=1, trace=trace, banks=()))
    assert "linear" in trace.read_text()


def test_drift_counts_decisions_that_flip():
    """Of three frames one moves over the threshold."""
    maps = np.zeros((2, 2), np.float32)
    exact = [Scored(score, maps) for score in (0.1, 0.5, 0.9)]
    moved = [Scored(score, maps + np.float32(0.25)) for score in (0.1, 0.6, 0.9)]
    drift = drift_between(exact, moved, precision="bf16", names=["a", "b", "c"], threshold=0.55)
    assert (drift.flipped, drift.map_max, drift.nearest) == (("b",), 0.25, pytest.approx(0.05))
    assert drift.score_max == pytest.approx(0.1)


def test_score_that_is_lost_is_a_flip():
    """A precision that gives NaN where fp32 passes turns a pass into an error."""
    exact, moved = [Scored(0.1, None), Scored(0.9, None)], [Scored(float("nan"), None), Scored(0.9, None)]
    drift = drift_between(exact, moved, precision="fp16", names=["a", "b"], threshold=0.5)
    assert (drift.flipped, drift.not_finite, drift.score_max) == (("a",), 1, 0.0)


def test_file_that_cannot_be_written_is_named(plan: ModelPlan, tmp_path: Path):
    """A JSON file in a folder that is not there is one line."""
    with pytest.raises(ConfigError, match="gone"):
        write_json({}, tmp_path / "gone" / "bench.json")
    with pytest.raises(ConfigError, match="gone"):
        bench_model(ModelPlan(config=plan.config, rounds=1, banks=(), trace=tmp_path / "gone" / "trace.json"))


def test_random_weights_get_a_text_by_which_scores_spread(tmp_path: Path):
    """Under random prompts all scores of random weights are alike; under this pair a drift would show."""
    architecture = read_architecture("small", write_model(tmp_path)[0])
    detector = measure.random_detector(architecture, WinclipConfig(), device=CPU, precision=Precision.FP32)
    crops = some_crops(6)
    maps = np.stack([one.map for one in measure.told(detector, measure.spread(detector, crops)).score(crops)])
    assert 0.3 < maps.mean() < 0.7
    assert maps.std() > 0.03


def test_changing_frames_change_the_windows_they_say(tmp_path: Path):
    """The share of windows that the benchmark calls changed is what the memory finds stale; the map is exact."""
    detector = small_detector(tmp_path)
    changing = measure.Changing(detector, 0.3)
    assert changing.changed == sum(changing.counts) / sum(detector.window_counts)
    assert changing.error() < 1e-6


def test_quick_runs_in_seconds(tmp_path: Path):
    """`--quick` needs neither weights nor patience, and its JSON is there."""
    out = tmp_path / "quick.json"
    done = CliRunner().invoke(app, ["bench", "model", "--quick", "--threads", "1", "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["rounds"] == 1
