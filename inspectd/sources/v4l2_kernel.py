"""What the kernel says of its video devices: names, formats, sizes, rates, and why one cannot be used.

Numbers and layouts are those of linux/videodev2.h (64 bit).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inspectd.errors import SourceLost

BY_ID = Path("/dev/v4l/by-id")
SYSFS = Path("/sys/class/video4linux")
QUERYCAP, ENUM_FMT, G_FMT, REQBUFS = 0x80685600, 0xC0405602, 0xC0D05604, 0xC0145608
ENUM_FRAMESIZES, ENUM_FRAMEINTERVALS = 0xC02C564A, 0xC034564B
VIDEO_CAPTURE, DEVICE_CAPS = 0x1, 0x80000000
BUF_TYPE_CAPTURE, MEMORY_MMAP, DISCRETE = 1, 1, 1
MOST_ENTRIES = 256


class NoVideo(SourceLost):
    """A node of a camera's that carries no video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One pixel format at one size, with the rates that the device offers there, fastest first."""

    format: str
    size_wh_px: tuple[int, int]
    fps: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDevice:
    """A device that can capture. `path` is its stable name where it has one."""

    path: Path
    card: str
    driver: str
    modes: tuple[Mode, ...]


def devices(*, by_id: Path = BY_ID, sysfs: Path = SYSFS) -> list[Path]:
    """The video devices of this machine by their stable names; those without one by /dev/videoN."""
    stable = {path.resolve(): path for path in sorted(by_id.glob("*"), reverse=True)} if by_id.is_dir() else {}
    nodes = sorted(sysfs.glob("video*"), key=lambda path: (len(path.name), path.name)) if sysfs.is_dir() else []
    found = [Path("/dev") / node.name for node in nodes]
    return [stable.get(node, node) for node in (found or sorted(stable))]


def examine(path: Path) -> VideoDevice:
    """Asks a device what it can do.

    Raises:
        SourceLost: it is missing, may not be opened, or is no video device.
        NoVideo: it cannot capture.
    """
    with _opened(path) as fd:
        try:
            answer = _ask(fd, QUERYCAP, struct.pack("104x"))
        except OSError as error:
            raise SourceLost(f"{path}: not a video device ({os.strerror(error.errno or 0).lower()})") from error
        driver, card = _text(answer[:16]), _text(answer[16:48])
        capabilities, of_device = struct.unpack_from("II", answer, 84)
        if not (of_device if capabilities & DEVICE_CAPS else capabilities) & VIDEO_CAPTURE:
            raise SourceLost(
                f"{path}: {card} has no video here; a camera's second device carries data about its frames"
            )
        return VideoDevice(path=path, card=card, driver=driver, modes=tuple(_modes(fd)))


def is_busy(path: Path) -> bool:
    """Whether another program streams from the device: the kernel gives its buffers to one at a time."""
    try:
        with _opened(path) as fd:
            _ask(fd, REQBUFS, struct.pack("III8x", 0, BUF_TYPE_CAPTURE, MEMORY_MMAP))
    except OSError as error:
        return error.errno == errno.EBUSY
    except SourceLost:
        return False
    return False


def line_bytes(path: Path) -> int:
    """The length of a line of the current format with its padding; 0 where it is unknown or has no lines."""
    try:
        with _opened(path) as fd:
            answer = _ask(fd, G_FMT, struct.pack("I204x", BUF_TYPE_CAPTURE))
    except (OSError, SourceLost):
        return 0
    (stride,) = struct.unpack_from("I", answer, 24)
    return int(stride)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceLost(f"{path}: {_reason(error)}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return "no such device; it is unplugged, or has another name (inspectd cameras shows them)"
        case errno.EACCES | errno.EPERM:
            return "permission denied; the daemon's user must be in the group video"
        case errno.EBUSY:
            return "in use by another program"
        case _:
            return (error.strerror or str(error)).lower()


def _ask(fd: int, request: int, argument: bytes) -> bytes:
    buffer = bytearray(argument)
    fcntl.ioctl(fd, request, buffer)
    return bytes(buffer)


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()


def _entries(fd: int, request: int, layout: str, *key: int) -> Iterator[bytes]:
    """The answers of an enumeration, by index, until the kernel says that there is no more."""
    for index in range(MOST_ENTRIES):
        try:
            yield _ask(fd, request, struct.pack(layout, index, *key))
        except OSError:
            return


def _modes(fd: int) -> Iterator[Mode]:
    for form in _entries(fd, ENUM_FMT, "II56x", BUF_TYPE_CAPTURE):
        (fourcc,) = struct.unpack_from("I", form, 44)
        for width, height in _sizes(fd, fourcc):
            rates = tuple(sorted(_rates(fd, fourcc, width, height), reverse=True))
            yield Mode(format=fourcc_text(fourcc), size_wh_px=(width, height), fps=rates)


def _sizes(fd: int, fourcc: int) -> Iterator[tuple[int, int]]:
    """The sizes of a format; of a device with steps the smallest and the largest."""
    for answer in _entries(fd, ENUM_FRAMESIZES, "II36x", fourcc):
        _, _, kind, *numbers = struct.unpack_from("9I", answer)
        if kind == DISCRETE:
            yield numbers[0], numbers[1]
        else:
            yield numbers[0], numbers[3]
            yield numbers[1], numbers[4]
            return


def _rates(fd: int, fourcc: int, width: int, height: int) -> Iterator[float]:
    for answer in _entries(fd, ENUM_FRAMEINTERVALS, "IIII36x", fourcc, width, height):
        kind, numerator, denominator = struct.unpack_from("III", answer, 16)
        if numerator:
            yield denominator / numerator
        if kind != DISCRETE:
            return


def fourcc_text(fourcc: int) -> str:
    """A format's code as text.

    >>> fourcc_text(0x47504A4D)
    'MJPG'
    """
    return struct.pack("<I", fourcc & 0x7FFFFFFF).decode("latin-1").rstrip()
