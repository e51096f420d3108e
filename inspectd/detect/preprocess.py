"""From crops as they come to what the model is given.

Letters: N crops, H and W the model's input in pixels, h and w a crop's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inspectd.detect.architecture import VisionShape
from inspectd.detect.upload import uploaded
from inspectd.errors import DetectorError

_KERNEL_BYTES = 48 * 1024
"""Shared memory that any CUDA device gives a block of threads."""


class Resize(StrEnum):
    """How a crop is brought to the model's size; always bicubic and antialiased, always squashed."""

    UINT8 = "uint8"
    """Rounded to grey levels, as PIL does it (and as CLIP was trained)."""
    FLOAT = "float"
    """Neither rounded nor clamped, as anomalib does it."""


def prepare(crops_rgb: Sequence[NDArray[np.uint8]], shape: VisionShape, resize: Resize, device: torch.device) -> Tensor:
    """Crops `(h, w, 3) uint8` RGB of any sizes -> `(N, 3, H, W) float32`, CLIP-normalised, on `device`.

    Raises:
        DetectorError: a crop of another shape or type.
    """
    return normalised(squashed(crops_rgb, shape, resize, device), shape)


def squashed(
    crops_rgb: Sequence[NDArray[np.uint8]], shape: VisionShape, resize: Resize, device: torch.device
) -> Tensor:
    """Crops as `prepare` takes them -> grey levels `(N, 3, H, W)`, uint8 or float32, on `device`.

    Raises:
        DetectorError: a crop of another shape or type.
    """
    return torch.cat([_resized(_checked(crop), shape.image_hw_px, resize, device) for crop in crops_rgb])


def normalised(grey: Tensor, shape: VisionShape) -> Tensor:
    """Grey levels `(N, 3, H, W)` as CLIP was trained on them, float32."""
    mean, std = _statistics(shape.mean, shape.std, grey.device)
    return (grey.to(torch.float32) / 255 - mean) / std


@cache
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Brought to the device once: a device need not be waited for where it is used."""
    return torch.tensor(mean, device=device).view(1, 3, 1, 1), torch.tensor(std, device=device).view(1, 3, 1, 1)


def _checked(crop_rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if crop_rgb.ndim != 3 or crop_rgb.shape[2] != 3 or crop_rgb.dtype != np.uint8 or not crop_rgb.size:
        raise DetectorError(f"a crop is {crop_rgb.shape} {crop_rgb.dtype}, expected (height, width, 3) uint8 RGB")
    return np.ascontiguousarray(crop_rgb)


def _resized(crop_rgb: NDArray[np.uint8], size_hw_px: tuple[int, int], resize: Resize, device: torch.device) -> Tensor:
    size = crop_rgb.shape[:2]
    if device.type == "cuda" and not _kernel_takes(size, size_hw_px):
        return uploaded(_resized(crop_rgb, size_hw_px, resize, torch.device("cpu")), device)
    crop = uploaded(torch.from_numpy(crop_rgb), device).permute(2, 0, 1)[None]
    if size == size_hw_px:
        return crop
    if resize is Resize.FLOAT:
        return _bicubic(crop.to(torch.float32), size_hw_px)
    if device.type == "cpu":
        return _bicubic(crop, size_hw_px)  # torch's uint8 path is PIL's arithmetic
    return _bicubic(crop.to(torch.float32), size_hw_px).round_().clamp_(0, 255).to(torch.uint8)


def _kernel_takes(size_hw_px: tuple[int, ...], into_hw_px: tuple[int, int]) -> bool:
    """Whether torch's antialiased CUDA kernel can shrink so much: each block keeps its weights in shared memory.

    Of 32 columns and one row, in fp32 (`upsample_gen2d_aa_out_frame` in ATen's UpSampleBilinear2d.cu). A square is too
    large from about 47 times the model's side; torch then raises an error that is like any other.
    """
    down, across = (
        2 * math.ceil(2 * max(1.0, side / into)) + 1 for side, into in zip(size_hw_px, into_hw_px, strict=True)
    )
    return 4 * (32 * across + 33 * down) <= _KERNEL_BYTES


def _bicubic(crop: Tensor, size_hw_px: tuple[int, int]) -> Tensor:
    return functional.interpolate(crop, size_hw_px, mode="bicubic", align_corners=False, antialias=True)


def upsample_map(grid_map: NDArray[np.float32], size_hw_px: tuple[int, int]) -> NDArray[np.float32]:
    """A map at the grid's resolution brought to `(h, w)` pixels: bilinear, corners not aligned."""
    whole = torch.from_numpy(np.ascontiguousarray(grid_map, dtype=np.float32))[None, None]
    upsampled = functional.interpolate(whole, size_hw_px, mode="bilinear", align_corners=False)
    result: NDArray[np.float32] = upsampled[0, 0].numpy()
    return result
