"""Cameras of the kernel's (V4L2, USB Video Class), streamed by OpenCV.

OpenCV is asked for the raw buffers. Its own conversion takes a buffer for full when the driver says that it is not, so
that half of it is an older picture, and keeps the last picture where a JPEG cannot be decoded; neither is ever told
(opencv/modules/videoio/src/cap_v4l.cpp, `convertToRgb`). Here a short buffer or a broken JPEG is a damaged frame.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from inspectd.errors import SourceLost, SourceTimeout
from inspectd.images import RawFormat, raw_to_bgr
from inspectd.log import get_logger
from inspectd.records import PixelsU8, TimeKind
from inspectd.source_settings import V4l2Source
from inspectd.sources import v4l2_kernel
from inspectd.sources.jpeg import decode_jpeg_bgr
from inspectd.sources.live import Arrival

JPEGS = frozenset({"MJPG", "JPEG"})
LAYOUTS = {
    "YUYV": RawFormat.YUYV,
    "UYVY": RawFormat.UYVY,
    "NV12": RawFormat.NV12,
    "GREY": RawFormat.MONO8,
    "Y10": RawFormat.MONO10,
    "Y12": RawFormat.MONO12,
    "Y16": RawFormat.MONO16,
    "BGR3": RawFormat.BGR8,
    "RGB3": RawFormat.RGB8,
    "BA81": RawFormat.BAYER_BG8,
    "GBRG": RawFormat.BAYER_GB8,
    "GRBG": RawFormat.BAYER_GR8,
    "RGGB": RawFormat.BAYER_RG8,
}
MANUAL_EXPOSURE = 1
"""V4L2_EXPOSURE_MANUAL."""
EXPOSURE_UNIT_US = 100.0
STAMP_LIMIT_NS = 2_000_000_000
"""An older buffer time than this is of another clock."""
SELECT_TIMEOUT = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"
"""Seconds that OpenCV waits for a frame, 10 unless told; read once in a process, so before the first camera."""


class Device(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def set(self, prop: int, value: float) -> bool: ...
    def get(self, prop: int) -> float: ...
    def grab(self) -> bool: ...
    def retrieve(self) -> tuple[bool, Any]: ...
    def release(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting that is not in force. One that changes the picture is `grave`: the camera is not used."""

    key: str
    asked: str
    given: str
    grave: bool

    def __str__(self) -> str:
        """For people."""
        return f"asked {self.key} {self.asked}, the device gives {self.given}"


def _open_device(path: Path) -> Device:
    device: Device = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
    return device


