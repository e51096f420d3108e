"""What WinCLIP's sources leave open, as a detector's options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from inspectd.detect.preprocess import Resize
from inspectd.detect.scoring import FewShotMap
from inspectd.detect.text import TextAverage

LEAST_SCORE = 1e-12


class PatchFeature(StrEnum):
    """Which hidden state of a patch few-shot compares. All but the default are other implementations' choices."""

    LN_POST = "ln_post"
    RAW = "raw"
    PROJECTED = "projected"
    PENULTIMATE = "penultimate"


class Mode(StrEnum):
    """What is computed of a zero-shot frame, whose score needs the image pass alone."""

    FULL = "full"
    LOCALISE_ON_FAIL = "localise_on_fail"
    """Windows, and so a map, only for frames whose score reaches the threshold; scores and decisions are exact."""
    IMAGE_ONLY = "image_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class WinclipConfig:
    """Everything that WinCLIP's sources disagree on. The defaults follow the paper (see the README's table)."""

    scales: tuple[int, ...] = (2, 3)
    """Sides of the windows in patches; none makes CLIP-AC, the baseline that sees the whole image alone."""
    stride: int = 1
    """Patches from one window to the next."""
    mode: Mode = Mode.FULL
    temperature: float = 0.07
    """τ of step 6. CLIP's own 0.01 saturates the scores and lets the few-shot part dominate."""
    text_average: TextAverage = TextAverage.NORMALISED
    """RAW: anomalib, zqhang and caoyunkang average prompts of any length."""
    patch_feature: PatchFeature = PatchFeature.LN_POST
    """RAW: zqhang, mala-lab. PENULTIMATE: perhaps the paper's."""
    few_shot_map: FewShotMap = FewShotMap.MEAN
    """SUM: zqhang."""
    resize: Resize = Resize.UINT8
    """FLOAT: anomalib."""
    least_score: float = LEAST_SCORE
    """Window scores are raised to it before their harmonic mean; 0: never (anomalib)."""
