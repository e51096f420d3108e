"""The presence trigger on rendered belts: every part once, at its best moment, whatever belt and light do."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from belts import DIRECTIONS, RADIUS_PX, ZONE, Belt, fired_by
from tests_inspection import bright_recipe

from inspectd.records import Sighting
from inspectd.settings import TriggerSettings
from inspectd.sources.heaps import Heaps, filled
from inspectd.sources.presence import Parts, Presence, Taken

STARTS = [180, 320, 455, 620, 760, 930, 1075, 1220]


def assert_once_each(belt: Belt, fired: list[int], centred: list[float]) -> None:
    """One firing for each part, within a frame or two of its middle."""
    assert len(fired) == len(centred), f"fired {fired}, parts at {centred}"
    assert np.abs(np.asarray(fired) - np.asarray(centred)).max() <= 2 + 3 / belt.speed_px


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed_px", [2.0, 6.0, 17.0, 38.0])
def test_every_part_fires_once_at_its_middle(direction: str, speed_px: float) -> None:
    """From a crawl to three views a part, in any direction, on a belt whose grain moves too."""
    belt = Belt(STARTS, speed_px=speed_px, direction=direction)
    fired = fired_by(belt, range(int(1400 / speed_px)))
    assert_once_each(belt, fired, belt.centred_at())


@pytest.mark.parametrize("part_level", [20, 150, 240])
@pytest.mark.parametrize("grain", [0.0, 9.0])
def test_dark_and_bright_parts_on_smooth_and_coarse_belts(part_level: int, grain: float) -> None:
    """The belt's own restlessness is learnt, so that grain is no part."""
    belt = Belt(STARTS, grain=grain, part_level=part_level)
    assert_once_each(belt, fired_by(belt, range(230)), belt.centred_at())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_camera_that_shakes_more_than_the_belt_moves(seed: int) -> None:
    """A jerk backwards takes no part while it enters, and one that was gone and shakes back is not taken again."""
    shakes_px = np.random.default_rng(seed).normal(0, 4, 300).tolist()
    belt = Belt(range(60, 1020, 80), travel=lambda index: 6 * index + shakes_px[index])
    assert_once_each(belt, fired_by(belt, range(200)), belt.centred_at())


LIGHTS = {
    "drift": lambda index: 1 + 0.25 * np.sin(index / 40),
    "step": lambda index: 0.65 if index > 90 else 1.0,
    "flicker": lambda index: 1 + 0.05 * (index % 2),
}


@pytest.mark.parametrize("light", LIGHTS)
def test_changes_of_light_are_no_parts(light: str) -> None:
    """Lamps that drift, flicker or are dimmed at once neither make a part nor hide one."""
    belt = Belt(STARTS, light=LIGHTS[light])
    assert_once_each(belt, fired_by(belt, range(230)), belt.centred_at())


def test_empty_belt_never_fires() -> None:
    """Grain, however coarse, is not a part."""
    assert fired_by(Belt([], grain=9.0, speed_px=5.0), range(300)) == []


def test_two_parts_in_the_zone_are_two() -> None:
    """Neighbours that do not touch are told apart, one behind the other and side by side."""
    pairs = Belt([200, 255, 480, 535], speed_px=5)
    assert_once_each(pairs, fired_by(pairs, range(160)), pairs.centred_at())
    abreast = Belt([200, 200, 480, 480], asides_px=[-29, 29, -29, 29], speed_px=5)
    fired = fired_by(abreast, range(160))
    assert fired == pytest.approx([40, 40, 96, 96], abs=3)


def test_parts_that_come_into_the_place_of_the_one_before_are_parts() -> None:
    """On a belt so fast that each part lies where another lay in the view before, none is taken for a piece of it."""
    belt = Belt([200 + 50 * number for number in range(12)], speed_px=36)
    assert len(fired_by(belt, range(25))) == 12


LONE = [180, 320, 455, 600]