class V4l2Connection:
    """A `Connection` to one device."""

    def __init__(self, settings: V4l2Source, *, opens: Callable[[Path], Device] = _open_device) -> None:
        """Nothing is opened yet."""
        self.notes: tuple[str, ...] = ()
        self._settings = settings
        self._path = settings.device
        self._opens = opens
        self._device: Device | None = None
        self._format = ""
        self._stride_bytes = 0

    def open(self) -> None:
        """Opens the device, applies the settings and reads them back."""
        v4l2_kernel.examine(self._path)
        os.environ[SELECT_TIMEOUT] = str(math.ceil(self._settings.silence_s))
        self._device = device = self._opens(self._path.resolve())
        if not device.isOpened():
            busy = v4l2_kernel.is_busy(self._path)
            raise SourceLost(f"{self._path}: {'in use by another program' if busy else 'cannot be opened by OpenCV'}")
        apply(self._settings, device)
        found = differences(self._settings, device)
        for each in found:
            get_logger().warning("camera_setting_differs", key=each.key, asked=each.asked, given=each.given)
        grave = [str(each) for each in found if each.grave]
        if grave:
            raise SourceLost(f"{self._path}: {'; '.join(grave)}")
        self.notes = tuple(str(each) for each in found)
        self._format = _format_of(device)
        if self._format not in LAYOUTS.keys() | JPEGS:
            raise SourceLost(f"{self._path}: gives {self._format}, expected one of {', '.join(sorted(LAYOUTS))}, MJPG")
        self._stride_bytes = v4l2_kernel.line_bytes(self._path)

    def take(self) -> Arrival:
        """Waits for the next buffer."""
        device = self._device
        if device is None or not device.grab():
            v4l2_kernel.examine(self._path)  # raises where it was unplugged
            raise SourceTimeout(f"{self._path}: no frame for {self._settings.silence_s:g} s")
        arrived_ns, utc_ns = time.monotonic_ns(), time.time_ns()
        lag_ns = arrived_ns - round(device.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        stamped, lag_ms = 0 <= lag_ns <= STAMP_LIMIT_NS, self._settings.exposure_lag_ms
        lag_ns = (lag_ns if stamped else 0) + round((lag_ms or 0.0) * 1e6)
        given, raw = device.retrieve()
        if not given or raw is None:
            raise SourceLost(f"{self._path}: a buffer could not be read")
        return Arrival(
            load=partial(self._load, np.asarray(raw).reshape(-1)),
            captured_ns=arrived_ns - lag_ns,
            captured_utc_ns=utc_ns - lag_ns,
            time_kind=TimeKind.HARDWARE if stamped and lag_ms is not None else TimeKind.ARRIVAL,
            lag_ns=lag_ns,
        )

    def close(self) -> None:
        """Gives the device back."""
        if self._device is not None:
            self._device.release()

    def _load(self, raw: PixelsU8) -> tuple[PixelsU8 | None, str | None]:
        if self._format in JPEGS:
            return decode_jpeg_bgr(raw.tobytes())
        try:
            layout, size_wh_px = LAYOUTS[self._format], self._settings.size_wh_px
            return raw_to_bgr(raw, layout, size_wh_px, stride_bytes=self._stride_bytes), None
        except ValueError as error:
            return None, str(error)


def apply(settings: V4l2Source, device: Device) -> None:
    """Tells the device what is asked for. What it makes of it, `differences` reads back."""
    if settings.format is not None:
        device.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*settings.format.ljust(4)))
    device.set(cv2.CAP_PROP_FRAME_WIDTH, settings.size_wh_px[0])
    device.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.size_wh_px[1])
    if settings.fps is not None:
        device.set(cv2.CAP_PROP_FPS, settings.fps)
    device.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    if settings.exposure_us is not None:
        device.set(cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL_EXPOSURE)
        device.set(cv2.CAP_PROP_EXPOSURE, _exposure_units(settings.exposure_us))
    if settings.gain is not None:
        device.set(cv2.CAP_PROP_GAIN, settings.gain)
    if settings.focus is not None:
        device.set(cv2.CAP_PROP_AUTOFOCUS, 0)
        device.set(cv2.CAP_PROP_FOCUS, settings.focus)
    if settings.white_balance_k is not None:
        device.set(cv2.CAP_PROP_AUTO_WB, 0)
        device.set(cv2.CAP_PROP_WB_TEMPERATURE, settings.white_balance_k)


def differences(settings: V4l2Source, device: Device) -> list[Difference]:
    """What was asked for and is not in force."""
    width, height = (round(device.get(prop)) for prop in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    asked_w, asked_h = settings.size_wh_px
    found = [_difference("size", f"{asked_w}x{asked_h}", f"{width}x{height}")]
    if settings.format is not None:
        found.append(_difference("format", settings.format, _format_of(device)))
    if settings.fps is not None:
        given_fps = device.get(cv2.CAP_PROP_FPS)
        if not math.isclose(given_fps, settings.fps, rel_tol=0.01):
            given = f"{given_fps:g}" if given_fps > 0 else "no rate"
            found.append(Difference(key="fps", asked=f"{settings.fps:g}", given=given, grave=False))
    exposure = None if settings.exposure_us is None else _exposure_units(settings.exposure_us)
    for key, asked, prop, unit in (
        ("exposure_us", exposure, cv2.CAP_PROP_EXPOSURE, EXPOSURE_UNIT_US),
        ("gain", settings.gain, cv2.CAP_PROP_GAIN, 1.0),
        ("focus", settings.focus, cv2.CAP_PROP_FOCUS, 1.0),
        ("white_balance_k", settings.white_balance_k, cv2.CAP_PROP_WB_TEMPERATURE, 1.0),
    ):
        if asked is not None:
            found.append(_difference(key, f"{asked * unit:g}", f"{device.get(prop) * unit:g}"))
    return [each for each in found if each is not None]


def _difference(key: str, asked: str, given: str) -> Difference | None:
    return None if asked == given else Difference(key=key, asked=asked, given=given, grave=True)


def _exposure_units(exposure_us: float) -> int:
    return max(1, round(exposure_us / EXPOSURE_UNIT_US))


def _format_of(device: Device) -> str:
    return v4l2_kernel.fourcc_text(round(device.get(cv2.CAP_PROP_FOURCC)))
