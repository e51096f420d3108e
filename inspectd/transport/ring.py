"""The ring of one camera: slots of pixels in shared memory, each with a generation that a reader checks.

A slot's generation is odd while it is written. A reader looks at it before **and after** its copy; a slot that was
used again under a slow reader is noticed, never scored. Each word has one writer: capture writes `generation`,
`seq` and the usual size, the worker writes `released`. A slot is free when the worker has released it, when its frame
is answered for whatever reason, or when its writer died in the middle.

The order of stores that this needs: odd generation, then pixels, then even generation; and of loads: generation, then
pixels, then generation. `memory.py` says why it holds. (A copy of megabytes may bypass the caches with stores that
are weakly ordered even on x86; the C library ends such a copy with the fence that orders them.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inspectd.errors import TransportError
from inspectd.records import PixelsU8
from inspectd.transport.memory import WORD_BYTES, Segment, fence

MAGIC = 0x494E_5350_5249_4E47
PAGE = 4096
SLOT_WORDS = 8
"""One cache line a slot, so that capture and worker do not share one of another slot."""
_HEAD_MAGIC, _HEAD_SLOTS, _HEAD_SLOT_BYTES, _HEAD_USUAL_SIZE = range(4)
_GENERATION, _RELEASED, _SEQ = range(3)


class Ring:
    """The slots of one camera. Whatever stands in the memory, a reader gets a frame or None."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        if len(segment.words) <= _HEAD_USUAL_SIZE or segment.words[_HEAD_MAGIC] != MAGIC:
            raise TransportError(f"{segment.name}: not a ring of this version")
        self.slots, self.slot_bytes = segment.words[_HEAD_SLOTS], segment.words[_HEAD_SLOT_BYTES]
        if self.slots < 1 or self.slot_bytes < 1 or len(segment.bytes) != _size(self.slots, self.slot_bytes):
            raise TransportError(f"{segment.name}: not a whole ring")
        heads = PAGE // WORD_BYTES
        self._heads = segment.words[heads : heads + self.slots * SLOT_WORDS]
        self._pixels = segment.bytes[_pixels_at(self.slots) :].reshape(self.slots, _rounded(self.slot_bytes))
        self._next = 0

    @classmethod
    def create(cls, name: str, *, slots: int, slot_bytes: int) -> Ring:
        """Makes the ring's segment, preallocated in full.

        Raises:
            TransportError: shared memory cannot be had.
        """
        segment = Segment.create(name, _size(slots, slot_bytes))
        segment.words[_HEAD_SLOTS], segment.words[_HEAD_SLOT_BYTES] = slots, slot_bytes
        segment.words[_HEAD_MAGIC] = MAGIC
        return cls(segment)

    @classmethod
    def attach(cls, name: str) -> Ring:
        """Maps the ring that the supervisor made.

        Raises:
            TransportError: there is none, or it is of another version.
        """
        return cls(Segment.attach(name))

    @property
    def usual_wh_px(self) -> tuple[int, int] | None:
        """The size of the camera's first sound frame in this session; None until capture has told. One word."""
        word = self._segment.words[_HEAD_USUAL_SIZE]
        return divmod(word, 1 << 32) if word else None

    @usual_wh_px.setter
    def usual_wh_px(self, size_wh_px: tuple[int, int]) -> None:
        self._segment.words[_HEAD_USUAL_SIZE] = size_wh_px[0] << 32 | size_wh_px[1]

    def claim(self, answered_through: int, count: int = 1) -> list[int]:
        """So many free slots for the writer, all different; none where fewer are free."""
        free = [slot for slot in range(self.slots) if self._is_free(slot, answered_through)]
        if len(free) < count:
            return []
        claimed = sorted(free, key=lambda slot: (slot - self._next) % self.slots)[:count]
        self._next = (claimed[-1] + 1) % self.slots
        return claimed

    def reclaim(self, high_water: int) -> None:
        """Frees, for a new writer, the slots whose frames the last one wrote and did not live to accept."""
        for slot in range(self.slots):
            if self._heads[slot * SLOT_WORDS + _SEQ] > high_water:
                self._heads[slot * SLOT_WORDS + _SEQ] = 0

    def write(
        self, slot: int, pixels_bgr: PixelsU8, seq: int, after_step: Callable[[str], None] = lambda _: None
    ) -> int:
        """Puts a frame into a slot.

        Args:
            slot: as `claim` gave it.
            pixels_bgr: `(H, W, 3) uint8`, contiguous or not.
            after_step: told of each step, so that a test can kill between any two.

        Returns:
            the generation that readers of this frame must find.

        Raises:
            TransportError: the frame is larger than a slot, or none.
        """
        if pixels_bgr.ndim != 3 or pixels_bgr.shape[2] != 3 or pixels_bgr.dtype != np.uint8:
            raise TransportError(f"a frame is (H, W, 3) uint8, not {pixels_bgr.shape} {pixels_bgr.dtype}")
        if not 0 < pixels_bgr.nbytes <= self.slot_bytes:
            raise TransportError(f"a frame of {pixels_bgr.nbytes} bytes does not fit a slot of {self.slot_bytes}")
        writing = self._heads[slot * SLOT_WORDS + _GENERATION] | 1  # odd already where a writer died in the middle
        self._heads[slot * SLOT_WORDS + _GENERATION] = writing
        fence()
        after_step("opened")
        self._heads[slot * SLOT_WORDS + _SEQ] = seq
        after_step("named")
        np.copyto(self._frame(slot, *pixels_bgr.shape[:2]), pixels_bgr)
        after_step("copied")
        fence()
        self._heads[slot * SLOT_WORDS + _GENERATION] = writing + 1
        after_step("closed")
        return writing + 1

    def view(self, slot: int, generation: int, height_px: int, width_px: int) -> PixelsU8 | None:
        """The frame in a slot `(H, W, 3) uint8`, not copied; None where the slot holds another.

        It may change while it is used: what was made of it counts only if `still` says so afterwards.
        """
        fits = height_px > 0 and width_px > 0 and height_px * width_px * 3 <= self.slot_bytes
        return self._frame(slot, height_px, width_px) if fits and self.still(slot, generation) else None

    def still(self, slot: int, generation: int) -> bool:
        """Whether a slot still holds what it held at that generation."""
        if not 0 <= slot < self.slots or generation < 1 or generation % 2:  # 0: never written
            return False
        fence()
        same = self._heads[slot * SLOT_WORDS + _GENERATION] == generation
        fence()
        return same

    def read(self, slot: int, generation: int, height_px: int, width_px: int) -> PixelsU8 | None:
        """A copy of the frame in a slot; None where the slot held another before or after the copy."""
        view = self.view(slot, generation, height_px, width_px)
        copy = None if view is None else view.copy()
        return copy if self.still(slot, generation) else None

    def release(self, slot: int, generation: int) -> None:
        """The worker has done with the frame that a slot held at that generation."""
        if 0 <= slot < self.slots:
            self._heads[slot * SLOT_WORDS + _RELEASED] = generation

    def close(self) -> None:
        """Lets go of the mapping. The ring is of no use afterwards."""
        self._heads = memoryview(b"").cast("q")
        self._pixels = np.empty((0, 0), np.uint8)
        self.slots = 0
        self._segment.close()

    def _is_free(self, slot: int, answered_through: int) -> bool:
        at = slot * SLOT_WORDS
        generation = self._heads[at + _GENERATION]
        abandoned = generation % 2 == 1  # by a writer that died: the only writer now is the one who asks
        return abandoned or self._heads[at + _RELEASED] == generation or self._heads[at + _SEQ] <= answered_through

    def _frame(self, slot: int, height_px: int, width_px: int) -> PixelsU8:
        return self._pixels[slot, : height_px * width_px * 3].reshape(height_px, width_px, 3)


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE


def _pixels_at(slots: int) -> int:
    return PAGE + _rounded(slots * SLOT_WORDS * WORD_BYTES)


def _size(slots: int, slot_bytes: int) -> int:
    return _pixels_at(slots) + slots * _rounded(slot_bytes)