@pytest.mark.parametrize("heap", [2, 3])
@pytest.mark.parametrize("direction", ["right", "up"])
def test_touching_parts_are_told_apart_once_single_ones_were_seen(heap: int, direction: str) -> None:
    """Two or three parts in a row, edge to edge, are so many verdicts, each at its own middle."""
    starts = LONE + [760 + 300 * group + 44 * part for group in range(3) for part in range(heap)]
    belt = Belt(starts, speed_px=4, direction=direction)
    assert fired_by(belt, range(460)) == pytest.approx(belt.centred_at(), abs=4)


def test_touching_parts_abreast_are_told_apart() -> None:
    """Side by side they enter and leave together."""
    belt = Belt([*LONE, 800, 800, 1000, 1000], asides_px=[0, 0, 0, 0, -22, 22, -22, 22], speed_px=5)
    fired = fired_by(belt, range(280))
    assert fired == pytest.approx([*(start / 5 for start in LONE), 160, 160, 200, 200], abs=3)


def test_parts_of_all_sizes_are_never_cut() -> None:
    """Where single parts differ by more than a heap would, size says nothing: a long part stays one."""
    heaps = Heaps()
    for area in (400, 900, 500, 1400, 700):
        heaps.learn(area)
    assert heaps.single_area is None


def test_large_part_without_a_waist_is_one() -> None:
    """Twice as large as the others, but one piece: it is not cut, for nothing says where."""
    heaps = Heaps()
    for _ in range(5):
        heaps.learn(20 * 20)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:50] = 1
    assert heaps.pieces(mask) == []
    mask[10:30, 28:32] = 0
    mask[18:22, 28:32] = 1
    assert len(heaps.pieces(mask)) == 2


def test_parts_side_by_side_fall_apart_along_the_groove_between_them() -> None:
    """Two squares, edge to edge, have no waist; the dark line between them is seen in the finer picture."""
    heaps = Heaps()
    for _ in range(5):
        heaps.learn(20 * 20)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:50] = 1
    relief = np.kron(mask, np.ones((4, 4), np.uint8)).astype(np.float32) * 120
    assert heaps.pieces(mask, lambda: relief, groove_levels=30.0) == []
    relief[40:120, 118:122] = 60
    left, right = heaps.pieces(mask, lambda: relief, groove_levels=30.0)
    assert (left.sum(), right.sum()) == pytest.approx((400, 400), rel=0.1)


def test_ring_that_the_edge_of_the_zone_cuts_is_as_large_as_a_disc() -> None:
    """Its hole is open there, and yet a hole; what lies between two parts is wider and none."""
    ring = np.zeros((40, 40), np.uint8)
    cv2.circle(ring, (0, 20), 15, 1, -1)
    disc = int(ring.sum())
    cv2.circle(ring, (0, 20), 6, 0, -1)
    assert filled(ring, 14.0).sum() == disc
    assert filled(ring, 10.0).sum() == ring.sum()


@pytest.mark.parametrize("direction", ["right", "up"])
@pytest.mark.parametrize("speed_px", [4.0, 30.0])
def test_heap_that_is_longer_than_the_zone_is_seen_whole(direction: str, speed_px: float) -> None:
    """What cannot be told apart and never ends within the zone is taken so often that all of it is in some frame."""
    belt = Belt([*LONE, *range(760, 1300, 12)], speed_px=speed_px, direction=direction)
    fired = np.asarray(fired_by(belt, range(int(1500 / speed_px))))
    heap = np.arange(760 - RADIUS_PX, 1300 + RADIUS_PX)
    assert np.abs(fired[:, None] * speed_px - heap).min(axis=0).max() <= ZONE[2] / 2 + 2
    assert len(fired) <= len(LONE) + 2 * len(heap) / ZONE[2] + 1


def test_heap_that_stands_is_not_taken_again_and_again() -> None:
    """Only what has come up since is new: a belt that halts brings nothing."""
    belt = Belt([*LONE, *range(760, 1300, 12)], travel=lambda index: 4.0 * (min(index, 240) + max(0, index - 440)))
    fired = fired_by(belt, range(600))
    assert sum(250 <= index <= 440 for index in fired) <= 1


