"""Recipes: what a product is, how it is looked at and what makes it bad. One TOML file a product.

A recipe has no default threshold. It stands in the recipe (`[decision] threshold`), or in `NAME.calibration.json`
beside it, which `inspectd calibrate` writes together with the hash of the very model that it was measured with.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from inspectd.errors import ConfigError
from inspectd.records import FailOn, RecipeInfo, VoteRule
from inspectd.toml import Strict, one_line, read_toml

MOST_VOTES = 8
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"\S")]
DefectName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9 _-]{0,31}$")]


def _fillable(prompt: str) -> str:
    before, _, behind = prompt.partition("{}")
    if re.search("[{}]", before + behind):
        raise ValueError("expected {} once, where the object's name goes, and no other braces")
    return prompt


Prompt = Annotated[str, Field(min_length=2, max_length=200, pattern=r"\{\}"), AfterValidator(_fillable)]


class Prompts(Strict):
    """`[prompts]`: own words for good and bad; each holds `{}` where the object's name goes. Empty: WinCLIP's own."""

    normal: list[Prompt] = Field(default_factory=list, max_length=64)
    anomalous: list[Prompt] = Field(default_factory=list, max_length=64)
    templates: list[Prompt] = Field(default_factory=list, max_length=64)
    defects: dict[DefectName, Annotated[list[Prompt], Field(min_length=1, max_length=64)]] = Field(
        default_factory=dict, max_length=32
    )
    """Kinds of defects, each in its own words; a region then says which one it is nearest to. They decide nothing."""

    @field_validator("defects")
    @classmethod
    def _kinds(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        if len(value) == 1:
            raise ValueError("expected at least two kinds: a region is named by the nearest of them")
        return value


class Model(Strict):
    """`[model]`: the CLIP backbone. `weights` (a local file) beats `pretrained` (a hub tag of open_clip)."""

    backbone: str = Field(default="ViT-B-16-plus-240", min_length=1)
    pretrained: str = Field(default="laion400m_e31", min_length=1)
    weights: Path | None = None
    """A local safetensors (or weights-only torch) file."""
    config: Path | None = None
    """An open_clip model config (JSON), for a backbone that open_clip does not know by name."""


class Detector(Strict):
    """`[detector]`: how WinCLIP looks. The defaults are the paper's; the README's table says who differs and how."""

    kind: Literal["winclip", "clip-ac"] = "winclip"
    scales: tuple[int, ...] = (2, 3)
    """Sides of the windows in patches; each from 2 to the grid's side."""
    stride: int = Field(default=1, ge=1, le=15)
    """Patches from one window to the next, at most the smallest scale: every patch must lie in a window."""
    mode: Literal["full", "localise_on_fail", "image_only"] = "full"
    """`localise_on_fail` and `image_only` are for zero-shot recipes that fail on the score."""
    profile: Literal["paper", "anomalib"] = "paper"
    """Whose choices stand for the keys below that are not given; `anomalib` also leaves small scores unclamped."""
    temperature: float = Field(default=0.07, gt=0, le=10)
    """Of the softmax between good and bad. CLIP's own 0.01 saturates scores and lets the few-shot part dominate."""
    templates: Literal["paper", "anomalib"] | None = None
    """The paper's 22 sentences, or anomalib's 21. `prompts.templates` replaces both."""
    text_average: Literal["normalised", "raw"] | None = None
    """Whether prompts have one length before they are averaged; `raw`: anomalib, zqhang, caoyunkang."""
    patch_feature: Literal["ln_post", "raw", "projected", "penultimate"] = "ln_post"
    """What of a patch few-shot compares: the last block with ln_post or without (`raw`: zqhang, mala-lab), projected
    into the space of the text, or the last block but one (`penultimate`: perhaps the paper's)."""
    few_shot_map: Literal["mean", "sum"] = "mean"
    """How the maps of patches and scales become one; `sum`: zqhang. Scores then have no end at 1, thresholds do."""
    resize: Literal["uint8", "float"] | None = None
    """Bicubic and antialiased, rounded to grey levels or not (`float`: anomalib)."""
    reuse: bool = False
    """Keeps each window's embedding, by camera, for as long as the window's pixels are those that it was computed
    from. Off: noise leaves few windows alike, and a line must be dimensioned for the frame that changes everywhere."""
    reuse_tolerance_levels: int = Field(default=0, ge=0, le=64)
    """Grey levels by which a pixel may differ. Above 0 scores move: another model."""
    refresh_every: int = Field(default=100, ge=1, le=1_000_000)
    """Every so many frames all windows are computed."""

    @field_validator("scales")
    @classmethod
    def _scales(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) != len(value) or not all(1 <= scale <= 15 for scale in value):
            raise ValueError("expected different whole numbers from 1 to 15, at least one")
        return value

    @model_validator(mode="after")
    def _covering(self) -> Detector:
        if self.stride > min(self.scales):
            raise ValueError(f"stride {self.stride} leaves patches in no window of scale {min(self.scales)}")
        return self

    @property
    def resizes_to(self) -> Literal["uint8", "float"]:
        """How crops are resized: the key, or the profile's choice."""
        return self.resize or ("float" if self.profile == "anomalib" else "uint8")

    @model_validator(mode="after")
    def _reusable(self) -> Detector:
        if self.reuse and (self.resizes_to != "uint8" or self.kind != "winclip" or self.mode == "image_only"):
            raise ValueError(
                'reuse = true is for windows of grey levels: it needs "winclip", a map, and resize = "uint8"'
            )
        if self.reuse_tolerance_levels and not self.reuse:
            raise ValueError("reuse_tolerance_levels needs reuse = true")
        return self


