"""Preprocessing against PIL, and maps brought to pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests_detect import CPU, EVERY_DEVICE, model_config

from inspectd.detect.architecture import CLIP_MEAN, CLIP_STD, VisionShape, _architecture
from inspectd.detect.build import choose_device
from inspectd.detect.preprocess import Resize, _kernel_takes, prepare, upsample_map
from inspectd.errors import DetectorError


@pytest.fixture
def shape() -> VisionShape:
    return _architecture("small", model_config()).vision


@pytest.mark.parametrize("size_hw_px", [(77, 123), (480, 640), (40, 40), (20, 33), (1, 1)])
def test_resizing_equals_pil(shape: VisionShape, size_hw_px: tuple[int, int]):
    """Any size is squashed as PIL's bicubic filter does it: within a grey level, 99 % of it equal."""
    crop = np.random.default_rng(0).integers(0, 256, (*size_hw_px, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(crop).resize((40, 40), Image.Resampling.BICUBIC), dtype=np.float32)
    found = prepare([crop], shape, Resize.UINT8, CPU)[0].permute(1, 2, 0).numpy()
    grey = (found * CLIP_STD + CLIP_MEAN) * 255
    off = np.abs(grey - expected)
    assert off.max() < 1.01
    assert (off > 0.01).mean() < 0.01


def test_float_resizing_is_neither_rounded_nor_clamped(shape: VisionShape):
    """The variant of anomalib overshoots at hard edges."""
    crop = np.zeros((80, 80, 3), dtype=np.uint8)
    crop[:, 37:] = 255
    grey = prepare([crop], shape, Resize.FLOAT, CPU)[0, 0] * CLIP_STD[0] + CLIP_MEAN[0]
    assert float(grey.min()) < -0.01
    assert float(grey.max()) > 1.01


def test_channels_keep_their_order_on_a_grid_that_is_not_square(shape: VisionShape):
    """Red stays first, and height before width."""
    crop = np.zeros((30, 50, 3), dtype=np.uint8)
    crop[..., 0] = 255
    found = prepare([crop], replace(shape, image_hw_px=(24, 64)), Resize.UINT8, CPU)
    assert found.shape == (1, 3, 24, 64)
    expected = [(value - mean) / std for value, mean, std in zip((1, 0, 0), CLIP_MEAN, CLIP_STD, strict=True)]
    assert found[0, :, 3, 3].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("size_hw_px", "fits"),
    [
        ((4000, 6000), True),
        ((11_000, 11_000), True),
        ((12_000, 12_000), False),
        ((100, 22_000), True),
        ((60_000, 50), False),
    ],
)
def test_what_is_too_large_for_the_kernel_of_a_gpu_is_known_before(size_hw_px: tuple[int, int], fits: bool):
    """Into 240 x 240 pixels: up to about 47 times the side of a square, more along one side alone."""
    assert _kernel_takes(size_hw_px, (240, 240)) is fits


@EVERY_DEVICE
def test_huge_crop_is_resized(shape: VisionShape, device: str):
    """A crop 60 times as large as the model's input, beyond a GPU's kernel, becomes what the CPU makes of it."""
    crop = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    found = prepare([crop], shape, Resize.UINT8, choose_device(device)).cpu()
    assert found == pytest.approx(prepare([crop], shape, Resize.UINT8, CPU), abs=1e-6)


@pytest.mark.parametrize(
    "crop", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_crop_of_another_kind_is_refused(shape: VisionShape, crop: np.ndarray):
    """A crop must be (h, w, 3) uint8 and not empty."""
    with pytest.raises(DetectorError, match=r"expected \(height, width, 3\) uint8"):
        prepare([crop], shape, Resize.UINT8, CPU)


def test_maps_are_upsampled_with_half_pixel_centres():
    """Upsampling equals torch's with align_corners=False: a step stays half way between two patches."""
    grid_map = np.array([[0.0, 1.0]], dtype=np.float32)
    assert upsample_map(grid_map, (1, 4))[0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    assert torch.from_numpy(upsample_map(grid_map, (3, 4))).shape == (3, 4)