def test_sharper_neighbour_is_taken_instead_of_a_blurred_middle() -> None:
    """A frame that was shaken is not the best one, however centred."""
    belt, presence = Belt([180], speed_px=3), Presence(ZONE)
    fired = []
    for index in range(100):
        frame = belt.frame(index)
        if index == 60:
            frame = replace(frame, pixels_bgr=cv2.GaussianBlur(frame.pixels_bgr, (0, 0), 3))
        fired += presence.feed(frame)
    assert [part.best.index for part in fired] == [59]


def test_voting_frames_are_the_best_ones_of_the_part_alone() -> None:
    """So many as are asked for, whole in the zone, near its middle, none twice and none of another part."""
    belt, presence = Belt(STARTS, speed_px=6.0), Presence(ZONE, votes=4)
    parts = [part for index in range(230) for part in presence.feed(belt.frame(index))]
    assert len(parts) == len(STARTS)
    for part, centred in zip(parts, belt.centred_at(), strict=True):
        indices = [frame.index for frame in part.frames]
        assert len(set(indices)) == 4
        assert np.abs(np.asarray(indices) - centred).max() <= 5


def test_new_process_does_not_take_again_what_lies_in_the_zone() -> None:
    """It is told where the last part was taken and how it moved: that one is known, the next ones are not."""
    belt, first = Belt(STARTS, speed_px=6.0), Presence(ZONE)
    taken: list[Taken] = []
    for index in range(56):
        frame = belt.frame(index)
        taken += [
            Taken(sighting=part.sighting, frame_index=part.best.index, captured_ns=part.best.captured_ns)
            for part in first.feed(frame)
        ]
    assert len(taken) == 2
    for recorded in (True, False):
        again = fired_by(belt, range(56, 230), Presence(ZONE, taken=taken, recorded=recorded))
        assert_once_each(belt, again, belt.centred_at()[2:])


def test_zone_that_the_frame_does_not_hold_is_told_and_never_silent(tmp_path: Path) -> None:
    """Frames of another size than was configured: one damaged frame at once and every second, never an empty belt."""
    recipe = bright_recipe(tmp_path)
    parts = Parts(TriggerSettings(kind="presence", zone_xywh_px=(200, 0, 100, 100)), recipe)
    belt = Belt(STARTS)
    given = [part.best for index in range(60) for part in parts.feed(belt.frame(index))]
    assert [frame.index for frame in given] == [0, 25, 50]
    assert {frame.damage for frame in given} == {"the zone [200, 0, 100, 100] does not lie in a frame of 240x240"}


def test_part_that_stops_in_the_zone_fires_once() -> None:
    """A belt that halts with a part in the zone, near the middle or not, makes one verdict of it."""

    def halting(index: int) -> float:
        return 5.0 * min(index, 34) + 5.0 * max(0, index - 134)

    belt = Belt([180, 330], travel=halting)
    fired = fired_by(belt, range(260))
    assert len(fired) == 2
    assert 30 <= fired[0] <= 60


def test_part_that_stands_in_the_middle_is_taken_there() -> None:
    """A stopper holds the part: it is taken once it has settled, and not again while it stands or when it leaves."""

    def held(index: int) -> float:
        return 6.0 * min(index, 30) + 6.0 * max(0, index - 120)

    belt = Belt([180], travel=held)
    (fired,) = fired_by(belt, range(200))
    assert 30 <= fired <= 50


@pytest.mark.parametrize("index", [0, 4])
def test_part_that_lay_there_at_the_start_does_not_spoil_the_next(index: int) -> None:
    """Where a part hid the belt at the start is learnt again once it has left: all later parts fire once."""
    belt = Belt([10, *STARTS[1:]], speed_px=6)
    fired = [each for each in fired_by(belt, range(index, 230)) if each > 40]
    assert_once_each(belt, fired, belt.centred_at()[1:])


