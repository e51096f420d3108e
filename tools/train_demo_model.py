#!/usr/bin/env python3
"""Trains the demo model: a tiny CLIP in open_clip's own format, on rendered parts that it sees with captions.

    train_demo_model.py --render     render the training pictures (resumes; shards under var/)
    train_demo_model.py --train      train, resuming from the last checkpoint
    train_demo_model.py --export     write inspectd/demo/model.{json,safetensors} in fp16
    train_demo_model.py --evaluate   print the table on parts of seeds that training never saw

Letters: B pictures, G groups (one product at one station, 4 good and 4 damaged pictures), W windows, P patches (225),
D width, E embedding. Everything about the detector follows WinCLIP (Jeong et al., CVPR 2023).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as nnf
from demo_parts import (
    DefectKind,
    PartKind,
    Pose,
    Render,
    render_empty,
    render_part,
    sample_pose,
    sample_product,
    sample_scene,
    vary_scene,
)
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "var" / "demo_model"
ASSETS = ROOT / "inspectd" / "demo"

HELD_OUT_KIND = PartKind.BRACKET
HELD_OUT_DEFECT = DefectKind.CONTAMINATION
TRAIN_KINDS = [k for k in PartKind if k is not HELD_OUT_KIND]
TRAIN_DEFECTS = [d for d in DefectKind if d is not HELD_OUT_DEFECT]
GROUP = 8
GOOD = 4
SHARD_GROUPS = 16
SIZE = 240
GRID = 15
TAU = 0.07
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 240, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}

NORMAL = ["{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage"]
ANOMALOUS = ["damaged {}", "{} with flaw", "{} with defect", "{} with damage"]
OTHER_NORMAL = ["good {}", "intact {}", "clean {}", "undamaged {}", "{} in good condition", "new {}"]
OTHER_ANOMALOUS = ["broken {}", "defective {}", "{} with scratch", "scratched {}", "dirty {}", "bad {}", "cracked {}", "{} with a hole"]
TEMPLATES = [
    f"{head} {article} {{}}."
    for head in []
    for article in []
]
for _article in ("a", "the"):
    for _look in ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry"):
        TEMPLATES.append(f"a {_look} photo of {_article} {{}}.")
TEMPLATES += [
    "a photo of a {}.", "a photo of the {}.",
    "a photo of a small {}.", "a photo of the small {}.",
    "a photo of a large {}.", "a photo of the large {}.",
    "a photo of a {} for visual inspection.", "a photo of the {} for visual inspection.",
    "a photo of a {} for anomaly detection.", "a photo of the {} for anomaly detection.",
]
SYNONYMS = {
    PartKind.WASHER: ["washer", "metal washer", "flat washer"],
    PartKind.RING: ["ring", "o-ring", "seal"],
    PartKind.GEAR: ["gear", "cogwheel", "gear wheel"],
    PartKind.NUT: ["hex nut", "nut", "metal nut"],
    PartKind.CAP: ["bottle cap", "cap", "lid"],
    PartKind.PLATE: ["plate", "mounting plate", "panel"],
    PartKind.BRACKET: ["bracket", "metal bracket", "angle bracket"],
    PartKind.PILL: ["capsule", "pill", "tablet"],
    PartKind.BUTTON: ["button", "coat button"],
    PartKind.CONNECTOR: ["connector", "socket", "plug"],
    PartKind.BEARING: ["bearing", "ball bearing"],
    PartKind.SCREW: ["screw head", "screw", "bolt"],
    PartKind.DISC: ["disc", "token", "coin"],
    PartKind.KNOB: ["knob", "handle", "star knob"],
}
GENERIC = ["part", "object", "item", "product", "component", "piece", "workpiece", "thing", "industrial part"]
NOUNS = [
    "bottle", "cable", "carpet", "grid", "hazelnut", "leather", "metal nut", "tile", "toothbrush", "transistor",
    "wood", "zipper", "circuit board", "candle", "cashew", "macaroni", "bracket", "tube", "box", "cup", "card",
    "spring", "pipe", "wheel", "tool", "toy", "valve", "housing", "sensor", "chip", "fuse", "lens", "pcb",
]


def import_open_clip():  # noqa: ANN201
    """Imports open_clip even where torchvision's compiled operators do not fit this torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_TORCHVISION_SCHEMAS"] = library
    import open_clip

    return open_clip


