"""Whether an H.264 stream has lost a frame, by its frame numbers (ITU-T H.264, 7.3 and 7.4.3). Pure: bytes in.

A decoder fills the gap that a lost frame leaves with an earlier one and says nothing; all pictures up to the next key
frame are wrong then, and look almost right. (An H.265 decoder tells, for its streams list what they refer to.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SLICE, IDR, SPS, PPS = 1, 5, 7, 8
HEAD_BYTES = 64
"""No header that is read here is longer, scaling matrices apart."""
WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
"""Profiles whose parameter sets tell of chroma."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbering:
    """What a sequence parameter set says of frame numbers. `gaps` means that missing ones are no loss."""

    bits: int
    separate_planes: bool
    gaps: bool


class FrameNumbers:
    """Follows the frame numbers of one stream.

    Args:
        extradata: the decoder's configuration: an `avcC` box (files), or parameter sets between start codes.
    """

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        self._numberings: dict[int, _Numbering] = {}
        self._sequence_of: dict[int, int] = {}
        self._last: int | None = None
        for unit in _avcc_sets(extradata) if self._length_bytes else _between_start_codes(extradata):
            self._learn(unit)

    def misses(self, packet: bytes) -> bool:
        """Whether a frame that others refer to is missing before this one. Takes every packet, in order."""
        units = _with_lengths(packet, self._length_bytes) if self._length_bytes else _between_start_codes(packet)
        try:
            for unit in units:
                if unit[0] & 31 in (SLICE, IDR):
                    return self._is_gap(unit)
                self._learn(unit)
        except IndexError:
            pass  # cut off; the decoder will say so
        return False

    def _learn(self, unit: bytes) -> None:
        kind = unit[0] & 31 if unit else 0
        try:
            if kind == SPS:
                bits = _Bits(unit[4:])
                sequence = bits.ue()
                self._numberings[sequence] = _numbering(bits, profile=unit[1])
            elif kind == PPS:
                bits = _Bits(unit[1:HEAD_BYTES])
                picture = bits.ue()
                self._sequence_of[picture] = bits.ue()
        except IndexError:
            pass  # cut off

    def _is_gap(self, unit: bytes) -> bool:
        bits = _Bits(unit[1:HEAD_BYTES])
        bits.ue()  # first_mb_in_slice
        bits.ue()  # slice_type
        numbering = self._numberings.get(self._sequence_of.get(bits.ue(), -1))
        if numbering is None:
            return False
        if numbering.separate_planes:
            bits.u(2)
        number, last = bits.u(numbering.bits), self._last
        if unit[0] & 31 == IDR:
            last = number
        if unit[0] >> 5 & 3:  # others refer to it
            self._last = number
        return last is not None and not numbering.gaps and (number - last) % (1 << numbering.bits) > 1


def _numbering(bits: _Bits, *, profile: int) -> _Numbering:
    separate_planes = False
    if profile in WITH_CHROMA:
        chroma = bits.ue()
        separate_planes = chroma == 3 and bool(bits.u(1))
        bits.ue()  # bit_depth_luma_minus8
        bits.ue()  # bit_depth_chroma_minus8
        bits.u(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.u(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    number_bits = bits.ue() + 4
    order = bits.ue()
    if order == 0:
        bits.ue()  # log2_max_pic_order_cnt_lsb_minus4
    elif order == 1:
        bits.u(1)
        bits.ue()  # signed ones are as long
        bits.ue()
        for _ in range(bits.ue()):
            bits.ue()
    bits.ue()  # max_num_ref_frames
    return _Numbering(bits=number_bits, separate_planes=separate_planes, gaps=bool(bits.u(1)))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.ue()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


class _Bits:
    """Reads bits and Exp-Golomb codes (9.1) of a unit without its emulation prevention bytes (7.4.1).

    >>> bits = _Bits(bytes([0b1_010_0011, 0b0_0000000]))
    >>> bits.ue(), bits.ue(), bits.ue()
    (0, 1, 5)
    """

    def __init__(self, unit: bytes) -> None:
        content = unit.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def u(self, count: int) -> int:
        """The next bits. Raises IndexError where there are not so many."""
        self._left -= count
        if self._left < 0:
            raise IndexError("cut off")
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        """An unsigned Exp-Golomb code. Raises IndexError where it is cut off."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)


def _between_start_codes(data: bytes) -> Iterator[bytes]:
    at = data.find(b"\0\0\1")
    while at >= 0:
        following = data.find(b"\0\0\1", at + 3)
        kind = data[at + 3] & 31 if at + 3 < len(data) else 0
        yield data[at + 3 : at + 3 + HEAD_BYTES] if kind in (SLICE, IDR) or following < 0 else data[at + 3 : following]
        at = following


def _with_lengths(data: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        yield data[at + length_bytes : at + length_bytes + size]
        at += length_bytes + size


def _avcc_sets(extradata: bytes) -> Iterator[bytes]:
    """The parameter sets of an `avcC` box (ISO/IEC 14496-15, 5.3.3)."""
    at = 5
    for mask in (31, 255):
        if at >= len(extradata):
            return
        count, at = extradata[at] & mask, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size