def test_part_that_stood_there_at_the_start_leaves_no_ghost() -> None:
    """A belt that begins to run later than the daemon: the bare place of the first part is not taken for one."""
    belt = Belt([0, *STARTS[1:]], travel=lambda index: 6.0 * max(0, index - 50))
    fired = [each for each in fired_by(belt, range(280)) if each > 90]
    assert_once_each(belt, fired, [50 + start / 6 for start in STARTS[1:]])


def test_lost_frames_are_reckoned_with() -> None:
    """Gaps in the index, as a busy machine makes them, cost no part and double none."""
    belt, rng = Belt(STARTS, speed_px=5.0), random.Random(4)
    presence = Presence(ZONE)
    kept = [index for index in range(280) if rng.random() > 0.3]
    fired = [part.best.index for index in kept for part in presence.feed(belt.frame(index))]
    assert len(fired) == len(STARTS)
    assert np.abs(np.asarray(fired) - belt.centred_at()).max() <= 5


def test_nothing_is_remembered_of_parts_that_are_gone() -> None:
    """Also of one that somebody takes away before it reaches the middle: it fires, and that is all."""
    belt, presence = Belt([180], speed_px=6.0), Presence(ZONE)
    bare = Belt([], speed_px=6.0)
    frames = [(belt if index < 27 else bare).frame(index) for index in range(40)]
    assert [part.best.index for frame in frames for part in presence.feed(frame)] == [26]
    assert presence._waiting == {}


def test_end_of_the_source_fires_what_is_in_the_zone() -> None:
    """A recording that ends with a part before the middle still makes its verdict."""
    belt = Belt([180], speed_px=6.0)
    presence = Presence(ZONE)
    assert [part for index in range(28) for part in presence.feed(belt.frame(index))] == []
    assert [part.best.index for part in presence.flush()] == [27]
    assert presence.flush() == []


def test_interruption_ends_what_was_in_the_zone() -> None:
    """After a long gap, or another connection's clock, nothing before it is followed on."""
    belt = Belt([180, 700], speed_px=6.0)
    presence = Presence(ZONE)
    for index in range(28):
        assert presence.feed(belt.frame(index)) == []
    told = presence.feed(belt.frame(90))
    assert [(part.best.index, part.best.damage) for part in told] == [(27, None), (90, "no frame for 2.5 s")]
    later = [replace(belt.frame(index), pts_s=index / 25 - 3.6) for index in range(91, 140)]
    assert [part.best.index for each in later for part in presence.feed(each)] == [117]


@pytest.mark.parametrize(("stall_s", "told"), [(0.2, 0), (1.8, 1)])
def test_stall_in_which_parts_may_have_passed_is_one_error(stall_s: float, told: int) -> None:
    """A camera that says nothing for a moment loses no frame of its count, and yet nobody has seen the belt."""
    belt, presence = Belt(STARTS, speed_px=6.0), Presence(ZONE)
    lost = round(stall_s * 25)
    given = []
    for index in range(230 - lost):
        frame = belt.frame(index if index < 60 else index + lost)
        given += presence.feed(replace(frame, index=index))
    errors = [part.best for part in given if part.best.damage is not None]
    assert [frame.index for frame in errors] == [60] * told
    seen = [start for start in STARTS if not 60 * 6 - 110 < start < (60 + lost) * 6 + 110]
    assert len(given) - told >= len(seen)
    assert told or len(given) == len(STARTS)


def test_silence_in_which_the_streams_own_times_end_is_one_error(tmp_path: Path) -> None:
    """No clock measures it, and parts that come afterwards are parts by the other clock."""
    belt = Belt([180, 900, 1240], speed_px=6.0)
    parts = Parts(
        TriggerSettings(kind="presence", zone_xywh_px=ZONE),
        bright_recipe(tmp_path),
        taken=[
            Taken(
                sighting=Sighting(bbox_xywh_px=ZONE, step_xy_px=(6.0, 0.0), frame_s=0.04), frame_index=0, captured_ns=0
            )
        ],
        recorded=False,
    )
    given = []
    for index in [*range(60), *range(100, 240)]:
        each = belt.frame(index)
        stamp_s = 1.7e9 + index / 25 if index < 60 else None
        given += parts.feed(replace(each, index=index if index < 60 else index - 40, pts_s=stamp_s))
    assert [(part.best.index, part.best.damage is None) for part in given] == [
        (30, True),
        (60, False),
        (110, True),
        (167, True),
    ]


