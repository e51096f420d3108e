"""`bench drift`: a recipe's own decisions on the user's own frames, in fp32 and in another precision."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests_detect import some_crops, write_model
from typer.testing import CliRunner

from inspectd.cli import app
from inspectd.detect.build import build_detector
from inspectd.images import read_image_bgr
from inspectd.inspection import Inspector
from inspectd.recipe import Recipe, load_recipe

HALF = "[decision]\nthreshold = 0.5\npixel_threshold = 0.5"


def recipe_file(folder: Path, text: str) -> Path:
    """A recipe on small random weights."""
    config, weights = write_model(folder / "model")
    path = folder / "cap.toml"
    path.write_text(f'object = "cap"\n[model]\nweights = "{weights}"\nconfig = "{config}"\n{text}\n')
    return path


def pictures(folder: Path) -> Path:
    """A folder of four pictures."""
    (folder / "frames").mkdir()
    for at, crop in enumerate(some_crops(4)):
        cv2.imwrite(str(folder / "frames" / f"{at}.png"), crop)
    return folder / "frames"


def score(recipe: Recipe, path: Path, precision: str) -> float:
    """What the daemon would say of one picture."""
    detector = build_detector(recipe, weights_dir=path.parent, device="cpu", precision=precision)
    return Inspector(recipe, detector).measure_frames([read_image_bgr(path)])[0].score


def run(*words: object):
    return CliRunner().invoke(app, ["bench", "drift", *map(str, words), "--device", "cpu"])


def test_decision_that_flips_is_named(tmp_path: Path):
    """With the threshold between a frame's score in fp32 and in bf16 that frame flips, and the report says which."""
    frames, path = pictures(tmp_path), recipe_file(tmp_path, "[decision]\nthreshold = 0.5\npixel_threshold = 1.0")
    exact, moved = (score(load_recipe(path), frames / "2.png", precision) for precision in ("fp32", "bf16"))
    path.write_text(path.read_text().replace("threshold = 0.5", f"threshold = {(exact + moved) / 2!r}", 1))
    done = run(frames, "--recipe", path, "--precision", "bf16", "--json", tmp_path / "drift.json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "drift.json").read_text())["drifts"]
    assert (found["precision"], found["frames"], found["not_finite"]) == ("bf16", 4, 0)
    assert found["flipped"] == ["2.png"]
    assert found["score_max"] >= abs(exact - moved) > 0 < found["within_reach"]
    assert "2.png" in done.output


@pytest.mark.parametrize(("tolerance", "moves"), [(0, False), (12, True)])
def test_error_of_reuse_is_measured(tmp_path: Path, tolerance: int, moves: bool):
    """On frames that change by less than the tolerance maps move; without one they do not."""
    (tmp_path / "frames").mkdir()
    (crop,), random = some_crops(1), np.random.default_rng(0)
    for at in range(4):
        noisy = np.clip(crop + random.integers(-6, 7, crop.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "frames" / f"{at}.png"), noisy)
    reuse = f"[detector]\nreuse = true\nreuse_tolerance_levels = {tolerance}"
    path = recipe_file(tmp_path, f"{HALF}\n{reuse}")
    done = run(tmp_path / "frames", "--recipe", path, "--precision", "fp32", "--json", tmp_path / "drift.json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "drift.json").read_text())["drifts"]
    assert (found["precision"], found["frames"]) == (f"fp32 with reuse, tolerance {tolerance}", 4)
    assert (found["map_max"] > 1e-5) is moves


@pytest.mark.parametrize(
    ("text", "precision", "says"),
    [
        (HALF, "fp32", "name another"),
        (HALF, "fp16", "not for this cpu device"),
        ("", "bf16", "inspectd calibrate"),
        (
            "[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n[quality]\nmin_brightness = 254",
            "bf16",
            "none of the 4",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, text: str, precision: str, says: str):
    """A precision that is not there, a recipe without thresholds, frames that are never judged."""
    done = run(pictures(tmp_path), "--recipe", recipe_file(tmp_path, text), "--precision", precision)
    assert done.exit_code != 0
    assert says in str(done.exception)
