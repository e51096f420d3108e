"""Single JPEG pictures of cameras. A cut or broken one is never handed out as a picture.

libavcodec, not OpenCV: told to stop at errors it refuses pictures whose data ends early though their end marker is
there, which libjpeg fills up with grey and calls a warning. It also knows the default tables that many cameras omit.
"""

from __future__ import annotations

import numpy as np
from av.codec.context import CodecContext
from av.error import FFmpegError
from av.packet import Packet
from av.video.reformatter import VideoReformatter

from inspectd.records import PixelsU8

BEGIN, END = b"\xff\xd8", b"\xff\xd9"
PADDING = b"\0\r\n "
"""What cameras put behind the end."""


def decode_jpeg_bgr(content: bytes) -> tuple[PixelsU8 | None, str | None]:
    """`(pixels_bgr, None)` with `(H, W, 3) uint8` pixels, or `(None, damage)`. Any padding behind the end is fine."""
    if not content.startswith(BEGIN):
        return None, "not a JPEG"
    if not content.rstrip(PADDING).endswith(END):
        return None, "a JPEG without its end"
    codec = CodecContext.create("mjpeg", "r")  # a new one each: nothing of the last picture
    codec.options = {"err_detect": "explode"}
    codec.thread_count = 1
    try:
        frames = [*codec.decode(Packet(content)), *codec.decode(None)]
    except FFmpegError as error:
        return None, f"a broken JPEG: {(error.strerror or type(error).__name__).lower()}"
    if len(frames) != 1 or frames[0].is_corrupt:
        return None, "a broken JPEG"
    raw = VideoReformatter().reformat(frames[0], format="bgr24", threads=1)
    return np.ascontiguousarray(raw.to_ndarray(), dtype=np.uint8), None
