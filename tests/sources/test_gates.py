"""Gates before the model answer `error` for what nobody can vouch for, and let everything else alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clips import numbered

from inspectd.records import Frame, PixelsU8, Reason
from inspectd.settings import Camera
from inspectd.sources.gates import Frozen, Gates, UsualSize, same_pixels


def frame(pixels_bgr: PixelsU8, at_s: float = 0.0, damage: str | None = None) -> Frame:
    return Frame(index=0, pixels_bgr=pixels_bgr, captured_ns=round(at_s * 1e9), captured_utc_ns=0, damage=damage)


def test_standing_picture_is_frozen_after_its_time() -> None:
    """The same pixels for `frozen_after_s` are a fault, from then on until a new picture comes."""
    gate = Frozen(1.0)
    told = [gate.feed(frame(numbered(1).copy(), at_s=n / 4)) for n in range(8)]
    assert told == [False] * 4 + [True] * 4
    assert not gate.feed(frame(numbered(2), at_s=2.0))
    assert not gate.feed(frame(numbered(2), at_s=2.5))


def test_one_pixel_of_noise_is_life() -> None:
    """A single changed level anywhere, also where no sample looks, means that the camera lives."""
    gate = Frozen(0.5)
    for step in range(20):
        pixels = numbered(1)
        pixels[1, 1, step % 3] ^= step % 2 + 1
        assert not gate.feed(frame(pixels, at_s=step / 4))


def test_noise_within_the_tolerance_is_no_life() -> None:
    """A picture sent anew by a recorder differs a little everywhere; asked to, the gate takes it for the same."""
    rng = np.random.default_rng(1)
    exact, near = Frozen(0.5), Frozen(0.5, tolerance_levels=3)
    told = []
    for step in range(6):
        pixels = numbered(1).clip(3, 252) + rng.integers(-1, 2, numbered(1).shape, dtype=np.int8)
        told.append([gate.feed(frame(pixels.astype(np.uint8), at_s=step / 4)) for gate in (exact, near)])
    assert told == [[False, step >= 2] for step in range(6)]


def test_slow_change_is_no_freeze() -> None:
    """Steps within the tolerance add up: each picture is held against the one that the freeze began with."""
    gate = Frozen(2.0, tolerance_levels=3)
    told = [gate.feed(frame(np.full((40, 60, 3), 100 + step, np.uint8), at_s=step / 2)) for step in range(40)]
    assert told == [False] * 40


def test_picture_that_stood_before_a_reconnect_is_still_frozen() -> None:
    """Nothing is forgotten while the camera was away: the same picture again is no new one."""
    gate = Frozen(0.5)
    gate.feed(frame(numbered(1), at_s=0))
    assert gate.feed(frame(numbered(1).copy(), at_s=9))


def test_change_of_size_is_another_picture() -> None:
    """Pictures of different sizes are never the same."""
    assert not same_pixels(np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20, 3), np.uint8))
    assert same_pixels(np.zeros((3, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8))


def gates_of(trigger: str, **more: Any) -> Gates:
    source = {"kind": "file", "path": "clip.mp4", "frozen_after_s": 1}
    camera = Camera(source=source, recipe="part", trigger={"kind": trigger})
    return Gates(camera, slot_bytes=more.pop("slot_bytes", 1 << 20), **more)


def refused(gates: Gates, pixels_bgr: PixelsU8, at_s: float = 0.0) -> Reason | None:
    return gates.refuse(gates.feed(frame(pixels_bgr, at_s)))


@pytest.mark.parametrize("trigger", ["external", "presence"])
def test_repeat_of_the_last_part_is_frozen_at_once(trigger: str) -> None:
    """Two parts never give the same picture to the bit, however soon they come."""
    gates = gates_of(trigger)
    told = [refused(gates, numbered(number), at_s=index / 100) for index, number in enumerate([1, 2, 2, 3])]
    assert told == [None, None, Reason.FRAME_FROZEN, None]


def test_parts_that_share_their_best_frame_are_no_repeat() -> None:
    """Two that lie side by side are nearest to the middle in one and the same frame."""
    gate = gates_of("presence")
    shared = gate.feed(frame(numbered(1)))
    assert [gate.refuse(shared), gate.refuse(shared)] == [None, None]
    repeat = frame(numbered(1).copy())
    assert [gate.refuse(repeat), gate.refuse(repeat)] == [Reason.FRAME_FROZEN] * 2


def test_repeat_is_known_to_a_new_capture() -> None:
    """What the last process inspected counts too."""
    assert refused(gates_of("external", inspected=frame(numbered(1))), numbered(1)) is Reason.FRAME_FROZEN


def test_continuous_frames_may_repeat_for_a_while() -> None:
    """A camera doubles frames; only a picture that stands is frozen, until the next one."""
    gates = gates_of("continuous")
    told = [refused(gates, numbered(number), at_s=at_s) for number, at_s in [(1, 0), (1, 0.5), (1, 1.0), (2, 1.5)]]
    assert told == [None, None, Reason.FRAME_FROZEN, None]


def test_a_frame_that_is_judged_late_is_judged_by_its_own_moment() -> None:
    """A trigger that was long under way asks for an earlier frame; whether that one stood still does not change."""
    gates = gates_of("external")
    alive, *_, still, again = [
        gates.feed(frame(numbered(number).copy(), at_s=at_s)) for number, at_s in [(1, 0), (2, 0.5), (2, 1.5), (3, 2)]
    ]
    assert [gates.refuse(each) for each in (still, alive, again)] == [Reason.FRAME_FROZEN, None, None]


def test_damage_does_not_thaw_a_frozen_camera() -> None:
    """A picture that stands and is broken now and then stands all the same."""
    gates = gates_of("continuous")
    told = []
    for step in range(12):
        shown = frame(numbered(1 + step % 3 // 2), at_s=step / 4, damage="torn" if step % 3 == 2 else None)
        told.append(gates.refuse(gates.feed(shown)))
    assert told[6:] == [Reason.FRAME_FROZEN, Reason.FRAME_FROZEN, Reason.FRAME_CORRUPT] * 2


@pytest.mark.parametrize("frozen", [False, True])
def test_picture_that_stood_before_a_new_capture_is_still_frozen(frozen: bool) -> None:
    """Since the last frame that was inspected, or, where that was frozen already, from the first frame on."""
    gates = gates_of("continuous", inspected=replace(frame(numbered(1)), frozen=frozen))
    told = [refused(gates, numbered(number), at_s) for number, at_s in [(1, 0.5), (1, 1.0), (2, 1.5)]]
    assert told == [Reason.FRAME_FROZEN if frozen else None, Reason.FRAME_FROZEN, None]


def test_damaged_frame_is_corrupt() -> None:
    """However good it looks; a sound one goes on."""
    gates = gates_of("continuous")
    assert gates.refuse(frame(numbered(1), damage="decode error")) is Reason.FRAME_CORRUPT
    assert gates.refuse(frame(numbered(1))) is None


def test_frame_larger_than_the_ring_is_corrupt() -> None:
    """A camera that changed its size is not cut to fit."""
    assert refused(gates_of("continuous", slot_bytes=100), numbered(1)) is Reason.FRAME_CORRUPT


def test_frames_of_another_size_are_damaged_until_the_first_size_is_back() -> None:
    """The first sound frame says what is usual; damage of the camera's own is told as it is, whatever its size."""
    gate, usual, other = UsualSize(), np.zeros((96, 160, 3), np.uint8), np.zeros((72, 120, 3), np.uint8)
    frames = [frame(other, damage="torn"), frame(usual), frame(other), frame(other, damage="torn"), frame(usual)]
    told = "120x72 px, where 160x96 came before"
    assert [gate.check(each).damage for each in frames] == ["torn", None, told, "torn", None]
    assert UsualSize((160, 96)).check(frame(other)).damage == told