class References(Strict):
    """`[references]`: images of good parts for WinCLIP+. Without this table the detector is zero-shot."""

    folder: Path
    shots: int | None = Field(default=None, ge=1, le=512)
    """The first so many images by name; default: all."""


class DecisionRule(Strict):
    """`[decision]`: what makes a part bad."""

    threshold: float | None = Field(default=None, ge=0, le=1)
    """A part whose image score reaches it fails."""
    pixel_threshold: float | None = Field(default=None, ge=0, le=1)
    """A pixel whose anomaly reaches it belongs to a region."""
    fail_on: FailOn = FailOn.SCORE


class Vote(Strict):
    """`[vote]`: several frames of one part give one verdict (`trigger.kind = "presence"` only)."""

    frames: int = Field(default=1, ge=1, le=MOST_VOTES)
    """So many of a part's best frames vote, fewer where it passes too fast."""
    rule: VoteRule = VoteRule.WORST
    """`worst`: the part is as bad as its worst frame; `majority`: half of the frames, or more, must fail; `mean`: of
    the scores."""


class RegionOfInterest(Strict):
    """`[region]`: the part of the frame that is inspected, as a polygon in full-frame pixels. Without it: all of it."""

    polygon_px: list[tuple[float, float]] = Field(min_length=3, max_length=256)
    outside: Literal["kept", "filled"] = "kept"
    """What the model sees in the polygon's box beside it: the picture, or one grey. Another model."""

    @field_validator("polygon_px")
    @classmethod
    def _area(cls, value: list[tuple[float, float]]) -> list[tuple[float, float]]:
        twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(value, [*value[1:], value[0]], strict=True))
        if min(min(point) for point in value) < 0:
            raise ValueError("expected corners [x, y] with x and y from 0")
        if abs(twice) < 2 * 64:
            raise ValueError("the polygon encloses less than 64 px")
        return value


class Tiling(Strict):
    """`[tiling]`: a wide or high-resolution region is cut into overlapping squares, instead of squashed."""

    tile_px: Annotated[int, Field(ge=32, le=8192)] | Literal["short_side"]
    """A tile's side; `short_side` is the region's own shorter one."""
    overlap: float = Field(default=0.25, ge=0, le=0.75)
    """The share of a tile's side that the next one covers too, at least."""
    combine: Literal["stitched", "averaged"] = "stitched"
    """`stitched`: maps blend without a seam, and the worst tile is the region's score. `averaged` (the paper, for wide
    images): tiles count alike, in the map where they overlap and in the score."""


class Filters(Strict):
    """`[filters]`: which regions count."""

    min_area_px: int = Field(default=1, ge=1)
    open_px: int = Field(default=0, ge=0, le=99)
    """Diameter of the morphological opening, which takes specks away; 0: none."""
    close_px: int = Field(default=0, ge=0, le=99)
    """Diameter of the morphological closing, which joins neighbours; 0: none."""


class QualityLimits(Strict):
    """What a usable picture is, measured in the region of interest. None switches a limit off."""

    min_brightness: float | None = Field(default=None, ge=0, le=255)
    """The darkest mean grey level."""
    max_brightness: float | None = Field(default=None, ge=0, le=255)
    """The brightest mean grey level."""
    max_clipped_share: float | None = Field(default=None, ge=0, le=1)
    """The largest share of pixels at 254 grey levels or more."""
    min_sharpness: float | None = Field(default=None, ge=0)
    """The smallest variance of the Laplacian of the grey picture, in squared grey levels."""

    @property
    def stated(self) -> dict[str, float]:
        """The limits that are on."""
        return self.model_dump(include=set(QualityLimits.model_fields), exclude_none=True)


