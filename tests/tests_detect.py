"""Small models for the detector's tests: the golden one where it is there, and random ones in open_clip's format."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inspectd.detect.architecture import Architecture, read_architecture
from inspectd.detect.build import choose_device
from inspectd.detect.checkpoint import Checkpoint
from inspectd.detect.clip import VisionTower
from inspectd.detect.gemm import Precision, has_int8
from inspectd.detect.identity import Facts
from inspectd.detect.options import WinclipConfig
from inspectd.detect.reuse import ReuseRule
from inspectd.detect.winclip import Detector

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
CPU = torch.device("cpu")
NEEDS_INT8 = pytest.mark.skipif(not has_int8(), reason="this processor has no VNNI for products of bytes")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
ON_CUDA = [pytest.mark.gpu, NEEDS_CUDA]
"""The marks of a case that needs a CUDA device."""
EVERY_DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
FACTS = Facts(
    detector="winclip",
    backbone="tiny",
    weights_sha256="0" * 64,
    precision="fp32",
    architecture={},
    config={},
    prompts={},
    view={},
)


def block_shapes(prefix: str, width: int, hidden: int, *, layer_scale: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one residual block in open_clip's format."""
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (hidden, width),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (width, hidden),
        "mlp.c_proj.bias": (width,),
    }
    shapes |= {f"{name}.{kind}": (width,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    if layer_scale:
        shapes |= {"ls_1.gamma": (width,), "ls_2.gamma": (width,)}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def random_state(written: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights for a model config."""
    vision, text, embedding = written["vision_cfg"], written["text_cfg"], written["embed_dim"]
    width, patch, size = vision["width"], vision["patch_size"], vision["image_size"]
    sides = [size, size] if isinstance(size, int) else size
    patches = (sides[0] // patch) * (sides[1] // patch)
    shapes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (patches + 1, width),
        "visual.ln_post.weight": (width,),
        "visual.ln_post.bias": (width,),
        "visual.proj": (width, embedding),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        "positional_embedding": (text["context_length"], text["width"]),
        "ln_final.weight": (text["width"],),
        "ln_final.bias": (text["width"],),
        "text_projection": (text["width"], embedding),
        "logit_scale": (),
    }
    if not vision.get("no_ln_pre"):
        shapes |= {"visual.ln_pre.weight": (width,), "visual.ln_pre.bias": (width,)}
    for name, tower in (("visual.transformer", vision), ("transformer", text)):
        scaled = tower.get("ls_init_value") is not None
        for index in range(tower["layers"]):
            hidden = int(tower["width"] * tower.get("mlp_ratio", 4.0))
            shapes |= block_shapes(f"{name}.resblocks.{index}", tower["width"], hidden, layer_scale=scaled)
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        scale = noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)
        return scale + (1.0 if "ln_" in name and name.endswith("weight") else 0.0)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def model_config(**changes: object) -> dict:
    """A small model config: 8 px patches on 40 px, grid 5."""
    vision = {"image_size": 40, "patch_size": 8, "layers": 3, "width": 32, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    written = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    for key, value in changes.items():
        (written if key == "quick_gelu" else vision)[key] = value
    return written


def write_model(folder: Path, name: str = "small", seed: int = 0, **changes: object) -> tuple[Path, Path]:
    """A model config and random weights: `(config, weights)`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = model_config(**changes)
    config, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    config.write_text(json.dumps(written))
    save_file(random_state(written, seed), weights)
    return config, weights


def open_tower(
    config: Path, weights: Path, precision: Precision = Precision.FP32, *, device: str = "cpu"
) -> VisionTower:
    """The image tower of a pair of files."""
    shape = read_architecture("x", config).vision
    return VisionTower(Checkpoint(weights), shape, device=choose_device(device), precision=precision)


def small_detector(
    folder: Path,
    precision: Precision = Precision.FP32,
    *,
    device: str = "cpu",
    reuse: ReuseRule | None = None,
    frames_per_pass: int | None = None,
    **settings: Any,
) -> Detector:
    """A detector on random weights; further keyword arguments are `WinclipConfig`'s.

    `frames_per_pass`: how many frames with all their windows a pass takes; by default far more than a test has.
    """
    tower = open_tower(*write_model(folder / "model"), precision, device=device)
    text = torch.randn(2, tower.shape.embedding, generator=torch.Generator().manual_seed(4))
    detector = Detector(tower, text, WinclipConfig(**settings), facts=FACTS, reuse=reuse)
    if frames_per_pass is not None:
        detector._tokens_per_pass = frames_per_pass * detector._tokens_of_frame(windows=True)
    return detector


def some_crops(count: int, seed: int = 3) -> list[np.ndarray]:
    """Crops `(h, w, 3) uint8` of different sizes."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (48 + 7 * at, 64 - 3 * at, 3), dtype=np.uint8) for at in range(count)]


@dataclass(frozen=True)
class Golden:
    """The golden model and what anomalib computed with it (permute neutralised), stage by stage."""

    architecture: Architecture
    weights: Path
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def tower(self, precision: Precision = Precision.FP32, *, device: str = "cpu", **changes: Any) -> VisionTower:
        """The image tower; `changes` falsify its shape."""
        shape = replace(self.architecture.vision, **changes)
        return VisionTower(Checkpoint(self.weights), shape, device=choose_device(device), precision=precision)

    def detector(self, tower: VisionTower, **settings: Any) -> Detector:
        """A zero-shot detector with the golden pair of text vectors."""
        return Detector(tower, self["text"], WinclipConfig(**settings), facts=FACTS)


def golden() -> Golden:
    """The golden values; skips the test where they are not there."""
    if not (GOLDEN / "winclip_4shot.npz").is_file():
        pytest.skip(f"golden values are not in {GOLDEN}")
    with np.load(GOLDEN / "winclip_4shot.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if name != "meta"}
    architecture = read_architecture("tiny", GOLDEN / "tiny-winclip-240.json")
    return Golden(architecture, GOLDEN / "tiny-winclip-240.safetensors", arrays)
