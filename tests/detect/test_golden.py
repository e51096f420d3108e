"""Every stage against the golden values, and every mutation of the specification against that comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests_detect import CPU, EVERY_DEVICE, ON_CUDA, Golden, golden

from inspectd.detect import judging
from inspectd.detect.checkpoint import Checkpoint
from inspectd.detect.clip import TextTower, VisionTower
from inspectd.detect.features import Features
from inspectd.detect.gemm import Activation, Precision
from inspectd.detect.preprocess import Resize, prepare, upsample_map
from inspectd.detect.prompts import ANOMALIB_TEMPLATES, compose
from inspectd.detect.scoring import anomalous_share, association
from inspectd.detect.text import tokenise
from inspectd.detect.winclip import Detector

TOLERANCE = 2e-5


def stages(values: Golden, detector: Detector, tower: VisionTower) -> dict[str, torch.Tensor]:
    """Everything that the golden file holds, computed by the detector and its parts."""
    images, references = list(values.arrays["images_u8"]), list(values.arrays["refs_u8"])
    prepared = {
        "": prepare(images, tower.shape, Resize.UINT8, tower.device),
        "ref_": prepare(references, tower.shape, Resize.UINT8, tower.device),
    }
    found: dict[str, torch.Tensor] = {}
    features = {}
    for prefix, pixels in prepared.items():
        features[prefix] = detector.features(pixels)
        found[f"{prefix}pixels"] = pixels
        found |= {f"{prefix}{name}": value for name, value in embeddings(features[prefix]).items()}
    text = torch.nn.functional.normalize(values["text"].to(tower.device), dim=-1)
    found["image_emb"] = features[""].image
    found["img_score_zs"] = anomalous_share(features[""].image, text, 0.07)
    patches = [found["ref_patch_emb"].flatten(0, 1), *(found[f"ref_win_emb_{k}"].flatten(0, 1) for k in (2, 3))]
    bank = [torch.nn.functional.normalize(rows, dim=-1) for rows in patches]
    found["fs_patch"] = association(found["patch_emb"], bank[0]).view(-1, 15, 15)
    for at, scale in enumerate((2, 3)):
        found[f"win_score_{scale}"] = anomalous_share(found[f"win_emb_{scale}"], text, 0.07)
        found[f"zs_grid_{scale}"] = grid_of(found[f"win_score_{scale}"], detector, at)
        found[f"fs_win_{scale}"] = association(found[f"win_emb_{scale}"], bank[1 + at])
        found[f"fs_grid_{scale}"] = grid_of(found[f"fs_win_{scale}"], detector, at)
    found["zs_grid"] = torch.from_numpy(np.stack([one.map for one in detector.score(images)]))
    detector.enroll(references)
    scored = detector.score(images)
    found["grid"] = torch.from_numpy(np.stack([one.map for one in scored]))
    found["score"] = torch.tensor([one.score for one in scored])
    found["map"] = torch.from_numpy(np.stack([upsample_map(one.map, (240, 240)) for one in scored]))
    return found


def embeddings(features: Features) -> dict[str, torch.Tensor]:
    """Patches and windows by image."""
    frames = len(features.image)
    windows = {
        f"win_emb_{k}": rows.view(frames, -1, rows.shape[-1]) for k, rows in zip((2, 3), features.windows, strict=True)
    }
    return {"patch_emb": features.patches, **windows}


def grid_of(scores: torch.Tensor, detector: Detector, scale_at: int) -> torch.Tensor:
    """The harmonic map of one scale, by whatever function the detector uses."""
    return judging.harmonic(scores, detector._judge.coverages[scale_at]).view(-1, 15, 15)


def differences(values: Golden, detector: Detector, tower: VisionTower) -> dict[str, float]:
    """The largest difference of each stage."""
    with torch.inference_mode():
        found = stages(values, detector, tower)
    return {name: float((value.cpu() - values[name]).abs().max()) for name, value in found.items()}


@EVERY_DEVICE
def test_every_stage_equals_the_golden_values(device: str):
    """Preprocessing, embeddings, window scores, maps and scores are what anomalib computes, zero-shot and 4-shot."""
    values = golden()
    tower = values.tower(device=device)
    found = differences(values, values.detector(tower), tower)
    stored = set(values.arrays) - {"images_u8", "refs_u8", "text", "text_prompts", "score_recomputed", "fs_grid"}
    assert set(found) == stored
    assert {name: worst for name, worst in found.items() if not worst <= TOLERANCE} == {}


def test_few_shot_grid_equals_the_golden_values():
    """The few-shot part alone is what is left of the final map without its zero-shot half."""
    values = golden()
    detector = values.detector(values.tower())
    images = list(values.arrays["images_u8"])
    zero_shot = np.stack([one.map for one in detector.score(images)])
    detector.enroll(list(values.arrays["refs_u8"]))
    both = np.stack([one.map for one in detector.score(images)])
    assert np.abs(2 * both - zero_shot - values.arrays["fs_grid"]).max() <= TOLERANCE


def test_prompts_equal_the_golden_values():
    """The raw average of anomalib's 21 templates in all states is its text embedding."""
    values = golden()
    tower = TextTower(Checkpoint(values.weights), values.architecture.text, device=CPU)
    prompts = compose(["bottle"], templates=ANOMALIB_TEMPLATES)
    with torch.inference_mode():
        found = [tower.encode(tokenise(texts, 77), lambda: None) for texts in (prompts.normal, prompts.anomalous)]
    assert torch.stack([one.mean(dim=0) for one in found]) == pytest.approx(values["text_prompts"], abs=TOLERANCE)


