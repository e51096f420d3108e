"""What a GenTL buffer holds: its first picture, and when that was exposed.

It is read from the buffer itself. harvesters would unpack packed pixels to sixteen bits, of which we then throw half
away, and takes two pixels of Mono10Packed for two and a half bytes, where GigE Vision has three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from inspectd.errors import SourceLost
from inspectd.images import RawFormat, line_bytes, raw_to_bgr
from inspectd.records import PixelsU8

T = TypeVar("T")
OTHER_NAMES = {"YUV422_8": RawFormat.YUYV, "YCbCr422_8": RawFormat.YUYV, "YUV422Packed": RawFormat.UYVY}
OTHER_NAMES |= {"YUV422_8_UYVY": RawFormat.UYVY, "RGB8Packed": RawFormat.RGB8, "BGR8Packed": RawFormat.BGR8}
TICKS_HZ = "GevTimestampTickFrequency"
"""What cameras of before SFNC 2 count their time in; the others count nanoseconds."""
FORMATS = {str(form): form for form in RawFormat if form is not RawFormat.NV12} | OTHER_NAMES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawPicture:
    """A picture as it lies in a buffer, copied from there. `padding_bytes` follow each line."""

    raw: PixelsU8
    form: RawFormat
    size_wh_px: tuple[int, int]
    padding_bytes: int = 0

    def bgr(self) -> tuple[PixelsU8 | None, str | None]:
        """`(pixels_bgr, damage)`: one of them is None."""
        stride = line_bytes(self.form, self.size_wh_px[0]) + self.padding_bytes if self.padding_bytes else 0
        try:
            return raw_to_bgr(self.raw, self.form, self.size_wh_px, stride_bytes=stride), None
        except ValueError as error:
            return None, str(error)


def first_picture(buffer: Any, nodes: Any) -> RawPicture:
    """The first picture of a GenTL buffer; what the producer does not tell is asked of the camera's features.

    Raises:
        SourceLost: there is none, or one of a pixel format that is not known here.
    """
    part = _first_part(buffer)
    if part is None:
        width = _told(lambda: buffer.width, lambda: nodes.Width.value)
        height = _told(lambda: buffer.height, lambda: nodes.Height.value)
        code = _told(lambda: buffer.pixel_format, lambda: int(nodes.PixelFormat.get_int_value()))
        padding = _told(lambda: buffer.padding_x, lambda: 0)
        begin, end = 0, _told(lambda: buffer.size_filled, lambda: len(buffer.raw_buffer))
    else:
        width, height, code, padding = part.width, part.height, part.data_format, part.x_padding
        begin, end = part.data_offset, part.data_offset + part.data_size
    if not width or not height:
        raise SourceLost("sends no picture")
    return RawPicture(
        raw=np.frombuffer(buffer.raw_buffer, np.uint8)[begin:end].copy(),  # the buffer goes back at once
        form=_form(code),
        size_wh_px=(width, height),
        padding_bytes=padding,
    )


def stamp_ns(buffer: Any, nodes: Any) -> int | None:
    """The camera's own time of a buffer, in nanoseconds of its clock; None where it gives none.

    What the camera wrote beside the picture comes first: a buffer's own time may be the producer's.
    """
    if ticks := _feature(nodes, "ChunkTimestamp"):
        return round(ticks * 1e9 / (_feature(nodes, TICKS_HZ) or 1e9))
    if stamp := _told(lambda: buffer.timestamp_ns, lambda: 0):
        return int(stamp)
    ticks = _told(lambda: buffer.timestamp, lambda: 0)
    frequency_hz = _told(lambda: buffer.parent.parent.timestamp_frequency, lambda: _feature(nodes, TICKS_HZ))
    return round(ticks * 1e9 / frequency_hz) if ticks and frequency_hz else None


def _feature(nodes: Any, name: str) -> int:
    """The value of a feature; 0 where the camera has none, or none now."""
    return int(_told(lambda: getattr(nodes, name).value, lambda: 0)) if nodes.has_node(name) else 0


def _first_part(buffer: Any) -> Any:
    """The first picture among the parts of a buffer; None where the whole buffer is one."""
    from genicam import gentl  # noqa: PLC0415 - an extra

    kinds = gentl.PAYLOADTYPE_INFO_IDS
    kind = buffer.payload_type
    if kind == kinds.PAYLOAD_TYPE_MULTI_PART:
        pictures = (part for part in buffer.parts if part.data_type == gentl.PARTDATATYPE_IDS.PART_DATATYPE_2D_IMAGE)
        if (part := next(pictures, None)) is not None:
            return part
    others = ("RAW_DATA", "FILE", "JPEG", "JPEG2000", "H264", "CHUNK_ONLY", "MULTI_PART")
    if kind in [getattr(kinds, f"PAYLOAD_TYPE_{name}") for name in others]:
        raise SourceLost("sends no picture")
    return None


def _form(code: int) -> RawFormat:
    from harvesters.util.pfnc import dict_by_ints  # noqa: PLC0415 - an extra

    name = dict_by_ints.get(code, f"pixel format {code:#x}")
    if name not in FORMATS:
        raise SourceLost(f"sends {name}, expected one of {', '.join(sorted(FORMATS))}; set features.PixelFormat")
    return FORMATS[name]


def _told(ask: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """What a producer answers, or what stands for it where it has no answer."""
    from genicam import genapi, gentl  # noqa: PLC0415 - an extra

    try:
        return ask()
    except (gentl.GenericException, genapi.GenericException):
        return otherwise()
