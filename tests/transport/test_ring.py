"""The ring of pixels, with real writer processes that overrun their reader or die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from victims import ended, overrun_for_ever, started, until, write_and_die

from inspectd.errors import TransportError
from inspectd.transport.memory import FOLDER, Segment, sweep
from inspectd.transport.ring import PAGE, Ring

STEPS = ("opened", "named", "copied", "closed")


def frame(level: int, height_px: int = 8, width_px: int = 8) -> np.ndarray:
    """A frame of one value."""
    return np.full((height_px, width_px, 3), level, np.uint8)


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a ring of this test alone."""
    name = f"inspectd-test{os.getpid()}-ring"
    yield name
    sweep(name)


@pytest.fixture
def ring(name: str) -> Ring:
    """Three slots for frames of 8 x 8."""
    return Ring.create(name, slots=3, slot_bytes=192)


def test_a_frame_comes_out_as_it_went_in(ring: Ring, name: str) -> None:
    """Another process' view of the ring reads what was written, of any size that fits and any memory layout."""
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)[::-1, :, ::-1]
    generation = ring.write(1, pixels, seq=1)
    other = Ring.attach(name)
    assert np.array_equal(other.read(1, generation, 6, 5), pixels)
    assert np.array_equal(other.view(1, generation, 6, 5), pixels)


def test_the_usual_size_outlives_its_writer(ring: Ring, name: str) -> None:
    """Who attaches next finds it."""
    assert ring.usual_wh_px is None
    Ring.attach(name).usual_wh_px = (1920, 1080)
    assert Ring.attach(name).usual_wh_px == (1920, 1080)


def test_the_segment_is_whole_pages(name: str) -> None:
    """Slots that are no multiple of a page do not run into each other."""
    ring = Ring.create(name, slots=3, slot_bytes=PAGE + 3)
    height = (PAGE + 3) // 3
    generations = [ring.write(slot, frame(slot + 1, height, 1), slot) for slot in range(3)]
    for slot, generation in enumerate(generations):
        assert set(np.unique(ring.read(slot, generation, height, 1))) == {slot + 1}


def test_slots_are_claimed_until_all_hold_frames_that_wait(ring: Ring) -> None:
    """A full ring gives no slot; a released one, or one whose frame is answered, is free again."""
    generations = {}
    for seq in (1, 2, 3):
        (slot,) = ring.claim(0)
        generations[seq] = (slot, ring.write(slot, frame(seq), seq))
    assert ring.claim(0) == []
    ring.release(*generations[2])
    assert ring.claim(0) == [generations[2][0]]
    assert ring.claim(1)[0] in (generations[1][0], generations[2][0])
    assert ring.claim(0) == [generations[2][0]]


def test_several_slots_are_claimed_together_or_not_at_all(ring: Ring) -> None:
    """The frames of one part get slots that differ; where too few are free they get none."""
    assert sorted(ring.claim(0, 3)) == [0, 1, 2]
    ring.write(1, frame(1), 1)
    assert sorted(ring.claim(0, 2)) == [0, 2]
    assert ring.claim(0, 3) == []


def test_a_release_of_an_earlier_frame_frees_nothing(ring: Ring) -> None:
    """A slow worker that releases what was overwritten does not free the frame that is there now."""
    first = ring.write(0, frame(1), 1)
    for slot in range(3):
        ring.write(slot, frame(2), 2)
    ring.release(0, first)
    assert ring.claim(1) == []


def test_a_slot_used_again_is_noticed_before_and_after_the_copy(ring: Ring) -> None:
    """The old generation reads as None, and a view taken before the overwrite is no longer still."""
    generation = ring.write(0, frame(1), 1)
    view = ring.view(0, generation, 8, 8)
    assert view is not None
    assert ring.still(0, generation)
    ring.write(0, frame(2), 2)
    assert not ring.still(0, generation)
    assert ring.read(0, generation, 8, 8) is None


def test_a_slot_that_was_never_written_holds_no_frame(ring: Ring) -> None:
    """Zeroed memory is not a black frame."""
    assert ring.read(0, 0, 8, 8) is None


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_killed_at_any_step_leaves_old_pixels_unread(ring: Ring, name: str, step: str) -> None:
    """Its slot holds the whole new frame or none; the next writer finds the slot and goes on."""
    old = ring.write(0, frame(1), 1)
    assert ended(started(write_and_die, name, 0, 2, 5, step)) == -signal.SIGKILL
    assert ring.read(0, old, 8, 8) is None
    whole = ring.read(0, old + 2, 8, 8)
    assert (whole is not None) == (step == "closed")
    fresh = Ring.attach(name)
    free = [fresh.claim(0)[0] for _ in range(3)]
    assert (0 in free) == (step != "closed")
    generation = fresh.write(0, frame(3), 6)
    assert set(np.unique(ring.read(0, generation, 8, 8))) == {3}