def test_new_process_takes_what_comes_to_the_place_of_a_part_that_stood_there_before() -> None:
    """A stopper holds each part at one place: only what is there at once can be the one that was taken before."""
    held = Belt([180], travel=lambda index: 6.0 * min(index, 27))
    first = Presence(ZONE)
    (part,) = [part for index in range(60) for part in first.feed(held.frame(index))]
    assert part.sighting is not None
    assert not any(part.sighting.step_xy_px)
    taken = [Taken(sighting=part.sighting, frame_index=part.best.index, captured_ns=part.best.captured_ns)]
    laid = Belt([180], travel=lambda index: 162.0 if index % 200 >= 180 else -900.0)
    fired = fired_by(laid, range(100, 620), Presence(ZONE, taken=taken, recorded=False))
    assert fired == [180, 380, 580]


def test_damage_is_reported_once_a_stretch_and_every_second() -> None:
    """Parts may pass unseen behind damage: its first frame is given for a verdict, then one each second."""
    belt = Belt([], speed_px=6.0)
    presence = Presence(ZONE)
    given = []
    for index in range(100):
        each = belt.frame(index)
        damaged = replace(each, damage="decode error") if 20 <= index < 50 or index == 80 else each
        given += [part.best.index for part in presence.feed(damaged)]
    assert given == [20, 45, 80]


LIT = "[quality]\nmin_brightness = 20\nmin_sharpness = 10000\n"


@pytest.mark.parametrize(("recipe", "lit"), [(LIT, True), ("[quality]\nmin_sharpness = 10000\n", False), ("", False)])
def test_dark_is_reported_like_damage(tmp_path: Path, recipe: str, lit: bool) -> None:
    """By the light that a recipe states no part is seen in the dark; its sharpness is about parts, not about belts."""
    belt = Belt([], speed_px=6.0)
    parts = Parts(TriggerSettings(kind="presence", zone_xywh_px=ZONE), bright_recipe(tmp_path, recipe))
    told = []
    for index in range(70):
        each = belt.frame(index)
        dark = replace(each, pixels_bgr=np.zeros_like(each.pixels_bgr)) if 20 <= index < 50 else each
        told += [part.best.index for part in parts.feed(dark)]
    assert (told == [20, 45], 20 in told) == (lit, lit)


def test_picture_that_stands_still_is_reported_like_damage(tmp_path: Path) -> None:
    """Whoever feeds the frames may know that nothing can be seen in them."""
    belt = Belt([], speed_px=6.0)
    parts = Parts(TriggerSettings(kind="presence", zone_xywh_px=ZONE), bright_recipe(tmp_path))
    told = [part.best.index for index in range(60) for part in parts.feed(belt.frame(index), blind=index >= 20)]
    assert told == [20, 45]


def test_damaged_frames_do_not_unsettle_the_tracking() -> None:
    """A short stretch of damage while a part passes neither doubles nor loses it."""
    belt = Belt(STARTS, speed_px=5.0)
    presence = Presence(ZONE)
    fired = []
    for index in range(280):
        each = belt.frame(index)
        broken = index % 60 in (30, 31)
        black = replace(each, pixels_bgr=np.zeros_like(each.pixels_bgr), damage="lost")
        fired += [part for part in presence.feed(black if broken else each) if part.best.damage is None]
    assert [part.best.index for part in fired] == pytest.approx(belt.centred_at(), abs=4)


def test_small_specks_are_no_parts() -> None:
    """What covers less than `min_part_share` of the zone passes unnoticed."""
    assert fired_by(Belt(STARTS), range(230), Presence(ZONE, min_part_share=0.2)) == []
