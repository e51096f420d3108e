"""The bundled model: a real CLIP in open_clip's format, small, cheap, and right about the bundled clip."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from inspectd.detect.build import build_detector
from inspectd.detect.text import open_clip
from inspectd.recipe import load_recipe

ASSETS = Path(__file__).resolve().parents[2] / "inspectd" / "demo"
WEIGHTS, CONFIG = ASSETS / "model.safetensors", ASSETS / "model.json"


def gflop_per_frame(config: dict) -> float:
    """Zero-shot, windows of scales 2 and 3 included, the last block of windows for CLS alone."""
    vision = config["vision_cfg"]
    width, layers, grid = vision["width"], vision["layers"], vision["image_size"] // vision["patch_size"]

    def block(tokens: int, rows: int) -> int:
        keys_values, queries_out_mlp = 2 * tokens * width * 2 * width, 2 * rows * width * 10 * width
        return keys_values + queries_out_mlp + 2 * 2 * rows * tokens * width

    def sequence(tokens: int, last_rows: int) -> int:
        return (layers - 1) * block(tokens, tokens) + block(tokens, last_rows)

    whole = sequence(1 + grid**2, 1 + grid**2) + 2 * grid**2 * vision["patch_size"] ** 2 * 3 * width
    windows = sum((grid - k + 1) ** 2 * sequence(1 + k * k, 1) for k in (2, 3))
    return (whole + windows) / 1e9


def test_model_is_small_and_cheap():
    """At most 20 MB together and 5 GFLOP a frame."""
    assert WEIGHTS.stat().st_size + CONFIG.stat().st_size <= 20e6
    assert gflop_per_frame(json.loads(CONFIG.read_text())) <= 5.0


def test_open_clip_takes_the_weights_with_nothing_missing_and_nothing_over():
    """The config builds open_clip's own CLIP, and its state dict loads strictly."""
    from safetensors.torch import load_file

    model = open_clip().model.CLIP(**json.loads(CONFIG.read_text()))
    state = load_file(WEIGHTS)
    assert {str(value.dtype) for value in state.values()} == {"torch.float16"}
    model.load_state_dict(state, strict=True)


def test_sample_is_short_enough_and_has_every_defect():
    """At least 60 parts, 25 to 40 % of them bad, every kind of defect, under 3 MB."""
    truth = json.loads((ASSETS / "sample.json").read_text())
    bad = [part for part in truth["parts"] if part["bad"]]
    assert (ASSETS / "sample.mp4").stat().st_size < 3e6
    assert len(truth["parts"]) >= 60
    assert 0.25 <= len(bad) / len(truth["parts"]) <= 0.40
    assert {part["defects"][0]["kind"] for part in bad} == {
        "scratch", "chip", "dent", "stain", "hole", "missing piece", "contamination",
    }  # fmt: skip


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "nut.toml"
    path.write_text(
        f'object = "hex nut"\n[model]\nbackbone = "demo"\nweights = "{WEIGHTS}"\nconfig = "{CONFIG}"\n'
        "[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"
    )
    return build_detector(load_recipe(path), weights_dir=path.parent, device="cpu")


def test_model_judges_the_sample(detector):
    """At the frame in which each part is centred, at least 95 % are judged right and damage lights up where it is."""
    truth = json.loads((ASSETS / "sample.json").read_text())
    centred = {part["frame_centred"]: part for part in truth["parts"]}
    (left, top), _, (right_x, bottom), _ = truth["zone_polygon_xy_px"]
    right, lit = [], []
    with av.open(str(ASSETS / "sample.mp4")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index not in centred:
                continue
            part = centred[index]
            crop = np.ascontiguousarray(frame.to_ndarray(format="rgb24")[top:bottom, left:right_x])
            [scored] = detector.score([crop])
            right.append((scored.score >= 0.5) == part["bad"])
            if part["bad"]:
                lit.append(_lights_up(scored.map, part["defects"][0]["bbox_xywh_px"], (left, top, right_x - left)))
    assert len(right) == len(truth["parts"])
    assert np.mean(right) >= 0.95
    assert np.mean(lit) >= 0.9


def _lights_up(grid_map, bbox_xywh_px, zone) -> bool:
    """Whether the damage's box holds at least half of the map's peak, and twice its median."""
    cell = zone[2] / len(grid_map)
    x, y, w, h = bbox_xywh_px
    x0, x1 = int((x - zone[0]) / cell), int(np.ceil((x + w - zone[0]) / cell))
    y0, y1 = int((y - zone[1]) / cell), int(np.ceil((y + h - zone[1]) / cell))
    inside = grid_map[max(y0, 0) : y1, max(x0, 0) : x1]
    return bool(inside.max() > 2 * np.median(grid_map) and inside.max() >= 0.5 * grid_map.max())
