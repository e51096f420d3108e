"""The renderer of the demo's parts: exact masks, seeds that hold, clips whose truth is true."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from demo_clip import Camera, Layout, Order, describe, make_pieces, station  # noqa: E402
from demo_defects import DefectKind  # noqa: E402
from demo_parts import (  # noqa: E402
    MIN_DEFECT_PX_AT_240,
    lay,
    render_part,
    render_sprite,
    sample_pose,
    sample_product,
)
from demo_shapes import PartKind  # noqa: E402
from demo_station import belt_texture, sample_scene  # noqa: E402


def _product_at_station(kind: PartKind, seed: int = 3):
    rng = np.random.default_rng(seed)
    product = sample_product(rng, kind)
    return product, sample_scene(rng, product.base.rgb), sample_pose(rng)


@pytest.mark.parametrize("kind", PartKind)
def test_good_part_of_every_kind_has_no_damage_and_lies_in_the_picture(kind):
    """A part without defects has an empty mask and covers a fair share of the picture."""
    picture = render_part(*_product_at_station(kind), size_px=240, seed=5)
    assert picture.pixels_rgb.shape == (240, 240, 3)
    assert picture.pixels_rgb.dtype == np.uint8
    assert not picture.mask.any()
    assert picture.defects == ()
    assert 0.05 < picture.cover.mean() < 0.5


def test_same_seed_gives_the_same_picture_and_another_seed_does_not():
    """Everything comes from the seeds."""
    scene = _product_at_station(PartKind.KNOB)
    first, again, other = (render_part(*scene, size_px=240, seed=seed).pixels_rgb for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("defect", DefectKind)
def test_mask_holds_what_the_defect_changed_and_nothing_else(defect):
    """On the part, pixels outside the mask look as they did before; inside it they changed."""
    product, scene, pose = _product_at_station(PartKind.DISC)
    belt = belt_texture(scene, 240, 240, 1.0)
    good, _, _ = render_sprite(product, scene, pose, size_px=240, seed=5)
    bad, mask, done = render_sprite(product, scene, pose, size_px=240, seed=5, defects=(defect,))
    changed = np.abs(lay(belt, bad) - lay(belt, good)).max(-1)
    assert done == (defect,)
    assert mask.sum() >= MIN_DEFECT_PX_AT_240
    assert changed[mask].mean() > 0.15
    far = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert changed[far & (good.alpha > 0.99)].max() < 0.06


@pytest.mark.parametrize("defect", [DefectKind.CHIP, DefectKind.MISSING])
def test_what_is_gone_shows_the_belt(defect):
    """A chip and a missing piece take some of the part away, and the mask holds all of that."""
    product, scene, pose = _product_at_station(PartKind.DISC)
    good, _, _ = render_sprite(product, scene, pose, size_px=240, seed=5)
    bad, mask, _ = render_sprite(product, scene, pose, size_px=240, seed=5, defects=(defect,))
    gone = (good.alpha > 0.9) & (bad.alpha < 0.1)
    assert gone.sum() > 40
    assert mask[gone].all()


@pytest.fixture(scope="module")
def clip():
    product, scene = station(0, PartKind.NUT)
    order = Order(
        seed=1,
        product=product,
        scene=scene,
        parts=21,
        speed_px_per_frame=20.0,
        bad_share=1 / 3,
        defects=tuple(DefectKind),
    )
    layout = Layout()
    pieces = make_pieces(order, layout)
    return order, layout, pieces, describe(order, layout, pieces)


def test_no_two_parts_touch_the_zone_at_once(clip):
    """The frames in which parts touch the zone never overlap, and each part is centred within its own."""
    spans = [part["frames_in_zone"] for part in clip[3]["parts"]]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert all(span[0] < part["frame_centred"] < span[1] for span, part in zip(spans, clip[3]["parts"], strict=True))


def test_every_kind_of_defect_is_there_and_the_bad_share_is_kept(clip):
    """A third of 21 parts is 7, one for each kind."""
    bad = [part for part in clip[3]["parts"] if part["bad"]]
    assert sorted(part["defects"][0]["kind"] for part in bad) == sorted(DefectKind)


def test_truth_says_where_the_part_and_its_damage_are(clip):
    """At the centred frame the part's picture differs from the bare belt around the zone's centre, damage included."""
    order, layout, pieces, truth = clip
    part = next(part for part in truth["parts"] if part["defects"] and part["defects"][0]["kind"] == "hole")
    zone_x, zone_y, side, _ = layout.zone_xywh_px
    frame = Camera(order, layout, pieces).frame(part["frame_centred"]).astype(int)
    bare = Camera(order, layout, []).frame(part["frame_centred"]).astype(int)
    rows, columns = np.nonzero(np.abs(frame - bare).max(-1)[zone_y : zone_y + side, zone_x : zone_x + side] > 40)
    assert abs((rows.min() + rows.max()) / 2 - side / 2) < 0.06 * side
    assert abs((columns.min() + columns.max()) / 2 - side / 2) < 0.06 * side
    x, y, w, h = part["defects"][0]["bbox_xywh_px"]
    assert zone_x <= x < x + w <= zone_x + side
    assert frame[y : y + h, x : x + w].mean() < 100  # the hole is dark, the brass is not


def test_render_demo_writes_a_clip_that_decodes_to_its_truth(tmp_path):
    """The clip has as many frames of the size as the ground truth beside it says."""
    out = tmp_path / "clip.mp4"
    command = [
        sys.executable,
        str(TOOLS / "render_demo"),
        "--out",
        str(out),
        "--parts",
        "1",
        "--speed",
        "60",
        "--seed",
        "4",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    truth = json.loads(out.with_suffix(".json").read_text())
    with av.open(str(out)) as container:
        sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    assert sizes == [tuple(truth["size_wh_px"])] * truth["frames"]
    assert len(truth["parts"]) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--defects", "rust"], "rust"),
        (["--bad-share", "1.5"], "1.5"),
        (["--speed", "0"], "0"),
        (["--parts", "0"], "--parts"),
    ],
)
def test_render_demo_refuses_bad_arguments_by_name(tmp_path, arguments, named):
    """Wrong usage is exit 2 and a line that names what was wrong."""
    command = [sys.executable, str(TOOLS / "render_demo"), "--out", str(tmp_path / "x.mp4"), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]
