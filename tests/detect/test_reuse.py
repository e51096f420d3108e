"""Windows that are not computed again: same maps, less work, and nothing kept that should not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests_detect import EVERY_DEVICE, small_detector, some_crops

from inspectd.detect.options import Mode
from inspectd.detect.reuse import ReuseRule
from inspectd.detect.winclip import Detector

PATCH_PX, GRID = 8, 5


def picture(seed: int = 0) -> np.ndarray:
    """A crop of the small model's own size, so that no resizing smears a change."""
    return np.random.default_rng(seed).integers(20, 200, (40, 40, 3), dtype=np.uint8)


def changed(crop: np.ndarray, row: int, column: int, levels: int = 9) -> np.ndarray:
    """The crop with one pixel of one patch changed."""
    other = crop.copy()
    other[row * PATCH_PX + 3, column * PATCH_PX + 5, 1] += levels
    return other


def counted(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Gets, for every pass from now on, how many windows of each scale were computed."""
    found: list[list[int]] = []
    encode = detector.tower.encode

    def counting(tokens, groups, beat):
        found.append([len(group.rows) for group in groups[1:]])
        return encode(tokens, groups, beat)

    monkeypatch.setattr(detector.tower, "encode", counting)
    return found


def run(detector: Detector, crops: list[np.ndarray], memory: object, batch: int = 1, **settings) -> list:
    """The crops as frames of one camera, in batches."""
    return [
        one
        for at in range(0, len(crops), batch)
        for one in detector.score(crops[at : at + batch], memories=[memory] * len(crops[at : at + batch]), **settings)
    ]


def test_only_windows_that_hold_a_changed_patch_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A patch in the corner is in one window of each scale, one in the middle in k² of them; no change, none."""
    detector = small_detector(tmp_path, reuse=ReuseRule())
    computed, first = counted(detector, monkeypatch), picture()
    corner = changed(first, 0, 0)
    run(detector, [first, first, corner, changed(corner, 2, 2)], detector.memory())
    assert computed == [[16, 9], [0, 0], [1, 1], [4, 9]]


@EVERY_DEVICE
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_exact_reuse_gives_the_maps_of_computing_everything(tmp_path: Path, device: str, shots: int, batch: int):
    """Frames of two cameras in turn, changing here and there: same scores, same maps, at any batch size."""
    detector = small_detector(tmp_path, device=device, reuse=ReuseRule(refresh_every=5))
    detector.enroll(some_crops(shots, seed=9))
    crops = [picture(0), picture(1)]
    for at in range(6):
        crops.append(changed(crops[-2], at % GRID, (2 * at) % GRID, levels=40))
    memories = [detector.memory(), detector.memory()] * 4
    wanted, found = detector.score(crops), []
    for at in range(0, 8, batch):
        found += detector.score(crops[at : at + batch], memories=memories[at : at + batch])
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-5)
    assert np.stack([one.map for one in found]) == pytest.approx(np.stack([one.map for one in wanted]), abs=1e-5)


def test_slow_change_does_not_creep_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pixel that rises by one level a frame is computed again when it has risen by more than the tolerance."""
    detector = small_detector(tmp_path, reuse=ReuseRule(tolerance_levels=3))
    computed, first = counted(detector, monkeypatch), picture()
    run(detector, [changed(first, 0, 0, level) for level in range(9)], detector.memory())
    assert [sum(windows) for windows in computed] == [25, 0, 0, 0, 2, 0, 0, 0, 2]


def test_tolerance_is_by_the_largest_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One pixel beyond it counts; all pixels within it, up or down, do not."""
    detector = small_detector(tmp_path, reuse=ReuseRule(tolerance_levels=4))
    computed, first = counted(detector, monkeypatch), picture()
    run(detector, [first, first + 4, first - 4, changed(first, 4, 4, 5)], detector.memory())
    assert [sum(windows) for windows in computed] == [25, 0, 0, 2]


def test_everything_is_computed_every_so_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With refresh_every = 3 the first, fourth and seventh frames are computed whole."""
    detector = small_detector(tmp_path, reuse=ReuseRule(refresh_every=3))
    computed = counted(detector, monkeypatch)
    run(detector, [picture()] * 7, detector.memory())
    assert [sum(windows) for windows in computed] == [25, 0, 0, 25, 0, 0, 25]


def test_cameras_do_not_share_what_they_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What one camera has seen is no reason to skip a window of another, nor of a frame without a memory."""
    detector = small_detector(tmp_path, reuse=ReuseRule())
    computed, first = counted(detector, monkeypatch), picture()
    for memory in (detector.memory(), detector.memory(), None):
        run(detector, [first], memory)
    assert [sum(windows) for windows in computed] == [25, 25, 25]


def test_windows_outside_the_region_are_neither_computed_nor_invented(tmp_path: Path):
    """A region that moves computes what was outside before; maps are those of a detector without memory."""
    detector = small_detector(tmp_path, reuse=ReuseRule())
    regions = [np.zeros((GRID, GRID), bool) for _ in range(2)]
    regions[0][:2, :2] = True
    regions[1][3:, 3:] = True
    memory, first = detector.memory(), picture()
    for region in (*regions, None):
        found = run(detector, [first], memory, regions=[region])[0]
        wanted = detector.score([first], regions=[region])[0]
        assert found.map == pytest.approx(wanted.map, abs=1e-6)


def test_localising_on_fail_reuses_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Frames that pass leave the memory alone; the next that fails is compared with the last that failed."""
    detector = small_detector(tmp_path, reuse=ReuseRule(), mode=Mode.LOCALISE_ON_FAIL)
    computed, first = counted(detector, monkeypatch), picture()
    memory = detector.memory()
    for crop, bar in ((first, -1.0), (picture(5), 2.0), (changed(first, 0, 0), -1.0)):
        run(detector, [crop], memory, localise_from=bar)
    assert [windows for windows in computed if windows] == [[16, 9], [1, 1]]


def test_embedding_that_is_not_finite_is_not_kept(tmp_path: Path):
    """After one broken computation the same picture is computed again, and judged by a sound one."""
    detector = small_detector(tmp_path, reuse=ReuseRule())
    memory, first = detector.memory(), picture()
    sound = detector.tower._position.clone()
    detector.tower._position[3] = torch.nan
    assert np.isnan(run(detector, [first], memory)[0].map).any()
    detector.tower._position.copy_(sound)
    assert np.isfinite(run(detector, [first], memory)[0].map).all()


def test_failed_pass_leaves_the_memory_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pixels whose embeddings were never computed are not taken for known."""
    detector = small_detector(tmp_path, reuse=ReuseRule())
    memory, first, second = detector.memory(), picture(), picture(1)
    run(detector, [first], memory)
    with monkeypatch.context() as broken:
        broken.setattr(detector.tower, "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("no room")))
        with pytest.raises(RuntimeError, match="no room"):
            run(detector, [second], memory)
    assert run(detector, [second], memory)[0].map == pytest.approx(detector.score([second])[0].map, abs=1e-6)
