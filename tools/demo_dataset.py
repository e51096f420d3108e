"""The training pictures: rendered once into shards on disk, memory-mapped, changed a little each time they are seen.

A *group* is one product at one station: 4 good pictures, then 4 damaged ones, half of them twins of good ones. Letters:
B pictures, G groups of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from demo_defects import DefectKind
from demo_parts import (
    Pose,
    Product,
    Render,
    render_empty,
    render_part,
    sample_pose,
    sample_product,
)
from demo_shapes import PartKind
from demo_station import Scene, sample_scene, vary_scene
from numpy.typing import NDArray
from torch import Tensor

GROUP = 8
GOOD = 4
SIZE_PX = 240
GRID = 15
SHARD_GROUPS = 16
HELD_OUT_KIND = PartKind.BRACKET
HELD_OUT_DEFECT = DefectKind.CONTAMINATION
KINDS = [kind for kind in PartKind if kind is not HELD_OUT_KIND]
DEFECTS = [defect for defect in DefectKind if defect is not HELD_OUT_DEFECT]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Shard = tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """Everything that makes one picture of a product."""

    pose: Pose
    noise_seed: int
    scene: Scene


def render_group(seed: int, kind: PartKind) -> list[Render]:
    """The pictures of one product; the same seed gives the same pictures."""
    rng = np.random.default_rng(seed)
    product = sample_product(rng, kind)
    scene = sample_scene(rng, product.base.rgb)
    good = [_shot(rng, scene) for _ in range(GOOD)]
    pictures = [_render_good(rng, product, shot) for shot in good]
    for _ in range(GROUP - GOOD):
        shot = good[int(rng.integers(GOOD))] if rng.random() < 0.5 else _shot(rng, scene)
        count = 2 if rng.random() < 0.15 else 1
        chosen = tuple(DEFECTS[int(i)] for i in rng.integers(len(DEFECTS), size=count))
        pictures.append(_photograph(product, shot, chosen))
    return pictures


def _shot(rng: np.random.Generator, scene: Scene) -> Shot:
    reach = 0.1 if rng.random() < 0.15 else 0.05
    return Shot(pose=sample_pose(rng, reach), noise_seed=int(rng.integers(2**31)), scene=vary_scene(scene, rng))


def _photograph(product: Product, shot: Shot, defects: tuple[DefectKind, ...] = ()) -> Render:
    return render_part(product, shot.scene, shot.pose, size_px=SIZE_PX, seed=shot.noise_seed, defects=defects)


def _render_good(rng: np.random.Generator, product: Product, shot: Shot) -> Render:
    """Mostly the whole part; sometimes a bare belt or a part that is just coming in."""
    roll, pose = rng.random(), shot.pose
    if roll < 0.05:
        return render_empty(shot.scene, SIZE_PX, shot.noise_seed)
    if roll < 0.09:
        side = 1 if rng.random() < 0.5 else -1
        shift = (side * float(rng.uniform(0.3, 0.7)), float(rng.uniform(-0.1, 0.1)))
        pose = Pose(shift_xy=shift, angle_rad=pose.angle_rad, scale=pose.scale)
    return _photograph(product, replace(shot, pose=pose))


def near_part(render: Render) -> NDArray[np.bool_]:
    """The damage that a look at its surroundings can tell: what is gone far from any edge looks like bare belt."""
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 21))
    return render.mask & (cv2.dilate(render.cover.astype(np.uint8), reach) > 0)


def _patch_counts(mask: NDArray[np.bool_]) -> NDArray[np.uint16]:
    cells = mask.reshape(GRID, SIZE_PX // GRID, GRID, SIZE_PX // GRID)
    counts: NDArray[np.uint16] = cells.sum((1, 3)).astype(np.uint16)
    return counts


def render_shards(folder: Path, count: int, part: int, parts: int) -> None:
    """Renders shards ``part, part + parts, …`` that are not on disk yet; each appears by an atomic rename."""
    cv2.setNumThreads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(part, count, parts):
        if not (folder / f"{number:05d}.npz").exists():
            _render_shard(folder, number)
            print(f"shard {number + 1} of {count}", flush=True)


def _render_shard(folder: Path, number: int) -> None:
    seeds = range(number * SHARD_GROUPS, (number + 1) * SHARD_GROUPS)
    kinds = [KINDS[int(np.random.default_rng(10**8 + seed).integers(len(KINDS)))] for seed in seeds]
    pictures = [picture for seed, kind in zip(seeds, kinds, strict=True) for picture in render_group(seed, kind)]
    pixels, labels = folder / f"{number:05d}.tmp.npy", folder / f"{number:05d}.tmp.npz"
    np.save(pixels, np.stack([picture.pixels_rgb for picture in pictures]))
    np.savez(
        labels,
        damaged=np.stack([_patch_counts(picture.mask) for picture in pictures]),
        near=np.stack([_patch_counts(near_part(picture)) for picture in pictures]),
        kinds=np.asarray([list(PartKind).index(kind) for kind in kinds], np.int64),
    )
    pixels.replace(folder / f"{number:05d}.npy")
    labels.replace(folder / f"{number:05d}.npz")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """``pixels (B, 3, 240, 240)`` CLIP-normalised; damaged pixels of each patch, all and near the part ``(B, P)``."""

    pixels: Tensor
    damaged: Tensor
    near: Tensor
    kinds: list[PartKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """How one station sees: gain and gamma, the same for all pictures of a group."""

    gain: float
    gamma: float


class Pictures:
    """The shards on disk; new ones are taken in as they appear."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[int, Shard] = {}

    def refresh(self) -> int:
        """Takes in shards that appeared since the last call; returns the number of groups."""
        for path in sorted(self._folder.glob("?????.npz")):
            if int(path.stem) not in self._shards:
                data = np.load(path)
                counts = np.stack([data["damaged"], data["near"]], -1)
                self._shards[int(path.stem)] = (np.load(path.with_suffix(".npy"), mmap_mode="r"), counts, data["kinds"])
        return len(self._shards) * SHARD_GROUPS

    def batch(self, rng: np.random.Generator, groups: int) -> Batch:
        """Random groups, each picture turned, mirrored, and developed anew."""
        pixels = np.empty((groups * GROUP, SIZE_PX, SIZE_PX, 3), np.float32)
        numbers = list(self._shards)
        counts, kinds = [], []
        for slot in range(groups):
            images, grids, labels = self._shards[numbers[int(rng.integers(len(numbers)))]]
            group = int(rng.integers(SHARD_GROUPS))
            kinds.append(list(PartKind)[int(labels[group])])
            colours = _group_colours(rng)
            for i in range(GROUP):
                turn, mirror = int(rng.integers(4)), int(rng.choice([1, -1]))
                image = np.rot90(images[group * GROUP + i], turn)[:, ::mirror]
                counts.append(np.rot90(grids[group * GROUP + i], turn)[:, ::mirror].astype(np.float32))
                _develop(np.ascontiguousarray(image), colours, rng, pixels[slot * GROUP + i])
        damaged, near = torch.from_numpy(np.stack(counts)).flatten(1, 2).unbind(-1)
        return Batch(pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2), damaged=damaged, near=near, kinds=kinds)


def _group_colours(rng: np.random.Generator) -> Colours:
    return Colours(gain=float(rng.uniform(0.9, 1.1)), gamma=float(rng.uniform(0.9, 1.1)))


def _develop(image: NDArray[np.uint8], colours: Colours, rng: np.random.Generator, out: NDArray[np.float32]) -> None:
    """Writes ``image (240, 240, 3)`` as normalised floats: gain and gamma."""
    gain = colours.gain * rng.uniform(0.95, 1.05)
    curve = np.clip(np.linspace(0, 1, 256) * gain, 0, 1) ** colours.gamma
    table = ((curve[:, None] - np.asarray(MEAN)) / np.asarray(STD)).astype(np.float32)
    np.copyto(out, cv2.LUT(image, table.reshape(1, 256, 3)))
