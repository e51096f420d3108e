"""The work counted against the specification's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inspectd.detect.architecture import VisionShape, read_architecture
from inspectd.detect.cost import gflop_per_frame
from inspectd.detect.windows import window_patches

VISION = read_architecture("ViT-B-16-plus-240").vision


def gflop_naive(shape: VisionShape, scales: Sequence[int]) -> float:
    """GFLOP of the same frame without any saving, as other implementations run it."""
    width, tower = shape.width, 0.0
    spans = [(1, 1 + shape.patch_count)]
    spans += [(len(window_patches(shape.grid_hw, scale)), 1 + scale * scale) for scale in scales]
    for sequences, length in spans:
        per_token = 8 * width * width + 4 * width * shape.mlp_width + 4 * length * width
        tower += shape.layers * sequences * length * per_token
    return tower / 1e9


def test_naive_work_is_the_specifications():
    """Whole image 54.8, scale 2 226.8, scale 3 391.5 GFLOP."""
    image = gflop_naive(VISION, [])
    parts = [gflop_naive(VISION, [scale]) - image for scale in (2, 3)]
    assert [image, *parts] == pytest.approx([54.8, 226.8, 391.5], rel=0.01)


def test_savings_are_the_specifications():
    """With the savings 619.5 GFLOP remain zero-shot; few-shot needs 3.8 more."""
    zero_shot = gflop_per_frame(VISION, (2, 3))
    assert zero_shot == pytest.approx(619.5, rel=0.005)
    assert gflop_per_frame(VISION, (2, 3), few_shot=True) - zero_shot == pytest.approx(3.8, abs=0.1)


def test_fewer_windows_cost_less():
    """Half the windows cost half of what windows cost."""
    image = gflop_per_frame(VISION, [])
    whole, half = gflop_per_frame(VISION, [2]), gflop_per_frame(VISION, [2], windows=[98])
    assert (half - image) / (whole - image) == pytest.approx(0.5)