class Quality(QualityLimits):
    """`[quality]`: a frame beyond these limits is `error/frame_quality`, whatever the model would say of it."""

    learn: bool = False
    """Limits that are not stated are measured by `inspectd calibrate` on the good parts."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure a picture for."""
        return self.learn or bool(self.stated)


class Calibration(Strict):
    """`NAME.calibration.json`: thresholds with the identity of the model that they were measured with."""

    threshold: float = Field(ge=0, le=1)
    pixel_threshold: float = Field(ge=0, le=1)
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    good: int = Field(ge=1)
    bad: int = Field(ge=0)
    target_false_reject_rate: float = Field(ge=0, le=1)
    vote: Vote = Vote()
    """How the frames of a part voted when it was measured."""
    measured_utc: str
    quality: QualityLimits | None = None
    """Learnt from the good parts, where `quality.learn` asks for it."""


class RecipeFile(Strict):
    """The recipe file as it is written."""

    object: Name | list[Name]
    """What the product is called, in a word or two ("bottle cap"); several names are averaged."""
    prompts: Prompts = Prompts()
    model: Model = Model()
    detector: Detector = Detector()
    references: References | None = None
    decision: DecisionRule = DecisionRule()
    vote: Vote = Vote()
    region: RegionOfInterest | None = None
    tiling: Tiling | None = None
    filters: Filters = Filters()
    quality: Quality = Quality()
    deadline_ms: float = Field(default=500.0, gt=0, le=600_000)
    """A verdict must be out so long after the frame's arrival (or the trigger's request)."""

    @model_validator(mode="after")
    def _agree(self) -> RecipeFile:
        if isinstance(self.object, list) and not self.object:
            raise ValueError("object: expected at least one name")
        full = self.detector.mode == "full"
        if not full and (self.references is not None or self.decision.fail_on is not FailOn.SCORE):
            raise ValueError(
                f'detector.mode = "{self.detector.mode}" needs a zero-shot recipe with decision.fail_on = "score"; '
                'otherwise use "full"'
            )
        if self.quality.learn and self.decision.threshold is not None:
            raise ValueError("quality.learn: nothing is measured where decision.threshold is stated; state limits too")
        if self.vote.rule is VoteRule.MEAN and self.decision.fail_on is not FailOn.SCORE:
            raise ValueError('vote.rule = "mean" is of scores; decision.fail_on must be "score"')
        if self.detector.kind == "clip-ac" and self.decision.fail_on is not FailOn.SCORE:
            raise ValueError('detector.kind = "clip-ac" gives no regions; decision.fail_on must be "score"')
        if self.detector.kind == "clip-ac" and self.detector.mode == "localise_on_fail":
            raise ValueError(
                'detector.mode: "localise_on_fail" has nothing to localise with, kind = "clip-ac" gives no map; '
                'use "full"'
            )
        if self.prompts.defects and (self.detector.kind != "winclip" or self.detector.mode == "image_only"):
            raise ValueError("prompts.defects names regions, and this detector gives none")
        return self


