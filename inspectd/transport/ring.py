"""The ring of one camera: slots of pixels in shared memory, each with a generation that a reader checks.

A slot's generation is odd while it is written. A reader looks at it before **and after** its copy; a slot that was
used again under a slow reader is noticed, never scored. Each field has one writer: capture writes `generation` and
`seq`, the worker writes `released`. A slot is free when the worker has released it, or when its frame is answered for
whatever reason.

Stores are single aligned 8-byte words. On x86 they become visible in program order, which is what a sequence lock
needs; on a weaker machine (ARM) the kernel calls around them (the wake-up's send and receive) order them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspectd.errors import TransportError
from inspectd.records import PixelsU8
from inspectd.transport.memory import Segment

MAGIC = 0x494E_5350_5249_4E47
PAGE = 4096
HEAD = np.dtype([("magic", "<u8"), ("slots", "<u8"), ("slot_bytes", "<u8")])
SLOT = np.dtype([("generation", "<u8"), ("released", "<u8"), ("seq", "<u8"), ("spare", "<u8", 5)])
"""One cache line, so that capture and worker do not share one of another slot."""


class Ring:
    """The slots of one camera."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        head = segment.bytes[: HEAD.itemsize].view(HEAD)[0]
        if head["magic"] != MAGIC or len(segment.bytes) != _size(int(head["slots"]), int(head["slot_bytes"])):
            raise TransportError(f"{segment.name}: not a ring of this version")
        self.slots = int(head["slots"])
        self.slot_bytes = int(head["slot_bytes"])
        heads = segment.bytes[PAGE : PAGE + self.slots * SLOT.itemsize].view(SLOT)
        self._generation: NDArray[np.uint64] = heads["generation"]
        self._released: NDArray[np.uint64] = heads["released"]
        self._seq: NDArray[np.uint64] = heads["seq"]
        first = _pixels_at(self.slots)
        self._pixels = segment.bytes[first:].reshape(self.slots, _rounded(self.slot_bytes))
        self._next = 0

    @classmethod
    def create(cls, name: str, *, slots: int, slot_bytes: int) -> Ring:
        """Makes the ring's segment, preallocated in full.

        Raises:
            TransportError: shared memory cannot be had.
        """
        segment = Segment.create(name, _size(slots, slot_bytes))
        head = segment.bytes[: HEAD.itemsize].view(HEAD)
        head["slots"], head["slot_bytes"], head["magic"] = slots, slot_bytes, MAGIC
        return cls(segment)

    @classmethod
    def attach(cls, name: str) -> Ring:
        """Maps the ring that the supervisor made.

        Raises:
            TransportError: there is none, or it is of another version.
        """
        return cls(Segment.attach(name))

    def claim(self, answered_through: int) -> int | None:
        """A free slot for the writer, None where all hold frames that wait."""
        for offset in range(self.slots):
            slot = (self._next + offset) % self.slots
            if self._released[slot] == self._generation[slot] or self._seq[slot] <= answered_through:
                self._next = (slot + 1) % self.slots
                return slot
        return None

    def write(self, slot: int, pixels_bgr: PixelsU8, seq: int) -> int:
        """Puts a frame `(H, W, 3) uint8` into a slot. The generation that its readers must find.

        Raises:
            TransportError: the frame is larger than a slot.
        """
        if pixels_bgr.nbytes > self.slot_bytes:
            raise TransportError(f"a frame of {pixels_bgr.nbytes} bytes does not fit a slot of {self.slot_bytes}")
        writing = int(self._generation[slot]) | 1  # odd already where the last writer died in the middle
        self._generation[slot] = writing
        self._seq[slot] = seq
        np.copyto(self._frame(slot, *pixels_bgr.shape[:2]), pixels_bgr)
        self._generation[slot] = writing + 1
        return writing + 1

    def view(self, slot: int, generation: int, height_px: int, width_px: int) -> PixelsU8 | None:
        """The frame in a slot, not copied; None where the slot holds another. After use ask `still`."""
        fits = 0 <= slot < self.slots and 0 < height_px * width_px * 3 <= self.slot_bytes
        return self._frame(slot, height_px, width_px) if fits and self.still(slot, generation) else None

    def still(self, slot: int, generation: int) -> bool:
        """Whether a slot still holds what it held at that generation."""
        return generation % 2 == 0 and int(self._generation[slot]) == generation

    def read(self, slot: int, generation: int, height_px: int, width_px: int) -> PixelsU8 | None:
        """A copy of the frame in a slot; None where the slot held another before or after the copy."""
        view = self.view(slot, generation, height_px, width_px)
        copy = None if view is None else view.copy()
        return copy if self.still(slot, generation) else None

    def release(self, slot: int, generation: int) -> None:
        """The worker has done with the frame that a slot held at that generation."""
        if 0 <= slot < self.slots:
            self._released[slot] = generation

    def close(self) -> None:
        """Lets go of the mapping."""
        self._segment.close()

    def _frame(self, slot: int, height_px: int, width_px: int) -> PixelsU8:
        return self._pixels[slot, : height_px * width_px * 3].reshape(height_px, width_px, 3)


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // PAGE) * PAGE


def _pixels_at(slots: int) -> int:
    return PAGE + _rounded(slots * SLOT.itemsize)


def _size(slots: int, slot_bytes: int) -> int:
    return _pixels_at(slots) + slots * _rounded(slot_bytes)