# --- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rendered picture with what is known about it."""

    render: Render
    kind: PartKind


def render_group(seed: int, kind: PartKind, defects: list[DefectKind], odd: bool = True) -> list[Sample]:
    """One product at one station: 4 good pictures, then 4 damaged ones, half of them twins of good ones."""
    rng = np.random.default_rng(seed)
    product, scene = sample_product(rng, kind), sample_scene(rng)
    samples: list[Sample] = []
    kept: list[tuple[Pose, int, object]] = []
    for index in range(GROUP):
        reach = 0.2 if odd and rng.random() < 0.1 else 0.07
        pose, noise, moment = sample_pose(rng, reach), int(rng.integers(2**31)), vary_scene(scene, rng)
        chosen: tuple[DefectKind, ...] = ()
        if index >= GOOD:
            if rng.random() < 0.5:
                pose, noise, moment = kept[int(rng.integers(len(kept)))]
            count = 2 if rng.random() < 0.15 else 1
            chosen = tuple(defects[int(i)] for i in rng.integers(len(defects), size=count))
        kept.append((pose, noise, moment))
        if odd and index < GOOD and rng.random() < 0.05:
            samples.append(Sample(render=render_empty(moment, SIZE, noise), kind=kind))
            continue
        if odd and index < GOOD and rng.random() < 0.04:
            pose = Pose(shift_xy=(float(rng.uniform(0.3, 0.7)) * (1 if rng.random() < 0.5 else -1), float(rng.uniform(-0.1, 0.1))), angle_rad=pose.angle_rad, scale=pose.scale)
        samples.append(Sample(render=render_part(product, moment, pose, SIZE, noise, chosen), kind=kind))
    return samples


def patch_counts(mask: np.ndarray) -> np.ndarray:
    """Damaged pixels in each patch: ``(15, 15) uint16``."""
    return mask.reshape(GRID, SIZE // GRID, GRID, SIZE // GRID).sum((1, 3)).astype(np.uint16)


def near_part(render: Render) -> np.ndarray:
    """The damage that a look at its surroundings can tell: what is gone far from any edge looks like bare belt."""
    grown = cv2.dilate(render.cover.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 21)))
    return render.mask & (grown > 0)


def render_shards(count: int, part: int, parts: int) -> None:
    """Renders shards ``part, part + parts, …`` that are not on disk yet; each appears by an atomic rename."""
    cv2.setNumThreads(1)
    folder = WORK / "shards2"
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(part, count, parts):
        path = folder / f"{shard:05d}.npz"
        if path.exists():
            continue
        samples: list[Sample] = []
        for g in range(SHARD_GROUPS):
            seed = shard * SHARD_GROUPS + g
            kind = TRAIN_KINDS[int(np.random.default_rng(seed + 10**8).integers(len(TRAIN_KINDS)))]
            samples += render_group(seed, kind, TRAIN_DEFECTS)
        np.save(folder / f"{shard:05d}.tmp.npy", np.stack([s.render.pixels_rgb for s in samples]))
        os.replace(folder / f"{shard:05d}.tmp.npy", folder / f"{shard:05d}.npy")
        temporary = folder / f"{shard:05d}.tmp.npz"
        np.savez(
            temporary,
            counts=np.stack([patch_counts(s.render.mask) for s in samples]),
            cores=np.stack([patch_counts(near_part(s.render)) for s in samples]),
            kinds=np.asarray([list(PartKind).index(s.kind) for s in samples], np.int64),
        )
        os.replace(temporary, path)