class Recipe(RecipeFile):
    """A checked recipe: paths absolute, its own name and hash, thresholds resolved."""

    name: str
    path: Path
    sha256: str
    calibration: Calibration | None = None

    @property
    def info(self) -> RecipeInfo:
        """The recipe as verdicts name it."""
        return RecipeInfo(name=self.name, sha256=self.sha256)

    @property
    def objects(self) -> tuple[str, ...]:
        """All names of the product."""
        return (self.object,) if isinstance(self.object, str) else tuple(self.object)

    @property
    def threshold(self) -> float:
        """The image threshold.

        Raises:
            ConfigError: the recipe has none.
        """
        return self._threshold("threshold")

    @property
    def pixel_threshold(self) -> float:
        """The pixel threshold.

        Raises:
            ConfigError: the recipe has none.
        """
        return self._threshold("pixel_threshold")

    @cached_property
    def quality_limits(self) -> QualityLimits:
        """What a usable picture is: the limits stated, and the learnt ones where none is stated.

        Raises:
            ConfigError: the recipe wants limits that nobody has measured.
        """
        if not self.quality.learn:
            return QualityLimits(**self.quality.stated)
        if self.calibration is None or self.calibration.quality is None:
            raise ConfigError(
                f"{self.path}: quality.learn: {calibration_path(self.path).name} holds no limits; run `inspectd "
                f"calibrate`, or state limits here and learn = false"
            )
        return QualityLimits(**self.calibration.quality.stated | self.quality.stated)

    @cached_property
    def reference_paths(self) -> tuple[Path, ...]:
        """The reference images in the order of their names; empty for a zero-shot recipe.

        Raises:
            ConfigError: the folder is missing, unreadable or holds too few images.
        """
        if self.references is None:
            return ()
        folder = self.references.folder
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise ConfigError(f"{self.path}: references.folder {folder}: {error.strerror or error}") from error
        shots = self.references.shots or len(paths)
        if not paths or len(paths) < shots:
            raise ConfigError(
                f"{self.path}: references.folder {folder} holds {len(paths)} images, {shots or 'at least 1'} needed"
            )
        return tuple(paths[:shots])

    def require_model(self, model_sha256: str) -> None:
        """Refuses a calibration that was measured with another model (contract I2).

        Raises:
            ConfigError: the thresholds belong to another model.
        """
        if self.calibration is not None and self.calibration.model_sha256 != model_sha256:
            raise ConfigError(
                f"{calibration_path(self.path)}: its thresholds were measured with model "
                f"{self.calibration.model_sha256[:12]}…, this recipe now makes {model_sha256[:12]}… (weights, prompts, "
                f"references, region, tiling, mode or precision changed): run `inspectd calibrate` again"
            )

    def _threshold(self, key: Literal["threshold", "pixel_threshold"]) -> float:
        stated: float | None = getattr(self.decision, key)
        if stated is not None:
            return stated
        if self.calibration is not None:
            return float(getattr(self.calibration, key))
        raise ConfigError(
            f"{self.path}: decision.{key}: missing; measure it with `inspectd calibrate`, "
            f"or state a number from 0 to 1 (see `inspectd replay` for the scores of a recording)"
        )


def calibration_path(recipe_path: Path) -> Path:
    """Where the calibration of a recipe file stands."""
    return recipe_path.with_suffix(".calibration.json")


def load_recipe(path: Path, *, require_thresholds: bool = True) -> Recipe:
    """Reads and checks a recipe and its calibration.

    Args:
        path: the TOML file; its stem is the recipe's name.
        require_thresholds: False for the verbs that measure the thresholds.

    Raises:
        ConfigError: one line that names the file, the key and what is allowed.
    """
    path = path.resolve()
    tables = read_toml(path)
    try:
        written = RecipeFile.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error, RecipeFile)}") from error
    calibration, calibration_bytes = _load_calibration(path)
    if calibration is not None and written.decision.threshold is not None:
        raise ConfigError(
            f"{path}: decision.threshold: stands here and in {calibration_path(path).name}; delete one of the two"
        )
    recipe = Recipe(
        **_anchored(written, path.parent),
        name=path.stem,
        path=path,
        sha256=hashlib.sha256(path.read_bytes() + b"\0" + calibration_bytes).hexdigest(),
        calibration=calibration,
    )
    if require_thresholds and calibration is not None and calibration.vote != recipe.vote:
        raise ConfigError(
            f"{calibration_path(path)}: its thresholds were measured with {_said(calibration.vote)}, this recipe now "
            f"has {_said(recipe.vote)}: run `inspectd calibrate` again"
        )
    if require_thresholds:
        _ = recipe.threshold, recipe.pixel_threshold, recipe.quality_limits
    return recipe


def _said(vote: Vote) -> str:
    return f"vote.frames = {vote.frames}, vote.rule = {vote.rule}"


def _load_calibration(recipe_path: Path) -> tuple[Calibration | None, bytes]:
    path = calibration_path(recipe_path)
    if not path.exists():
        return None, b""
    try:
        content = path.read_bytes()
        return Calibration.model_validate(json.loads(content)), content
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error, Calibration)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error


def _anchored(written: RecipeFile, base: Path) -> dict[str, Any]:
    """The fields of a recipe file with every relative path made absolute from `base`."""

    def anchor(path: Path | None) -> Path | None:
        return None if path is None else (base / path.expanduser()).resolve()

    fields = {key: getattr(written, key) for key in RecipeFile.model_fields}
    model = written.model
    fields["model"] = model.model_copy(update={"weights": anchor(model.weights), "config": anchor(model.config)})
    if written.references is not None:
        folder = anchor(written.references.folder)
        fields["references"] = written.references.model_copy(update={"folder": folder})
    return fields
