"""Measures the demo model through ``inspectd.detect`` on rendered parts that training never saw.

A *product* is one article at one station: 4 references, 6 good and 6 damaged pictures, all of a seed of their own.
Image and pixel AUROC are pooled over everything of a row: one threshold for all products, the stricter way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_defects import DefectKind
from demo_parts import Render, render_part, sample_pose, sample_product
from demo_shapes import PartKind
from demo_station import sample_scene, vary_scene
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from inspectd.detect.build import build_detector
from inspectd.detect.preprocess import upsample_map
from inspectd.detect.winclip import Detector
from inspectd.recipe import load_recipe

SIZE_PX = 240
SHOTS = 4
TEST_SEED = 3_000_000
"""Products of training have seeds below 1 000 000, calibration starts at 2 000 000."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """The pictures of one product: ``references``, ``good`` and ``bad`` RGB, and what is wrong with the bad."""

    kind: PartKind
    references: list[NDArray[np.uint8]]
    good: list[NDArray[np.uint8]]
    bad: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    defects: list[DefectKind]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Scores and maps of one product's pictures."""

    product: Product
    good_scores: list[float]
    bad_scores: list[float]
    good_maps: list[NDArray[np.float32]]
    bad_maps: list[NDArray[np.float32]]


def render_product(seed: int, kind: PartKind, defects: Sequence[DefectKind], good: int = 6) -> Product:
    """Renders one product; each of ``defects`` in turn damages one picture."""
    rng = np.random.default_rng(seed)
    article = sample_product(rng, kind)
    scene = sample_scene(rng, article.base.rgb)

    def shoot(chosen: tuple[DefectKind, ...]) -> Render:
        noise = int(rng.integers(2**31))
        moment, pose = vary_scene(scene, rng), sample_pose(rng)
        return render_part(article, moment, pose, size_px=SIZE_PX, seed=noise, defects=chosen)

    references = [shoot(()).pixels_rgb for _ in range(SHOTS)]
    fine = [shoot(()).pixels_rgb for _ in range(good)]
    # A defect that cannot be seen on this material (a dent in black rubber) gives no picture.
    damaged = [picture for defect in defects if (picture := shoot((defect,))).defects]
    return Product(
        kind=kind,
        references=references,
        good=fine,
        bad=[picture.pixels_rgb for picture in damaged],
        masks=[picture.mask for picture in damaged],
        defects=[picture.defects[0] for picture in damaged],
    )


def make_detector(weights: Path, config: Path, name: str, cache_dir: Path) -> Detector:
    """A detector as a recipe of that object name would have it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(
            f'object = "{name}"\n[model]\nbackbone = "demo"\n'
            f'weights = "{weights.resolve()}"\nconfig = "{config.resolve()}"\n'
            "[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"
        )
        return build_detector(load_recipe(path), weights_dir=Path(folder), device="cpu", cache_dir=cache_dir)


def judge(detector: Detector, product: Product, shots: int) -> Judged:
    """Scores a product with its first ``shots`` references."""
    detector.enroll(product.references[:shots])
    scored = detector.score([*product.good, *product.bad])
    maps = [upsample_map(s.map, (SIZE_PX, SIZE_PX)) for s in scored if s.map is not None]
    count = len(product.good)
    scores = [s.score for s in scored]
    return Judged(
        product=product,
        good_scores=scores[:count],
        bad_scores=scores[count:],
        good_maps=maps[:count],
        bad_maps=maps[count:],
    )


def image_auroc(judged: Sequence[Judged], only: DefectKind | None = None) -> float:
    """All good pictures against the damaged ones (of one kind)."""
    good = [s for j in judged for s in j.good_scores]
    bad = [s for j in judged for s, d in zip(j.bad_scores, j.product.defects, strict=True) if only in (None, d)]
    return float(roc_auc_score([0] * len(good) + [1] * len(bad), good + bad)) if bad else float("nan")


def pixel_auroc(judged: Sequence[Judged], only: DefectKind | None = None) -> float:
    """All pixels of good and damaged pictures (of one kind), at a quarter of the resolution for speed."""
    values, labels = [], []
    for j in judged:
        values += [m[1::2, 1::2].ravel() for m in j.good_maps]
        labels += [np.zeros(m[1::2, 1::2].size, np.bool_) for m in j.good_maps]
        for anomaly, mask, defect in zip(j.bad_maps, j.product.masks, j.product.defects, strict=True):
            if only in (None, defect):
                values.append(anomaly[1::2, 1::2].ravel())
                labels.append(mask[1::2, 1::2].ravel())
    return float(roc_auc_score(np.concatenate(labels), np.concatenate(values)))


def mean_product_auroc(judged: Sequence[Judged]) -> float:
    """The mean over products of each one's own image AUROC, as benchmarks with one category a product have it."""
    return float(np.mean([image_auroc([j]) for j in judged if j.bad_scores]))


