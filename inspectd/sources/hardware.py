"""Decoding by hardware, where a machine has it. Real code that no test machine of the project could run so far."""

from __future__ import annotations

from functools import cache

from av.codec import Codec
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.error import FFmpegError

from inspectd.log import get_logger

SOFTWARE = "software"
TRIED = ("cuda", "vaapi", "qsv")
"""What `auto` looks for, in this order."""


def accelerator(decode: str) -> HWAccel | None:
    """What decodes: a device that works on this machine, None for software. A stream that it cannot take falls back."""
    device = _device(decode)
    return None if device is None else HWAccel(device, allow_software_fallback=True)


@cache
def _device(decode: str) -> str | None:
    """Tries once a process; says so where a device that was asked for does not work."""
    if decode == SOFTWARE:
        return None
    found = next((name for name in (TRIED if decode == "auto" else (decode,)) if _works(name)), None)
    if found is None and decode != "auto":
        get_logger().warning("hardware_decoder_missing", decode=decode)
    return found


def _works(name: str) -> bool:
    if name not in hwdevices_available():
        return False
    try:
        HWAccel(name).create(Codec("h264", "r"))
    except (FFmpegError, NotImplementedError):
        return False
    return True
