"""Windows, prompts and WinCLIP's formulas, against the definitions written out."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch

from inspectd.detect.prompts import ANOMALIB_TEMPLATES, TEMPLATES, compose
from inspectd.detect.scoring import FewShotMap, anomalous_share, association, few_shot_map, zero_shot_map
from inspectd.detect.windows import coverage, covering, harmonic, window_patches, with_ring


@pytest.mark.parametrize("module", ["prompts", "reuse", "scoring", "windows"])
def test_examples_in_docstrings_hold(module: str):
    """The formulas' examples run."""
    failed, tried = doctest.testmod(importlib.import_module(f"inspectd.detect.{module}"))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(("scale", "count"), [(2, 196), (3, 169), (15, 1)])
def test_windows_of_the_default_grid(scale: int, count: int):
    """Scale k has (15 - k + 1)² windows of k² patches, row-major."""
    patches = window_patches((15, 15), scale)
    assert patches.shape == (count, scale * scale)
    assert patches[0, :scale].tolist() == list(range(scale))
    assert patches.flatten().unique().tolist() == list(range(225))


def test_strided_windows_leave_no_patch_out():
    """With stride 2 on a grid of odd sides the last windows are moved back to the edge."""
    patches = window_patches((7, 5), 2, stride=2)
    assert patches.flatten().unique().tolist() == list(range(35))
    assert len(patches) == 4 * 3


def test_harmonic_equals_the_coverage_matrix():
    """Harmonic aggregation is (C 1) / (C (1 / p)) with the coverage matrix C."""
    patches = window_patches((4, 6), 3)
    scores = torch.rand(2, len(patches)) + 0.01
    cover = torch.zeros(24, len(patches)).scatter_(0, patches.T, 1.0)
    expected = cover.sum(dim=1) / ((1 / scores) @ cover.T)
    assert harmonic(scores, coverage(patches, 24)) == pytest.approx(expected, rel=1e-5)


def test_window_score_that_is_not_finite_spoils_its_own_patches_alone():
    """A NaN of one window is in the map where that window lies, and nowhere else."""
    patches = window_patches((4, 4), 2)
    scores = torch.full((1, 9), 0.5)
    scores[0, 0] = torch.nan
    found = harmonic(scores, coverage(patches, 16))[0].isnan().nonzero().flatten().tolist()
    assert found == [0, 1, 4, 5]


def test_query_equal_to_a_reference_is_clamped():
    """Tiny scores of either sign become one tiny positive score."""
    found = harmonic(torch.tensor([[-6e-8, 0.0, 6e-8]]), coverage(torch.tensor([[0], [1], [2]]), 3))
    assert found[0].tolist() == pytest.approx([1e-12, 1e-12, 6e-8])


def test_windows_that_a_region_needs():
    """A window is needed when it holds a needed patch; the ring takes in all eight neighbours."""
    region = np.zeros((5, 5), dtype=bool)
    region[0, 0] = True
    ring = with_ring(region)
    assert ring.sum() == 4
    needed = torch.from_numpy(ring).flatten()[None]
    assert covering(needed, window_patches((5, 5), 2)).view(4, 4).sum() == 4
    assert covering(needed, window_patches((5, 5), 2)).view(4, 4)[:2, :2].all()


def test_anomalous_share_is_the_softmax():
    """p = exp(ẑ·t+ / τ) / (exp(ẑ·t- / τ) + exp(ẑ·t+ / τ))."""
    z, text = torch.tensor([3.0, 4.0]), torch.eye(2)
    good, bad = np.exp(0.6 / 0.5), np.exp(0.8 / 0.5)
    assert float(anomalous_share(z, text, 0.5)) == pytest.approx(bad / (good + bad))


def test_association_takes_the_nearest_of_many_references(monkeypatch: pytest.MonkeyPatch):
    """Banks that are compared part by part give what one comparison gives."""
    rows = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1)
    query = torch.randn(3, 7, 8)
    whole = association(query, rows)
    monkeypatch.setattr("inspectd.detect.scoring._ROWS_AT_ONCE", 7)
    assert association(query, rows) == pytest.approx(whole, abs=1e-6)
    assert float(association(rows[4:5], rows)) == pytest.approx(0.0, abs=1e-6)


def test_maps_are_put_together():
    """The zero-shot map is a harmonic mean over 1 + K maps; the few-shot one a mean, or a sum where asked."""
    maps = [torch.tensor([[0.2, 0.4]]), torch.tensor([[0.5, 0.1]])]
    assert zero_shot_map(torch.tensor([0.3]), maps)[0, 0] == pytest.approx(3 / (1 / 0.3 + 1 / 0.2 + 1 / 0.5))
    assert few_shot_map(maps, FewShotMap.MEAN)[0].tolist() == pytest.approx([0.35, 0.25])
    assert few_shot_map(maps, FewShotMap.SUM)[0].tolist() == pytest.approx([0.7, 0.5])


def test_prompt_ensemble_is_complete():
    """22 templates, 7 + 4 states; own words replace the paper's, several names are all filled in."""
    assert len(set(TEMPLATES)) == 22
    assert all(text.endswith(".") and text.count("{}") == 1 for text in TEMPLATES)
    assert (len(ANOMALIB_TEMPLATES), len(set(ANOMALIB_TEMPLATES))) == (21, 20)
    own = compose(["cap", "lid"], anomalous=["scratched {}"], templates=["{}!"])
    assert own.anomalous == ("scratched cap!", "scratched lid!")
    assert len(own.normal) == 14