def shifted(tower: VisionTower) -> None:
    tower._position = tower._position.roll(1, dims=0)


def without_ln_pre(tower: VisionTower) -> None:
    tower._ln_pre = None


def without_ln_post(tower: VisionTower) -> None:
    tower.normalised = lambda hidden: hidden


@pytest.mark.parametrize(
    ("mutate", "stage"),
    [(without_ln_pre, "map"), (shifted, "map"), (without_ln_post, "patch_emb"), (without_ln_post, "image_emb")],
)
def test_mutated_tower_is_noticed(mutate: Callable[[VisionTower], None], stage: str):
    """A tower without ln_pre or ln_post, or with positions shifted by one, differs from the golden values."""
    values = golden()
    tower = values.tower()
    mutate(tower)
    assert differences(values, values.detector(tower), tower)[stage] > TOLERANCE


def test_quick_gelu_is_noticed():
    """The wrong activation differs from the golden values."""
    values = golden()
    tower = values.tower(activation=Activation.QUICK_GELU)
    assert differences(values, values.detector(tower), tower)["map"] > TOLERANCE


def test_missing_image_scale_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """A zero-shot map without the whole image as its third scale differs, although no score does."""
    values = golden()
    tower = values.tower()
    monkeypatch.setattr(judging, "zero_shot_map", lambda _, scales: len(scales) / sum(1 / scale for scale in scales))
    found = differences(values, values.detector(tower), tower)
    assert found["zs_grid"] > TOLERANCE >= found["score"]


def test_arithmetic_mean_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Window scores averaged arithmetically differ from the golden values."""

    def arithmetic(scores, covered, **_):
        cover = torch.zeros(225, scores.shape[1] + 1).scatter_(1, covered.windows.T, 1.0)[:, :-1]
        return scores @ cover.T / cover.sum(dim=1)

    values = golden()
    tower = values.tower()
    monkeypatch.setattr(judging, "harmonic", arithmetic)
    found = differences(values, values.detector(tower), tower)
    assert min(found["zs_grid"], found["zs_grid_2"], found["grid"]) > TOLERANCE


LOWER = [
    (Precision.BF16, "cpu", 5e-3),
    pytest.param(Precision.BF16, "cuda", 5e-3, marks=ON_CUDA),
    pytest.param(Precision.FP16, "cuda", 1e-3, marks=ON_CUDA),
    pytest.param(Precision.TF32, "cuda", 1e-3, marks=ON_CUDA),
]
"""fp16 and TF32 have three bits more than bf16."""


@pytest.mark.parametrize(("precision", "device", "most"), LOWER)
def test_lower_precision_drifts_little(precision: Precision, device: str, most: float):
    """Scores and maps stay near the golden ones, and scores do differ; so do those of a recorded pass on a device."""
    values = golden()
    detector = values.detector(values.tower(precision, device=device))
    detector.enroll(list(values.arrays["refs_u8"]))
    images = list(values.arrays["images_u8"])
    for _ in range(2):
        scored = detector.score(images)
        assert 0 < np.abs(np.array([one.score for one in scored]) - values.arrays["score"]).max() < most
        assert np.abs(np.stack([one.map for one in scored]) - values.arrays["grid"]).max() < most
        detector.rehearse(images)
