"""From a recipe file to a detector: caches, identity, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from tests_detect import some_crops, write_model

from inspectd.detect import build
from inspectd.detect.build import build_detector
from inspectd.detect.clip import TextTower, VisionTower
from inspectd.detect.gemm import Precision
from inspectd.detect.options import Mode, PatchFeature
from inspectd.detect.preprocess import Resize
from inspectd.detect.scoring import FewShotMap
from inspectd.detect.text import TextAverage
from inspectd.detect.winclip import Detector
from inspectd.errors import ConfigError
from inspectd.recipe import load_recipe


def make(folder: Path, text: str = "", **settings: object) -> Detector:
    """A detector for a recipe on random weights; `text` adds to the recipe."""
    config, weights = folder / "small.json", folder / "small.safetensors"
    if not config.exists():
        write_model(folder)
    model = f'object = "cap"\n[model]\nweights = "{weights}"\nconfig = "{config}"\n'
    (folder / "cap.toml").write_text(f"{model}{text}\n[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n")
    return build_detector(load_recipe(folder / "cap.toml"), weights_dir=folder, device="cpu", **settings)


def test_recipe_becomes_a_detector(tmp_path: Path):
    """Scores, maps and identity of a recipe's model."""
    detector = make(tmp_path, "[detector]\nscales = [3]\ntemperature = 0.5")
    scored = detector.score(some_crops(2))
    assert (detector.input_size_px, detector.grid_hw) == (40, (5, 5))
    assert all(0 < one.score < 1 and one.map.shape == (5, 5) for one in scored)
    assert (detector.identity.detector, detector.identity.precision) == ("winclip", "fp32")
    assert detector.config.scales == (3,)


def test_second_start_encodes_no_text_and_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a warm cache the text tower is not even built, and references are not seen by the image tower."""
    cache_dir = tmp_path / "cache"
    first = make(tmp_path, cache_dir=cache_dir)
    first.enroll(some_crops(2))
    expected = first.score(some_crops(1, seed=8))[0]

    def never(*_: object, **__: object) -> None:
        pytest.fail("encoded again")

    monkeypatch.setattr(build, "TextTower", never)
    second = make(tmp_path, cache_dir=cache_dir)
    monkeypatch.setattr(second, "features", never)
    second.enroll(some_crops(2))
    assert second.identity == first.identity
    assert second.score(some_crops(1, seed=8))[0].score == pytest.approx(expected.score, abs=1e-6)


CHANGES = {
    "prompts": '[prompts]\nanomalous = ["scratched {}"]',
    "scales": "[detector]\nscales = [2]",
    "stride": "[detector]\nstride = 2",
    "temperature": "[detector]\ntemperature = 0.1",
    "mode": '[detector]\nmode = "localise_on_fail"',
    "profile": '[detector]\nprofile = "anomalib"',
    "templates": '[detector]\ntemplates = "anomalib"',
    "text average": '[detector]\ntext_average = "raw"',
    "patch feature": '[detector]\npatch_feature = "raw"',
    "few-shot map": '[detector]\nfew_shot_map = "sum"',
    "resize": '[detector]\nresize = "float"',
    "reuse with a tolerance": "[detector]\nreuse = true\nreuse_tolerance_levels = 2",
    "averaged tiles": '[tiling]\ntile_px = 40\ncombine = "averaged"',
    "short side": '[tiling]\ntile_px = "short_side"',
    "kind": '[detector]\nkind = "clip-ac"',
    "region": "[region]\npolygon_px = [[0, 0], [20, 0], [20, 20]]",
    "filled region": '[region]\npolygon_px = [[0, 0], [20, 0], [20, 20]]\noutside = "filled"',
    "tiling": "[tiling]\ntile_px = 40",
}


@pytest.mark.parametrize("text", CHANGES.values(), ids=CHANGES)
def test_identity_changes_with_all_that_can_change_a_score(tmp_path: Path, text: str):
    """Thresholds measured with another setting must not be used (contract I2)."""
    assert make(tmp_path, text).identity.sha256 != make(tmp_path).identity.sha256


def test_kinds_of_defects_are_embedded_once_and_are_no_part_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Naming kinds asks for no new calibration; a second start encodes nothing; other words for a kind are encoded."""
    text = '[prompts.defects]\nscratch = ["scratched {}"]\n"torn label" = ["{} with a torn label", "torn {}"]'
    first = make(tmp_path, text, cache_dir=tmp_path / "cache")
    assert first.identity == make(tmp_path).identity
    assert first.score(some_crops(1))[0].defects.shape == (2, 5, 5)
    monkeypatch.setattr(build, "TextTower", lambda *_, **__: pytest.fail("encoded again"))
    assert torch.equal(make(tmp_path, text, cache_dir=tmp_path / "cache")._judge.defects, first._judge.defects)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        make(tmp_path, text.replace("torn {}", "ripped {}"), cache_dir=tmp_path / "cache")


