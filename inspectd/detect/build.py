"""From a recipe to a detector: the one place that knows both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache as cached
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from inspectd.detect.cache import EmbeddingCache
from inspectd.detect.checkpoint import Checkpoint
from inspectd.detect.clip import TextTower, VisionTower
from inspectd.detect.gemm import Precision, has_int8
from inspectd.detect.identity import Facts
from inspectd.detect.options import LEAST_SCORE, Mode, PatchFeature, WinclipConfig
from inspectd.detect.preprocess import Resize
from inspectd.detect.prompts import ANOMALIB_TEMPLATES, Prompts, compose, compose_defects
from inspectd.detect.reuse import ReuseRule
from inspectd.detect.scoring import FewShotMap
from inspectd.detect.text import TextAverage, embed_classes
from inspectd.detect.weights import WeightsFile, find
from inspectd.detect.winclip import Detector
from inspectd.errors import ConfigError
from inspectd.recipe import Recipe

_towers: WeakValueDictionary[tuple[str, ...], VisionTower] = WeakValueDictionary()
"""Image towers in use: recipes on the same weights share one."""


def build_detector(
    recipe: Recipe,
    *,
    weights_dir: Path,
    device: str = "auto",
    precision: str = "auto",
    cache_dir: Path | None = None,
    threads: int | None = None,
    fused: bool = True,
    beat: Callable[[], None] = lambda: None,
) -> Detector:
    """A zero-shot detector for the recipe; its references, cropped as frames will be, go to `Detector.enroll`.

    Args:
        weights_dir: where `inspectd weights fetch` puts weights, for a recipe that names no file of its own.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: `auto` or a `Precision`; see `choose_precision`.
        cache_dir: where embeddings are kept; None: nowhere.
        threads: CPU threads of torch, for the whole process; None: torch's own choice.
        fused: on a GPU, whether passes are recorded and windows get a kernel of their own.
        beat: called several times a second while the detector works.

    Raises:
        ConfigError: weights, prompts or scales that do not fit; one line that says what to do.
    """
    set_threads(threads)
    model = recipe.model
    weights = find(model.backbone, model.pretrained, weights_dir, file=model.weights, config=model.config)
    chosen = choose_device(device)
    exactly = choose_precision(precision, chosen)
    config = _config(recipe, weights)
    prompts = _prompts(recipe)
    facts = _facts(recipe, weights, config, prompts, exactly)
    checkpoint, cache = Checkpoint(weights.path), EmbeddingCache(cache_dir)
    kinds = compose_defects(recipe.objects, recipe.prompts.defects, templates=_templates(recipe))
    wanted = {facts.text_key(): [prompts.normal, prompts.anomalous]}
    if kinds:
        wanted[facts.defects_key(kinds)] = list(kinds.values())
    # before the image tower is built: the two need not lie in memory together
    text, *others = _embeddings(
        wanted,
        cache,
        lambda: TextTower(checkpoint, weights.architecture.text, device=chosen),
        config.text_average,
        beat,
    )
    key = (facts.weights_sha256, repr(weights.architecture), str(chosen), exactly, str(fused))
    tower = _towers.get(key) or VisionTower(
        checkpoint, weights.architecture.vision, device=chosen, precision=exactly, fused=fused
    )
    _towers[key] = tower
    reuse = _reuse(recipe, exactly)
    defects = others[0] if others else None
    return Detector(tower, text, config, facts=facts, cache=cache, defects=defects, reuse=reuse, beat=beat)


def _embeddings(
    wanted: Mapping[str, Sequence[Sequence[str]]],
    cache: EmbeddingCache,
    build_tower: Callable[[], TextTower],
    average: TextAverage,
    beat: Callable[[], None],
) -> list[torch.Tensor]:
    """For each key the embeddings of its classes of texts `(classes, E)`; the tower is built at most once, and gone."""
    tower = cached(build_tower)

    def embed(classes: Iterable[Sequence[str]]) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return {"text": embed_classes(tower(), classes, average, beat)}

    return [cache.get(key, partial(embed, classes))["text"] for key, classes in wanted.items()]


def set_threads(threads: int | None) -> int:
    """Sets torch's CPU threads for the whole process, None leaves its own choice; returns how many there are."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def choose_device(device: str) -> torch.device:
    """The device that a setting names; a GPU becomes the one that this process launches on.

    Raises:
        ConfigError: it is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ConfigError(f"worker.device {device!r}: expected auto, cpu, cuda or cuda:N")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"worker.device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    if chosen.type == "cuda":
        chosen = torch.device("cuda", chosen.index or 0)
        torch.cuda.set_device(chosen)  # kernels of our own and graphs go to the current one
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """`auto` is fp32 on a CPU (exact, and what the golden values are measured in), bf16 on a GPU, fp16 on one without.

    Raises:
        ConfigError: the device has no such precision.
    """
    fit = precisions_of(device)
    if precision == "auto":
        on_gpu = Precision.BF16 if Precision.BF16 in fit else Precision.FP16
        return Precision.FP32 if device.type == "cpu" else on_gpu
    if precision not in list(Precision):
        raise ConfigError(f"worker.precision {precision!r}: expected {', '.join(Precision)} or auto")
    chosen = Precision(precision)
    if chosen not in fit:
        raise ConfigError(
            f"worker.precision {precision!r} is not for this {device.type} device; use {', '.join(fit)} or auto"
        )
    return chosen


def precisions_of(device: torch.device) -> tuple[Precision, ...]:
    """The precisions that a device has. GPUs before Ampere have no TF32 and emulate bf16, slower than fp16."""
    if device.type == "cuda":
        lacking = {Precision.INT8}
        if torch.cuda.get_device_capability(device) < (8, 0):
            lacking.add(Precision.TF32)
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            lacking.add(Precision.BF16)
        return tuple(one for one in Precision if one not in lacking)
    return (Precision.FP32, Precision.BF16, *((Precision.INT8,) if has_int8() else ()))


def _config(recipe: Recipe, weights: WeightsFile) -> WinclipConfig:
    detector = recipe.detector
    grid_hw = weights.architecture.vision.grid_hw
    if max(detector.scales, default=1) > min(grid_hw):
        raise ConfigError(f"{recipe.path}: detector.scales {detector.scales}: larger than the model's grid {grid_hw}")
    if detector.kind == "clip-ac" and recipe.references is not None:
        raise ConfigError(f'{recipe.path}: references: detector.kind = "clip-ac" has no use for them; use "winclip"')
    anomalib = detector.profile == "anomalib"
    return WinclipConfig(
        scales=() if detector.kind == "clip-ac" else detector.scales,
        stride=detector.stride,
        mode=Mode(detector.mode),
        temperature=detector.temperature,
        text_average=TextAverage(detector.text_average or ("raw" if anomalib else "normalised")),
        patch_feature=PatchFeature(detector.patch_feature),
        few_shot_map=FewShotMap(detector.few_shot_map),
        resize=Resize(detector.resizes_to),
        least_score=0.0 if anomalib else LEAST_SCORE,
    )


def _reuse(recipe: Recipe, precision: Precision) -> ReuseRule | None:
    detector = recipe.detector
    if not detector.reuse:
        return None
    if precision is Precision.INT8:
        raise ConfigError(
            f"{recipe.path}: detector.reuse: in int8 a window's numbers depend on those computed beside it"
        )
    return ReuseRule(tolerance_levels=detector.reuse_tolerance_levels, refresh_every=detector.refresh_every)


def _prompts(recipe: Recipe) -> Prompts:
    own = recipe.prompts
    return compose(recipe.objects, normal=own.normal, anomalous=own.anomalous, templates=_templates(recipe))


def _templates(recipe: Recipe) -> Sequence[str]:
    chosen = recipe.detector.templates or recipe.detector.profile
    return recipe.prompts.templates or (ANOMALIB_TEMPLATES if chosen == "anomalib" else ())


def _facts(
    recipe: Recipe, weights: WeightsFile, config: WinclipConfig, prompts: Prompts, precision: Precision
) -> Facts:
    lossy = recipe.detector.reuse_tolerance_levels > 0  # without a tolerance reuse is exact
    reuse = recipe.detector.model_dump(include={"reuse_tolerance_levels", "refresh_every"}) if lossy else {}
    return Facts(
        detector=recipe.detector.kind,
        backbone=weights.architecture.name,
        weights_sha256=weights.sha256(),
        precision=precision,
        architecture=asdict(weights.architecture),
        config=asdict(config) | reuse,
        prompts=asdict(prompts),
        view={
            "region": recipe.region and recipe.region.model_dump(mode="json", exclude_defaults=True),
            "tiling": recipe.tiling and recipe.tiling.model_dump(mode="json"),
        },
    )
