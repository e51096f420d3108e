"""Gates before the model answer `error` for what nobody can vouch for, and let everything else alone."""

from __future__ import annotations

import numpy as np
import pytest
from clips import numbered

from inspectd.records import Frame, PixelsU8, Reason
from inspectd.sources.gates import Frozen, QualityLimits, refuse_damaged, refuse_poor, same_pixels


def frame(pixels_bgr: PixelsU8, at_s: float = 0.0, damage: str | None = None) -> Frame:
    return Frame(index=0, pixels_bgr=pixels_bgr, captured_ns=round(at_s * 1e9), captured_utc_ns=0, damage=damage)


def test_standing_picture_is_frozen_after_its_time() -> None:
    """The same pixels for `frozen_after_s` are a fault, from then on until a new picture comes."""
    gate = Frozen(1.0)
    told = [gate.feed(frame(numbered(1).copy(), at_s=n / 4)) for n in range(8)]
    assert [each is not None for each in told] == [False] * 4 + [True] * 4
    assert {each.reason for each in told if each is not None} == {Reason.FRAME_FROZEN}
    assert gate.feed(frame(numbered(2), at_s=2.0)) is None
    assert gate.feed(frame(numbered(2), at_s=2.5)) is None


def test_one_pixel_of_noise_is_life() -> None:
    """A single changed level anywhere, also where no sample looks, means that the camera lives."""
    gate = Frozen(0.5)
    for step in range(20):
        pixels = numbered(1)
        pixels[1, 1, step % 3] ^= step % 2 + 1
        assert gate.feed(frame(pixels, at_s=step / 4)) is None


def test_reset_forgets_the_picture() -> None:
    """After a reconnect the first picture is new, even if it looks like the last."""
    gate = Frozen(0.5)
    gate.feed(frame(numbered(1), at_s=0))
    gate.reset()
    assert gate.feed(frame(numbered(1), at_s=9)) is None


def test_change_of_size_is_another_picture() -> None:
    """Pictures of different sizes are never the same."""
    assert not same_pixels(np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20, 3), np.uint8))
    assert same_pixels(np.zeros((3, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8))


def test_damage_is_refused_by_name() -> None:
    """Damage is `frame_corrupt` and carries its reason; a sound frame passes this gate."""
    refusal = refuse_damaged(frame(numbered(1), damage="decode error"))
    assert refusal is not None
    assert (refusal.reason, refusal.detail) == (Reason.FRAME_CORRUPT, "decode error")
    assert refuse_damaged(frame(numbered(1))) is None


SHARP = numbered(1, (320, 192))
POOR = [
    (np.zeros((96, 160, 3), np.uint8), QualityLimits(min_brightness=10), "too dark"),
    (np.full((96, 160, 3), 250, np.uint8), QualityLimits(max_brightness=240), "too bright"),
    (np.full((96, 160, 3), 255, np.uint8), QualityLimits(max_clipped_share=0.2), "overexposed"),
    (np.full((96, 160, 3), 90, np.uint8), QualityLimits(min_sharpness=5), "blurred"),
]


@pytest.mark.parametrize(("pixels", "limits", "word"), POOR, ids=[word for _, _, word in POOR])
def test_poor_picture_is_refused_for_what_it_is(pixels: PixelsU8, limits: QualityLimits, word: str) -> None:
    """Each limit refuses its own fault and passes a usable picture."""
    refusal = refuse_poor(frame(pixels), limits)
    assert refusal is not None
    assert refusal.reason is Reason.FRAME_QUALITY
    assert refusal.detail.startswith(word)
    assert refuse_poor(frame(SHARP), limits) is None


def test_no_limits_refuse_nothing() -> None:
    """Limits are off unless somebody sets them."""
    assert refuse_poor(frame(np.zeros((8, 8, 3), np.uint8)), QualityLimits()) is None