def test_exact_reuse_is_the_same_model_and_its_tolerance_is_not(tmp_path: Path):
    """Reuse of equal pixels changes no score; with a tolerance, how often all is refreshed does."""
    exact = make(tmp_path, "[detector]\nreuse = true")
    assert exact.identity == make(tmp_path).identity
    assert make(tmp_path).memory() is None
    assert exact.memory() is not None
    near = [
        make(tmp_path, f"[detector]\nreuse = true\nreuse_tolerance_levels = 2\nrefresh_every = {frames}").identity
        for frames in (10, 20)
    ]
    assert near[0] != near[1]


def test_identity_changes_with_weights_and_precision(tmp_path: Path):
    """Other weights, another precision: another model. The same again: the same."""
    first = make(tmp_path / "a")
    assert make(tmp_path / "a").identity == first.identity
    write_model(tmp_path / "b", seed=5)
    other = make(tmp_path / "b").identity
    assert other.weights_sha256 != first.identity.weights_sha256
    bf16 = make(tmp_path / "a", precision="bf16").identity
    assert len({first.identity.sha256, other.sha256, bf16.sha256}) == 3


def test_settings_reach_the_detector(tmp_path: Path):
    """Mode, profile, kind and stride of the recipe are what the detector works by."""
    assert make(tmp_path, "[detector]\nstride = 2").window_counts == [3 * 3, 2 * 2]
    assert make(tmp_path, '[detector]\nmode = "image_only"').config.mode is Mode.IMAGE_ONLY
    assert make(tmp_path, '[detector]\nprofile = "anomalib"').config.least_score == 0
    assert make(tmp_path, '[detector]\nkind = "clip-ac"').score(some_crops(1))[0].map is None


@pytest.mark.parametrize("feature", list(PatchFeature))
@pytest.mark.parametrize("combined", list(FewShotMap))
def test_variants_of_few_shot_reach_the_detector(tmp_path: Path, feature: PatchFeature, combined: FewShotMap):
    """Each patch feature and each way to combine maps gives scores of its own, unlike the default's."""
    default = make(tmp_path)
    chosen = make(tmp_path, f'[detector]\npatch_feature = "{feature}"\nfew_shot_map = "{combined}"')
    assert (chosen.config.patch_feature, chosen.config.few_shot_map) == (feature, combined)
    for detector in (default, chosen):
        detector.enroll(some_crops(2))
    maps = [detector.score(some_crops(1, seed=8))[0].map for detector in (default, chosen)]
    assert np.allclose(*maps, atol=1e-5) is (chosen.config == default.config)