class Pictures:
    """The shards on disk, memory-mapped; new ones are taken in as they appear."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, int]] = []
        self.shards: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def refresh(self) -> None:
        """Takes in shards that appeared since the last call."""
        for path in sorted((WORK / "shards2").glob("?????.npz")):
            number = int(path.stem)
            if number in self.shards:
                continue
            data = np.load(path)
            grids = np.stack([data["counts"], data["cores"]], -1)
            self.shards[number] = (np.load(path.with_suffix(".npy"), mmap_mode="r"), grids, data["kinds"])
            self.groups += [(number, g) for g in range(SHARD_GROUPS)]

    def batch(self, rng: np.random.Generator, groups: int) -> tuple[Tensor, Tensor, list[PartKind]]:
        """``(B, 3, 240, 240)`` normalised float, ``(B, 15, 15, 2)`` damaged pixels (all, and near the part), one kind a group."""
        pixels = np.empty((groups * GROUP, SIZE, SIZE, 3), np.float32)
        counts, kinds = [], []
        for slot, pick in enumerate(rng.integers(len(self.groups), size=groups)):
            shard, g = self.groups[int(pick)]
            images, grids, labels = self.shards[shard]
            kinds.append(list(PartKind)[int(labels[g * GROUP])])
            colours = _group_colours(rng)
            for i in range(GROUP):
                turn, flip = int(rng.integers(4)), bool(rng.random() < 0.5)
                image, grid = np.rot90(images[g * GROUP + i], turn), np.rot90(grids[g * GROUP + i], turn)
                image, grid = (image[:, ::-1], grid[:, ::-1]) if flip else (image, grid)
                _develop(np.ascontiguousarray(image), colours, rng, pixels[slot * GROUP + i])
                counts.append(grid.astype(np.float32))
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return batch, torch.from_numpy(np.stack(counts)), kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """How one station sees: channel order, gain and gamma, the same for all pictures of a group."""

    order: tuple[int, ...]
    gain: float
    gamma: float


def _group_colours(rng: np.random.Generator) -> Colours:
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    return Colours(order=tuple(order.tolist()), gain=float(rng.uniform(0.8, 1.2)), gamma=float(rng.uniform(0.85, 1.2)))


def _develop(image: np.ndarray, colours: Colours, rng: np.random.Generator, out: np.ndarray) -> None:
    """Writes ``image (240, 240, 3) uint8`` as normalised floats: gain, gamma, channel order, noise."""
    gain = colours.gain * rng.uniform(0.95, 1.05)
    curve = np.clip(np.linspace(0, 1, 256) * gain, 0, 1) ** colours.gamma
    table = (curve[:, None] - np.asarray(MEAN)) / np.asarray(STD)
    np.copyto(out, cv2.LUT(image[..., list(colours.order)], table[:, None].astype(np.float32).reshape(1, 256, 3)))
    if rng.random() < 0.25:
        noise = np.empty((SIZE, SIZE), np.float32)
        cv2.randn(noise, 0, float(rng.uniform(0, 0.08)))
        out += noise[..., None]


# --- the model --------------------------------------------------------------------------------------------------


def _dct_filters(width: int, side: int) -> Tensor:
    """The lowest 2-D cosine waves as first filters, three of four for brightness, the rest for colour."""
    axis = (torch.arange(side) + 0.5) * math.pi / side
    order = sorted(((u, v) for u in range(side) for v in range(side)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))

    def waves(count: int) -> Tensor:
        planes = torch.stack([torch.outer(torch.cos(axis * u), torch.cos(axis * v)) for u, v in order[:count]])
        return planes / planes.flatten(1).norm(dim=1)[:, None, None]

    colour = (width // 8, width // 8)
    luma = waves(width - sum(colour))
    weights = torch.zeros(width, 3, side, side)
    weights[: len(luma)] = luma[:, None] * torch.tensor([0.58, 0.58, 0.58])[None, :, None, None]
    at = len(luma)
    for count, mix in zip(colour, ([0.7, 0.0, -0.7], [0.4, -0.8, 0.4]), strict=True):
        weights[at : at + count] = waves(count)[:, None] * torch.tensor(mix)[None, :, None, None]
        at += count
    return weights


def _sincos(width: int, side: int) -> Tensor:
    """A 2-D sine-cosine start for the position table, one row for CLS."""
    axis = torch.arange(side).float()
    rates = 1.0 / (30.0 ** (torch.arange(width // 4).float() / (width // 4)))
    waves = torch.outer(axis, rates)
    line = torch.cat([waves.sin(), waves.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([torch.zeros(1, width), torch.cat([rows, columns], 2).reshape(-1, width)])


def whiten(model: nn.Module, pixels: Tensor) -> None:
    """Scales the first filters so that each answers with unit spread to ``pixels (B, 3, 240, 240)``.

    Brightness outweighs fine detail a hundredfold in raw patches; the norm after it would keep detail small.
    """
    with torch.no_grad():
        answers = model.visual.conv1(pixels)
        spread = answers.std((0, 2, 3))
        model.visual.conv1.weight.div_((spread + 0.02 * spread.max())[:, None, None, None])


def build_model() -> nn.Module:
    """A fresh CLIP with a start that spares a short training its first epochs."""
    model = import_open_clip().model.CLIP(**CONFIG)
    visual = model.visual
    with torch.no_grad():
        visual.conv1.weight.copy_(_dct_filters(visual.conv1.out_channels, 16))
        visual.positional_embedding.copy_(_sincos(visual.conv1.out_channels, GRID) * 0.5)
    return model


def _heads(rows: Tensor, heads: int) -> Tensor:
    n, length, width = rows.shape
    return rows.reshape(n, length, heads, width // heads).transpose(1, 2)


def _packed_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, pack: int) -> Tensor:
    """Attention of many tiny sequences, ``pack`` of them side by side under a block-diagonal mask (exact)."""
    n, length, width = q.shape
    q, k, v = (_heads(t.reshape(n // pack, pack * length, width), heads) for t in (q, k, v))
    blocks = torch.block_diag(*[torch.ones(length, length)] * pack)
    bias = torch.where(blocks > 0, 0.0, float("-inf")).to(q.dtype)
    weights = (q * (width // heads) ** -0.5 @ k.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(n, length, width)


def _first_row_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of one query a sequence, elementwise: ``q (n, 1, D)``."""
    n, length, width = k.shape
    q, k, v = (t.reshape(n, -1, heads, width // heads) for t in (q, k, v))
    weights = ((q * k).sum(-1) * (width // heads) ** -0.5).softmax(1)
    return (weights[..., None] * v).sum(1).reshape(n, 1, width)


def _block(block: nn.Module, x: Tensor, pack: int = 1, cls_only: bool = False) -> Tensor:
    """One residual block; with ``cls_only`` just the first row of its result, K and V of all."""
    width, heads = x.shape[-1], block.attn.num_heads
    y = block.ln_1(x)
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    if cls_only:
        q = nnf.linear(y[:, :1], weight[:width], bias[:width])
        k, v = nnf.linear(y, weight[width:], bias[width:]).chunk(2, -1)
        mixed, x = _first_row_attention(q, k, v, heads), x[:, :1]
    else:
        q, k, v = nnf.linear(y, weight, bias).chunk(3, -1)
        if pack > 1:
            mixed = _packed_attention(q, k, v, heads, pack)
        else:
            mixed = nnf.scaled_dot_product_attention(_heads(q, heads), _heads(k, heads), _heads(v, heads))
            mixed = mixed.transpose(1, 2).reshape(x.shape)
    x = x + nnf.linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias)
    return x + block.mlp(block.ln_2(x))


def embed_tokens(model: nn.Module, pixels: Tensor) -> Tensor:
    """``t = ln_pre(cls, patches + positions)``: ``(B, 1 + P, D)``."""
    visual = model.visual
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(patches.dtype).expand(len(pixels), 1, -1)
    return visual.ln_pre(torch.cat([cls, patches], 1) + visual.positional_embedding.to(patches.dtype))


def encode_whole(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Image embedding ``(B, E)`` and patch features ``(B, P, D)``, both float32 and normalised."""
    x = tokens
    for block in model.visual.transformer.resblocks:
        x = _block(block, x)
    y = model.visual.ln_post(x)
    return nnf.normalize((y[:, 0] @ model.visual.proj).float(), dim=-1), nnf.normalize(y[:, 1:].float(), dim=-1)


def encode_windows(model: nn.Module, tokens: Tensor, index: Tensor) -> Tensor:
    """Window embeddings ``(B, W, E)``; ``index (B, W, k²)`` counts patches from 0."""
    b, w, k2 = index.shape
    rows = (index + 1).reshape(b, w * k2, 1).expand(-1, -1, tokens.shape[-1])
    patches = tokens.gather(1, rows).reshape(b * w, k2, -1)
    cls = tokens[:, :1].expand(-1, w, -1).reshape(b * w, 1, -1)
    x = torch.cat([cls, patches], 1)
    *blocks, last = model.visual.transformer.resblocks
    for block in blocks:
        x = _block(block, x, pack=8 if k2 == 4 else 4)
    y = model.visual.ln_post(_block(last, x, cls_only=True))
    return nnf.normalize((y[:, 0] @ model.visual.proj).float(), dim=-1).reshape(b, w, -1)


def window_table(scale: int) -> Tensor:
    """``(W, k²)`` patch numbers of every window, row-major."""
    numbers = torch.arange(GRID * GRID).reshape(GRID, GRID)
    return numbers.unfold(0, scale, 1).unfold(1, scale, 1).reshape(-1, scale * scale)


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Normalised text embeddings ``(n, E)``; the causal tower makes cutting after the last end token exact."""
    length = int(tokens.argmax(-1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    heads = model.transformer.resblocks[0].attn.num_heads
    for block in model.transformer.resblocks:
        y = block.ln_1(x)
        q, k, v = nnf.linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        q, k, v = (t.reshape(len(x), length, heads, -1).transpose(1, 2) for t in (q, k, v))
        mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(len(x), length, -1)
        x = x + nnf.linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias)
        x = x + block.mlp(block.ln_2(x))
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)]
    return nnf.normalize((x @ model.text_projection).float(), dim=-1)


# --- training ---------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """What only training needs: a linear look at patches and the scale of the association distance."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(CONFIG["vision_cfg"]["width"], 1)
        self.sharpness = nn.Parameter(torch.tensor(20.0))
        self.middle = nn.Parameter(torch.tensor(0.15))
        nn.init.normal_(self.patch.weight, std=1.0)


class Prompts:
    """Tokenised prompts by sentence."""

    def __init__(self) -> None:
        self.tokenize = import_open_clip().get_tokenizer("ViT-B-32")
        self.known: dict[str, Tensor] = {}

    def tokens(self, sentences: list[str]) -> Tensor:
        new = [s for s in dict.fromkeys(sentences) if s not in self.known]
        if new:
            self.known.update(zip(new, self.tokenize(new), strict=True))
        return torch.stack([self.known[s] for s in sentences])


def sentences(name: str, states: list[str]) -> list[str]:
    """Every state in every template."""
    return [template.format(state.format(name)) for state in states for template in TEMPLATES]


def _draw(rng: np.random.Generator, name: str, states: list[str], others: list[str], count: int) -> list[str]:
    chosen = []
    for _ in range(count):
        pool = others if rng.random() < 0.1 else states
        state = pool[int(rng.integers(len(pool)))]
        chosen.append(TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(state.format(name)))
    return chosen


def _name(rng: np.random.Generator, kind: PartKind) -> str:
    roll = rng.random()
    pool = SYNONYMS[kind] if roll < 0.6 else GENERIC if roll < 0.8 else NOUNS
    return pool[int(rng.integers(len(pool)))]


def _state_logit(z: Tensor, normal: Tensor, anomalous: Tensor) -> Tensor:
    """``log odds`` of the anomalous class at WinCLIP's temperature; ``z (G, n, E)``, texts ``(G, E)``."""
    return (z * (anomalous - normal)[:, None]).sum(-1) / TAU


def _weighted_bce(logit: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy in which damaged and clean weigh the same, and what is still wrong weighs most.

    Without the latter the mass of bare belt, soon learnt, drowns the clean part beside a defect.
    """
    loss = nnf.binary_cross_entropy_with_logits(logit, label, reduction="none")
    hard = valid * (1.05 - torch.exp(-loss.detach()))
    positive, negative = hard * label, hard * (1 - label)
    return 0.5 * ((loss * positive).sum() / positive.sum().clamp_min(1e-3) + (loss * negative).sum() / negative.sum().clamp_min(1e-3))


def _pick_windows(counts: Tensor, cores: Tensor, scale: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Window patch numbers ``(B, n, k²)``, labels and validity ``(B, n)``: up to half of them damaged."""

    def summed(grid: Tensor) -> Tensor:
        return nnf.avg_pool2d(grid[:, None], scale, 1).flatten(1) * scale * scale

    damaged, core = summed(counts), summed(cores)
    positive, negative = core >= 14, damaged == 0
    weight = torch.full_like(core, 1e-6)
    weight += positive * (0.5 / positive.sum(1, keepdim=True).clamp_min(1))
    near = nnf.max_pool2d(damaged.reshape(len(counts), 1, 16 - scale, 16 - scale), 5, 1, 2).flatten(1) > 0
    weight += (negative & near) * (0.2 / (negative & near).sum(1, keepdim=True).clamp_min(1))
    weight += negative * (0.5 / negative.sum(1, keepdim=True).clamp_min(1))
    picks = torch.multinomial(weight, number)
    label = positive.gather(1, picks).float()
    return window_table(scale)[picks], label, label + negative.gather(1, picks).float()


def _association(features: Tensor, bad: Tensor, rng: np.random.Generator) -> Tensor:
    """Distance of every patch to the nearest patch of other good pictures of its group: ``(B, P)``."""
    grouped = features.reshape(-1, GROUP, *features.shape[1:])
    distances = []
    for i in range(GROUP):
        others = [j for j in range(GOOD) if j != i]
        picks = rng.choice(others, int(rng.integers(1, 4)), replace=False).tolist()
        references = grouped[:, picks].flatten(1, 2)
        similarity = torch.bmm(grouped[:, i], references.transpose(1, 2))
        distances.append(0.5 * (1 - similarity.amax(-1)))
    return torch.stack(distances, 1).flatten(0, 1)


def losses(
    model: nn.Module, heads: Heads, prompts: Prompts, batch: tuple[Tensor, Tensor, list[PartKind]], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Every term of the objective on one batch."""
    pixels, grids, kinds = batch
    counts, cores = grids.unbind(-1)
    total = counts.flatten(1).sum(1)
    bad = (total > 0).float()
    names = [_name(rng, kind) for kind in kinds]
    normal_n, anomalous_n = 14, 12
    lines = [s for name in names for s in _draw(rng, name, NORMAL, OTHER_NORMAL, normal_n) + _draw(rng, name, ANOMALOUS, OTHER_ANOMALOUS, anomalous_n)]
    captions = []
    for i, is_bad in enumerate(bad.tolist()):
        name = SYNONYMS[kinds[i // GROUP]][int(rng.integers(len(SYNONYMS[kinds[i // GROUP]])))]
        captions += _draw(rng, name, ANOMALOUS if is_bad else NORMAL, ANOMALOUS if is_bad else NORMAL, 1)
    with torch.autocast("cpu", torch.bfloat16):
        texts = encode_text(model, prompts.tokens(lines + captions))
        tokens = embed_tokens(model, pixels)
        image, features = encode_whole(model, tokens)
        picked = {k: _pick_windows(counts, cores, k, n) for k, n in ((2, 16), (3, 8))}
        windows = {k: encode_windows(model, tokens, picked[k][0]) for k in picked}
    caption_emb = texts[len(lines) :]
    pools = texts[: len(lines)].reshape(len(kinds), normal_n + anomalous_n, -1)
    normal = nnf.normalize(pools[:, :normal_n].mean(1), dim=-1)
    anomalous = nnf.normalize(pools[:, normal_n:].mean(1), dim=-1)
    out: dict[str, Tensor] = {}
    logit = _state_logit(image.reshape(len(kinds), GROUP, -1), normal, anomalous).flatten()
    out["image"] = nnf.binary_cross_entropy_with_logits(logit, bad)
    for k, embedding in windows.items():
        z = embedding.reshape(len(kinds), -1, embedding.shape[-1])
        out[f"window{k}"] = _weighted_bce(_state_logit(z, normal, anomalous).reshape(len(pixels), -1), picked[k][1], picked[k][2])
    damaged, core = counts.flatten(1), cores.flatten(1)
    label, valid = (core >= 6).float(), ((core >= 6) | (damaged == 0)).float()
    out["patch"] = _weighted_bce(heads.patch(features)[..., 0] * 3, label, valid)
    distance = _association(features, bad, rng)
    sharp = heads.sharpness.clamp(5, 60)
    out["assoc"] = _weighted_bce((distance - heads.middle) * sharp, label, valid)
    out["assoc_max"] = nnf.binary_cross_entropy_with_logits((distance.amax(1) - heads.middle) * sharp, bad)
    similarity = image @ caption_emb.T * model.logit_scale.exp().clamp(max=50)
    group = torch.arange(len(pixels)) // GROUP
    kind_id = torch.tensor([list(PartKind).index(k) for k in kinds])[group]
    same = ((kind_id[:, None] == kind_id[None]) & (bad[:, None] == bad[None])).float()
    target = same / same.sum(1, keepdim=True)
    out["clip"] = 0.5 * (nnf.cross_entropy(similarity, target) + nnf.cross_entropy(similarity.T, target))
    out["accuracy"] = ((logit > 0).float() == bad).float().mean().detach()
    return out


WEIGHTS = {"image": 1.5, "window2": 0.8, "window3": 0.8, "patch": 0.6, "assoc": 0.4, "assoc_max": 0.3, "clip": 0.15}


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix steps are made orthogonal (Jordan et al., 2024): fewer steps for small transformers."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                held = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                held.lerp_(parameter.grad, 1 - group["momentum"])
                update = _orthogonal(parameter.grad.lerp(held, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest half-orthogonal matrix."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()


def _optimizers(model: nn.Module, heads: Heads, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else; both take rates of AdamW's size."""
    matrices, plain = [], []
    for name, parameter in [*model.named_parameters(), *heads.named_parameters()]:
        (matrices if parameter.ndim == 2 and "resblocks" in name else plain).append(parameter)
    return [
        Muon(matrices, lr=peak, weight_decay=0.05),
        torch.optim.AdamW(plain, lr=peak, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(progress: float, step: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / 150)
    return peak * warm * (0.5 * (1 + math.cos(math.pi * min(progress, 1.0))) * 0.99 + 0.01)


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Writes beside and renames: a kill leaves the old checkpoint or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _average(parameters: list[nn.Parameter], extra: float) -> float:
    """Averages gradients over the processes in one message; ``extra`` travels along and is averaged too."""
    flat = torch.cat([p.grad.flatten() for p in parameters] + [torch.tensor([extra])])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    at = 0
    for parameter in parameters:
        parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
    return float(flat[-1])


def train(rank: int, workers: int, port: int, minutes: float, groups: int, peak: float) -> None:
    """One of ``workers`` processes of one thread each: trains until ``minutes`` are used up over all resumed runs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    model, heads, prompts, pictures = build_model(), Heads(), Prompts(), Pictures()
    optimizers = _optimizers(model, heads, peak)
    parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    path = WORK / "checkpoint.pt"
    step, used_s = 0, 0.0
    pictures.refresh()
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, used_s = state["step"], state["used_s"]
        print(f"resumed at step {step}, {used_s / 60:.1f} min used", flush=True)
    else:
        whiten(model, pictures.batch(np.random.default_rng(0), 12)[0])
    rng = np.random.default_rng([step, rank])
    torch.manual_seed(step * workers + rank)
    seen: dict[str, float] = {}
    last = saved = time.monotonic()
    model.train()
    while used_s < minutes * 60:
        if step % 50 == 0:
            pictures.refresh()
        lr = _rate(used_s / (minutes * 60), step, peak)
        for group in [g for optimizer in optimizers for g in optimizer.param_groups]:
            group["lr"] = lr
        terms = losses(model, heads, prompts, pictures.batch(rng, groups), rng)
        loss = sum(terms[name] * weight for name, weight in WEIGHTS.items())
        loss.backward()
        now = time.monotonic()
        used_s, last = _average(parameters, used_s + now - last), now
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        for name, value in terms.items():
            seen[name] = 0.98 * seen.get(name, float(value.detach())) + 0.02 * float(value.detach())
        if rank == 0 and step % 25 == 0:
            text = " ".join(f"{n}={v:.3f}" for n, v in seen.items())
            print(f"{step} {used_s / 60:.1f}min lr={lr:.2e} groups={len(pictures.groups)} {text}", flush=True)
        if rank == 0 and (now - saved > 120 or used_s >= minutes * 60):
            kept = [o.state_dict() for o in optimizers]
            save_checkpoint(path, {"model": model.state_dict(), "heads": heads.state_dict(), "optimizers": kept, "step": step, "used_s": used_s})
            saved = now
    if rank == 0:
        print(f"trained {step} steps in {used_s / 60:.1f} min", flush=True)
    torch.distributed.destroy_process_group()


def start_training(workers: int, minutes: float, groups: int, peak: float) -> None:
    """Trains in ``workers`` processes, ``groups`` products a step in each."""
    WORK.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train, (workers, port, minutes, groups, peak), nprocs=workers)


def export(folder: Path) -> None:
    """Writes the checkpoint's model in open_clip's format: ``model.json`` and fp16 ``model.safetensors``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(WORK / "checkpoint.pt", weights_only=True)["model"]
    halves = {name: value.half().contiguous() for name, value in state.items()}
    temporary = folder / "model.safetensors.tmp"
    save_file(halves, temporary)
    os.replace(temporary, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--products", type=int, default=52)
    arguments = parser.parse_args()
    if arguments.render:
        render_shards(arguments.shards, arguments.part, arguments.parts)
    if arguments.train:
        start_training(arguments.workers, arguments.minutes, arguments.groups, arguments.rate)
    if arguments.export:
        export(arguments.assets)
    if arguments.evaluate:
        sys.path.insert(0, str(ROOT))
        from demo_evaluation import evaluate, print_table

        folder = arguments.assets
        table, _ = evaluate(folder / "model.safetensors", folder / "model.json", arguments.products, HELD_OUT_KIND, HELD_OUT_DEFECT, WORK / "cache")
        print_table(table)


if __name__ == "__main__":
    main()