def evaluate(
    weights: Path, config: Path, products: int, *, held_kind: PartKind, held_defect: DefectKind, cache_dir: Path
) -> tuple[Table, dict[str, dict[str, float]]]:
    """The table: seen kinds and defects, each defect, then what training never saw, zero-shot and with 4 references."""
    kinds = [k for k in PartKind if k is not held_kind]
    known = [d for d in DefectKind if d is not held_defect]
    seen = [render_product(TEST_SEED + i, kinds[i % len(kinds)], known) for i in range(products)]
    new_kind = [render_product(TEST_SEED + 10_000 + i, held_kind, known) for i in range(max(products // 4, 1))]
    few = max(products // 3, 1)
    new_defect = [render_product(TEST_SEED + 20_000 + i, kinds[i % len(kinds)], [held_defect] * 6) for i in range(few)]
    numbers: dict[str, dict[str, float]] = {}
    detectors = {kind: make_detector(weights, config, kind.value, cache_dir) for kind in PartKind}
    for shots in (0, SHOTS):
        sets = {"seen": seen, "new_kind": new_kind, "new_defect": new_defect}
        judged = {name: [judge(detectors[p.kind], p, shots) for p in group] for name, group in sets.items()}
        _note(numbers, "kinds and defects of the training", shots, judged["seen"])
        for defect in known:
            _note(numbers, f"  {defect.value}", shots, judged["seen"], defect)
        _note(numbers, f"kind left out: {held_kind.value}", shots, judged["new_kind"])
        _note(numbers, f"defect left out: {held_defect.value}", shots, judged["new_defect"])
    return _table(numbers), numbers


def _note(
    numbers: dict[str, dict[str, float]], row: str, shots: int, judged: Sequence[Judged], only: DefectKind | None = None
) -> None:
    cells = numbers.setdefault(row, {"pictures": 0.0})
    cells["pictures"] = float(
        sum(len(j.good_scores) + sum(only in (None, d) for d in j.product.defects) for j in judged)
    )
    cells[f"image_{shots}"] = image_auroc(judged, only)
    cells[f"pixel_{shots}"] = pixel_auroc(judged, only)
    if only is None:
        cells[f"mean_{shots}"] = mean_product_auroc(judged)


def _table(numbers: dict[str, dict[str, float]]) -> Table:
    table = Table(title="Demo model on rendered parts of unseen seeds (AUROC, %)")
    table.add_column("parts")
    for title in (
        "pictures",
        "image 0-shot",
        "pixel 0-shot",
        "mean product",
        "image 4-shot",
        "pixel 4-shot",
        "mean product",
    ):
        table.add_column(title, justify="right")
    keys = ("image_0", "pixel_0", "mean_0", f"image_{SHOTS}", f"pixel_{SHOTS}", f"mean_{SHOTS}")
    for row, cells in numbers.items():
        shown = [f"{100 * cells[key]:.1f}" if key in cells else "" for key in keys]
        table.add_row(row, f"{cells['pictures']:.0f}", *shown)
    return table


def print_table(table: Table) -> None:
    """Prints to the terminal, wide enough for pipes."""
    Console(width=120).print(table)