def test_profile_stands_for_the_keys_that_are_not_given(tmp_path: Path):
    """anomalib's templates, text average and resize come with its profile, and each can be taken back."""
    anomalib = make(tmp_path, '[detector]\nprofile = "anomalib"').config
    assert (anomalib.text_average, anomalib.resize) == (TextAverage.RAW, Resize.FLOAT)
    mixed = make(tmp_path, '[detector]\nprofile = "anomalib"\ntext_average = "normalised"\nresize = "uint8"').config
    assert (mixed.text_average, mixed.resize) == (TextAverage.NORMALISED, Resize.UINT8)
    texts = [
        make(tmp_path, f"[detector]\n{keys}").text
        for keys in ('text_average = "raw"', 'text_average = "raw"\ntemplates = "anomalib"', 'profile = "anomalib"')
    ]
    assert not torch.equal(texts[0], texts[1])
    assert torch.equal(texts[1], texts[2])


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("[detector]\nscales = [6]", {}, "larger than the model's grid"),
        ("[detector]\nstride = 3", {}, "stride 3 leaves patches in no window of scale 2"),
        ('[references]\nfolder = "."\n[detector]\nkind = "clip-ac"', {}, "has no use for them"),
        ("", {"precision": "fp16"}, "worker.precision 'fp16' is not for this cpu device"),
        ("", {"precision": "fp8"}, "worker.precision 'fp8': expected fp32"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, settings: dict, message: str):
    """What does not fit is a configuration error that names the key."""
    with pytest.raises(ConfigError) as error:
        make(tmp_path, text, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_8_bits_and_reuse_are_refused_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In 8 bits a window's numbers depend on the range of those computed beside it."""
    monkeypatch.setattr(build, "choose_precision", lambda *_: Precision.INT8)
    with pytest.raises(ConfigError, match=r"detector.reuse: in int8 a window's numbers depend"):
        make(tmp_path, "[detector]\nreuse = true")


def test_8_bits_are_refused_where_their_sums_would_overflow(monkeypatch: pytest.MonkeyPatch):
    """Without VNNI oneDNN adds products of bytes in 16 bits, and scores would be wrong without a sign of it."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match="'int8' is not for this cpu device; use fp32, bf16 or auto"):
        build.choose_precision("int8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "fit", "auto"),
    [
        ((7, 5), [Precision.FP32, Precision.FP16], Precision.FP16),
        ((8, 0), [Precision.FP32, Precision.TF32, Precision.BF16, Precision.FP16], Precision.BF16),
    ],
)
def test_gpu_gets_no_precision_that_it_would_emulate(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fit: list[Precision], auto: Precision
):
    """A Turing card takes bf16 from torch and is many times slower in it, and TF32 would be fp32 under another name."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capability >= (8, 0)
    )
    assert list(build.precisions_of(cuda)) == fit
    assert build.choose_precision("auto", cuda) is auto
    if Precision.BF16 not in fit:
        with pytest.raises(ConfigError, match="'bf16' is not for this cuda device; use fp32, fp16 or auto"):
            build.choose_precision("bf16", cuda)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[prompts.defects]\nscratch = ["scratched {}"]', "prompts.defects: .*at least two kinds"),
        ('[prompts.defects]\nscratch = ["scratched {}"]\ndent = ["dented"]', r"prompts.defects.dent.0: .*'dented'"),
        ('[prompts.defects]\nA = ["scratched {}"]\nb = ["dented {}"]', "prompts.defects"),
        ('[prompts.defects]\na = []\nb = ["dented {}"]', "prompts.defects.a"),
        ('[prompts.defects]\na = ["a {}"]\nb = ["b {}"]\n[detector]\nkind = "clip-ac"', "gives none"),
    ],
)
def test_kinds_that_name_nothing_are_refused(tmp_path: Path, text: str, message: str):
    """A single kind, words without the object, a name that is none, a detector without regions."""
    with pytest.raises(ConfigError, match=message) as error:
        make(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        'reuse = true\nresize = "float"',
        'reuse = true\nprofile = "anomalib"',
        'reuse = true\nkind = "clip-ac"',
        'reuse = true\nmode = "image_only"',
        "reuse_tolerance_levels = 2",
    ],
)
def test_reuse_that_cannot_be_is_refused(tmp_path: Path, keys: str):
    """Windows must be there and be made of grey levels, and a tolerance needs reuse."""
    with pytest.raises(ConfigError, match=r"cap\.toml: detector: .*reuse") as error:
        make(tmp_path, f"[detector]\n{keys}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cuda:99", "cuda:", "tpu", ""])
def test_device_that_is_not_there_is_refused(device: str):
    """A CUDA device beyond those that torch sees, or no device at all."""
    with pytest.raises(ConfigError, match=f"worker.device '{device}'"):
        build.choose_device(device)


def test_text_tower_is_built_once_and_gone_before_the_image_tower_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The two never lie in memory together, whatever texts there are."""
    built: list[object] = []
    alive: WeakSet[object] = WeakSet()

    class Text(TextTower):
        def __init__(self, *args: object, **keywords: object) -> None:
            super().__init__(*args, **keywords)
            built.append(None)
            alive.add(self)

    class Vision(VisionTower):
        def __init__(self, *args: object, **keywords: object) -> None:
            assert not alive
            super().__init__(*args, **keywords)
            built.append(None)

    monkeypatch.setattr(build, "TextTower", Text)
    monkeypatch.setattr(build, "VisionTower", Vision)
    defects = '[prompts.defects]\nscratch = ["{} with a scratch"]\ndent = ["{} with a dent"]'
    assert make(tmp_path, defects).identity
    assert len(built) == 2


def test_recipes_on_the_same_weights_share_a_tower(tmp_path: Path):
    """Two recipes need the memory of one image tower."""
    assert make(tmp_path).tower is make(tmp_path, '[prompts]\nnormal = ["shiny {}"]').tower


def test_warm_start_imports_no_open_clip(tmp_path: Path):
    """open_clip takes seconds to import: with a warm cache it is left alone."""
    make(tmp_path, cache_dir=tmp_path / "cache")
    script = (
        "import sys; from pathlib import Path; from inspectd.detect.build import build_detector;"
        "from inspectd.recipe import load_recipe; folder = Path(sys.argv[1]);"
        "build_detector(load_recipe(folder / 'cap.toml'), weights_dir=folder, cache_dir=folder / 'cache');"
        "print('open_clip' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
