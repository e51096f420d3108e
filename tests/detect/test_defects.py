"""Kinds of defects: where a patch is nearest to which, and what that leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests_detect import CPU, FACTS, open_tower, some_crops, write_model

from inspectd.detect.architecture import read_architecture
from inspectd.detect.defects import defect_maps
from inspectd.detect.options import Mode, WinclipConfig
from inspectd.detect.plans import Plan, Planner
from inspectd.detect.reuse import ReuseRule
from inspectd.detect.winclip import Detector
from inspectd.detect.windows import coverage, harmonic, window_patches

PATCHES = [window_patches((5, 5), scale) for scale in (2, 3)]
COVERAGES = [coverage(patches, 25) for patches in PATCHES]
COUNTS = [len(patches) for patches in PATCHES]


def every_window(folder: Path, frames: int) -> Plan:
    """The plan of a pass that computes every window."""
    shape = read_architecture("small", write_model(folder)[0]).vision
    inside = torch.ones(frames, shape.patch_count, dtype=torch.bool)
    return Planner(shape, PATCHES, CPU).plan(inside, windows=True, keep_patches=False)


def test_patch_is_nearest_to_the_kind_of_the_windows_that_hold_it(tmp_path: Path):
    """Windows that look like one kind in the left, like another in the right, label their sides."""
    kinds, embeddings = torch.eye(3), []
    for side in (4, 3):
        scale = torch.zeros(side, side, 3)
        scale[:, : side // 2, 0] = scale[:, side // 2 :, 2] = 1.0
        embeddings.append(scale.flatten(0, 1))
    found = defect_maps(embeddings, every_window(tmp_path, 1), COVERAGES, kinds, temperature=0.07)
    nearest = found.argmax(dim=1).view(5, 5)
    assert (nearest[:, 0] == 0).all()
    assert (nearest[:, 4] == 2).all()


def test_maps_are_the_harmonic_means_of_each_kind(tmp_path: Path):
    """Each kind's share goes to patches and over scales by the aggregation of the scores."""
    random = torch.Generator().manual_seed(2)
    embeddings = [torch.randn(2 * count, 6, generator=random) for count in COUNTS]
    kinds = torch.nn.functional.normalize(torch.randn(4, 6, generator=random), dim=-1)
    found = defect_maps(embeddings, every_window(tmp_path, 2), COVERAGES, kinds, temperature=0.5)
    unit = [torch.nn.functional.normalize(rows, dim=-1) for rows in embeddings]
    shares = [(rows @ kinds.T / 0.5).softmax(dim=1)[:, 3] for rows in unit]
    maps = [harmonic(own.view(2, -1), covered) for own, covered in zip(shares, COVERAGES, strict=True)]
    assert found.shape == (2, 4, 25)
    assert found[:, 3] == pytest.approx(2 / (1 / maps[0] + 1 / maps[1]), rel=1e-5)


def test_another_mode_keeps_kinds_and_reuse(tmp_path: Path):
    """What a detector was built with is not lost with its mode."""
    kinds = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    detector = detector_of(tmp_path, kinds, reuse=ReuseRule()).in_mode(Mode.LOCALISE_ON_FAIL)
    assert detector.memory() is not None
    assert detector.score(some_crops(1))[0].defects.shape == (2, 5, 5)


def detector_of(folder: Path, defects: torch.Tensor | None, reuse: ReuseRule | None = None, **settings) -> Detector:
    tower = open_tower(*write_model(folder))
    text = torch.randn(2, tower.shape.embedding, generator=torch.Generator().manual_seed(4))
    return Detector(tower, text, WinclipConfig(**settings), facts=FACTS, defects=defects, reuse=reuse)


@pytest.mark.parametrize("shots", [0, 2])
def test_kinds_change_no_score_and_no_map(tmp_path: Path, shots: int):
    """A detector with kinds says of every crop what it says without, and how near patches are to each kind."""
    kinds = torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    plain, naming = detector_of(tmp_path / "a", None), detector_of(tmp_path / "b", kinds)
    for detector in (plain, naming):
        detector.enroll(some_crops(shots, seed=9))
    for one, other in zip(plain.score(some_crops(3)), naming.score(some_crops(3)), strict=True):
        assert (one.score, one.defects) == (other.score, None)
        assert np.array_equal(one.map, other.map)
        assert other.defects.shape == (3, 5, 5)
        assert ((other.defects > 0) & (other.defects < 1)).all()


def test_only_frames_with_a_map_have_kinds(tmp_path: Path):
    """In `localise_on_fail` a frame that passes has neither."""
    detector = detector_of(tmp_path, torch.randn(2, 24), mode=Mode.LOCALISE_ON_FAIL)
    crops = some_crops(2)
    bar = max(one.score for one in detector.score(crops))
    found = detector.score(crops, localise_from=bar)
    assert sorted(one.defects is None for one in found) == [False, True]
    assert all((one.map is None) == (one.defects is None) for one in found)