def test_a_reader_that_is_overrun_never_gets_mixed_pixels(name: str) -> None:
    """A writer that asks nobody races a slow reader: each copy is of one frame, or it is None."""
    ring = Ring.create(name, slots=2, slot_bytes=480 * 640 * 3)
    writer = started(overrun_for_ever, name, 480, 640)
    seen = {"whole": 0, "overrun": 0}

    def enough() -> bool:
        generation = ring._heads[0] & ~1
        pixels = ring.read(0, generation, 480, 640)
        if pixels is not None:
            assert pixels.min() == pixels.max()
        if generation:
            seen["overrun" if pixels is None else "whole"] += 1
        return min(seen.values()) >= 30

    try:
        assert until(enough), seen
    finally:
        writer.kill()
        ended(writer)


@pytest.mark.parametrize("generation", [-2, 0, 1, 3, 4, 2**62])
@pytest.mark.parametrize("slot", [-1, 0, 3, 2**62])
def test_absurd_places_read_as_none(ring: Ring, generation: int, slot: int) -> None:
    """A row that no sane writer wrote costs a frame, never the reader."""
    ring.write(0, frame(1), 1)
    assert ring.read(slot, generation, 8, 8) is None
    ring.release(slot, generation)


@pytest.mark.parametrize("size", [(-8, -8), (-8, 8), (0, 8), (8, 0), (8, 9), (2**40, 2**40)])
def test_absurd_sizes_read_as_none(ring: Ring, size: tuple[int, int]) -> None:
    """Neither does a frame that cannot be in the slot, at the right generation."""
    generation = ring.write(0, frame(1), 1)
    assert ring.read(0, generation, *size) is None


def test_garbage_in_the_slot_heads_never_stops_anybody(name: str) -> None:
    """Reader and writer go on over any bytes in the heads."""
    ring = Ring.create(name, slots=3, slot_bytes=192)
    random = np.random.default_rng(5)
    for _ in range(200):
        ring._heads[:] = memoryview(random.bytes(ring._heads.nbytes)).cast("q")
        generation = int(ring._heads[0])
        ring.read(0, generation, 8, 8)
        slot = next(iter(ring.claim(7)), None)
        if slot is not None and abs(ring._heads[slot * 8]) < 2**62:
            written = ring.write(slot, frame(9), 8)
            assert written <= 0 or ring.read(slot, written, 8, 8) is not None


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((9, 8, 3), np.uint8), "216 bytes does not fit a slot of 192"),
        (np.zeros((8, 8), np.uint8), r"\(H, W, 3\) uint8, not \(8, 8\) uint8"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((0, 8, 3), np.uint8), "0 bytes"),
    ],
)
def test_a_frame_that_is_none_is_refused_before_the_slot_is_touched(
    ring: Ring, pixels: np.ndarray, message: str
) -> None:
    """Wrong shape, type or size is one line, and the slot keeps what it holds."""
    generation = ring.write(0, frame(1), 1)
    with pytest.raises(TransportError, match=message):
        ring.write(0, pixels, 2)
    assert ring.read(0, generation, 8, 8) is not None


@pytest.mark.usefixtures("ring")
def test_only_a_whole_ring_can_be_attached(name: str) -> None:
    """Another file, a cut one, or one whose counts are absurd is refused in one line."""
    Segment.create(f"{name}-small", 8)
    Segment.create(f"{name}-zeros", 8192)
    with pytest.raises(TransportError, match="not a ring"):
        Ring.attach(f"{name}-small")
    with pytest.raises(TransportError, match="not a ring"):
        Ring.attach(f"{name}-zeros")
    for slots in (0, -1, 2, 2**62):
        Segment.attach(name).words[1] = slots
        with pytest.raises(TransportError, match="not a whole ring"):
            Ring.attach(name)
    Segment.attach(name).words[1] = 3
    os.truncate(FOLDER / name, PAGE)
    with pytest.raises(TransportError, match="not a whole ring"):
        Ring.attach(name)


def test_slots_of_a_writer_that_died_before_acceptance_are_free_for_the_next(ring: Ring) -> None:
    """Frames that were written and never accepted do not use the ring up, however often capture dies."""
    for _ in range(ring.slots):
        (slot,) = ring.claim(answered_through=4)
        ring.write(slot, np.zeros((2, 2, 3), np.uint8), 5)
    assert ring.claim(4) == []
    ring.reclaim(high_water=4)
    assert ring.claim(4)
