"""The shape of a CLIP model, read from open_clip's model config (JSON): by name from open_clip, or from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inspectd.detect.gemm import Activation
from inspectd.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """What both transformers have."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation
    eps: float
    layer_scale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape(TowerShape):
    """A ViT with a CLS token."""

    embedding: int
    image_hw_px: tuple[int, int]
    patch_hw_px: tuple[int, int]
    pre_norm: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_hw_px[0] // self.patch_hw_px[0], self.image_hw_px[1] // self.patch_hw_px[1]

    @property
    def patch_count(self) -> int:
        """P."""
        return self.grid_hw[0] * self.grid_hw[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape(TowerShape):
    """A causal text transformer with CLIP's byte-pair vocabulary."""

    embedding: int
    context_length: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Both towers and the name that verdicts give."""

    name: str
    vision: VisionShape
    text: TextShape


def read_architecture(backbone: str, config: Path | None = None) -> Architecture:
    """Reads the model config that open_clip ships for `backbone`, or the file `config` that describes it.

    Raises:
        ConfigError: no such model or file, or a model without what WinCLIP needs (a CLS token, one plain ViT).
    """
    path = config or _shipped(backbone)
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "" if config else "; open_clip knows no such model, `model.config` can name a file that describes it"
        raise ConfigError(f"model.backbone {backbone!r}: {path} is not there{hint}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable model config: {error}") from error
    try:
        return _architecture(backbone, written)
    except KeyError as error:
        raise ConfigError(f"{path}: {error.args[0]}: missing in the model config") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _shipped(backbone: str) -> Path:
    spec = find_spec("open_clip")  # found, not imported: importing open_clip takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("open_clip_torch is not installed; `pip install open_clip_torch`")
    return Path(spec.submodule_search_locations[0], "model_configs", f"{backbone.replace('/', '-')}.json")


def _architecture(name: str, written: Any) -> Architecture:
    if not isinstance(written, dict):
        raise TypeError("expected a JSON object")
    model = _table(written, "model_cfg") if "model_cfg" in written else written
    preprocess = _table(written, "preprocess_cfg") if "preprocess_cfg" in written else {}
    quick = bool(model.get("quick_gelu", False))
    return Architecture(
        name=name,
        vision=_vision(_table(model, "vision_cfg"), preprocess, model["embed_dim"], quick=quick),
        text=_text(_table(model, "text_cfg"), model["embed_dim"], quick=quick),
    )


def _table(written: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = written[key]
    if not isinstance(table, dict):
        raise TypeError(f"{key}: expected a JSON object")
    return table


_UNSUPPORTED_VISION = {
    "timm_model_name": None,
    "attentional_pool": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_UNSUPPORTED_TEXT = {
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}


def _refuse(table: str, written: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    for key, value in supported.items():
        if written.get(key, value) != value:
            raise ValueError(
                f"{table}.{key} = {written[key]!r} is not supported; WinCLIP needs a plain open_clip ViT with a CLS "
                f"token and CLIP's own text tower, such as ViT-B-16-plus-240"
            )


def _tower(written: Mapping[str, Any], heads: int, *, quick: bool) -> dict[str, Any]:
    approximate = (written.get("act_kwargs") or {}).get("approximate", "none")
    exact = Activation.GELU if approximate == "none" else Activation.GELU_TANH
    if written["width"] % heads or written["layers"] < 2:
        raise ValueError("expected a width that is a multiple of the heads, and at least 2 layers")
    return {
        "width": written["width"],
        "layers": written["layers"],
        "heads": heads,
        "mlp_width": int(written["width"] * written.get("mlp_ratio", 4.0)),
        "activation": Activation.QUICK_GELU if quick else exact,
        "eps": (written.get("norm_kwargs") or {}).get("eps", 1e-5),
        "layer_scale": written.get("ls_init_value") is not None,
    }


def _vision(written: Mapping[str, Any], preprocess: Mapping[str, Any], embedding: int, *, quick: bool) -> VisionShape:
    _refuse("vision_cfg", written, _UNSUPPORTED_VISION)
    full = {"width": 768, "layers": 12, "patch_size": 16, "image_size": 224, **written}
    shape = VisionShape(
        **_tower(full, full["width"] // full.get("head_width", 64), quick=quick),
        embedding=embedding,
        image_hw_px=_pair(full["image_size"]),
        patch_hw_px=_pair(full["patch_size"]),
        pre_norm=not full.get("no_ln_pre", False),
        mean=tuple(preprocess.get("mean", CLIP_MEAN)),
        std=tuple(preprocess.get("std", CLIP_STD)),
    )
    if min(shape.grid_hw) < 1:
        raise ValueError(f"vision_cfg.image_size {shape.image_hw_px} is smaller than one patch {shape.patch_hw_px}")
    return shape


def _text(written: Mapping[str, Any], embedding: int, *, quick: bool) -> TextShape:
    _refuse("text_cfg", written, _UNSUPPORTED_TEXT)
    full = {"width": 512, "layers": 12, "heads": 8, "context_length": 77, "vocab_size": 49408, **written}
    return TextShape(
        **_tower(full, full["heads"], quick=quick),
        embedding=embedding,
        context_length=full["context_length"],
        vocabulary=full["vocab_size"],
    )


def _pair(value: int | list[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)
