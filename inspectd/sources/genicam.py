"""GigE Vision, USB3 Vision and other GenICam cameras, by any vendor's GenTL producer and harvesters.

harvesters throws buffers away that came incomplete and only calls back; here each of them is a damaged frame.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspectd.errors import SourceLost
from inspectd.records import TimeKind
from inspectd.source_settings import GenicamSource
from inspectd.sources.genicam_buffers import first_picture, stamp_ns
from inspectd.sources.live import Arrival
from inspectd.sources.timing import DeviceClock

FETCH_S = 0.2
BUFFERS = 4
GENTL_PATH = "GENICAM_GENTL64_PATH"
Feature = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraInfo:
    """A camera as its producer lists it."""

    serial: str
    vendor: str
    model: str
    transport: str
    producer: Path


class GenicamConnection:
    """A `Connection` to the camera with one serial number."""

    notes: tuple[str, ...] = ()

    def __init__(self, settings: GenicamSource) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._name = f"camera {settings.serial}"
        self._harvester: Any = None
        self._camera: Any = None
        self._clock = DeviceClock()
        self._incomplete = 0

    def open(self) -> None:
        """Finds the camera, sets its features in their order, and starts it."""
        nodes = self.connect()
        with _told(self._name):
            for name, value in self._settings.features.items():
                set_feature(nodes, name, value)
            incomplete = _callback(_harvesters_core(), self._count_incomplete)
            self._camera.add_callback(self._camera.Events.INCOMPLETE_BUFFER, incomplete)
            self._camera.num_buffers = max(BUFFERS, self._camera.min_num_buffers)
            self._camera.start()

    def connect(self) -> Any:
        """Finds and opens the camera; its features, by name."""
        core = _harvesters_core()
        with _told(self._name):
            self._harvester = core.Harvester()
            for producer in producers(self._settings.producers):
                _load(self._harvester, producer)
            self._harvester.update()
            self._camera = self._harvester.create(self._found())
            return self._camera.remote_device.node_map

    def take(self) -> Arrival | None:
        """The next buffer; None where none came for a moment."""
        if self._camera is None:
            raise SourceLost(f"{self._name}: not open")
        with _told(self._name):
            buffer = self._camera.try_fetch(timeout=FETCH_S, is_raw=True)
            arrived_ns, utc_ns = time.monotonic_ns(), time.time_ns()
            if buffer is None:
                return self._broken(arrived_ns, utc_ns)
            try:
                return self._arrival(buffer, arrived_ns, utc_ns)
            finally:
                buffer.parent.queue_buffer(buffer)

    def close(self) -> None:
        """Gives camera and producer back, as far as they let go."""
        for release in (self._camera and self._camera.destroy, self._harvester and self._harvester.reset):
            try:
                if release:
                    release()
            except Exception as error:  # noqa: BLE001 - a vendor's library raises what it likes, and the camera is gone anyway
                logging.getLogger(__name__).debug("not released: %s", error)

    def _found(self) -> Any:
        serials = {_info(info, "serial_number"): info for info in self._harvester.device_info_list}
        if self._settings.serial not in serials:
            there = ", ".join(sorted(serials)) or "none"
            raise SourceLost(f"no camera with the serial number {self._settings.serial}; there are: {there}")
        return serials[self._settings.serial]

    def _count_incomplete(self) -> None:
        self._incomplete += 1

    def _broken(self, arrived_ns: int, utc_ns: int) -> Arrival | None:
        """A damaged frame for the buffer that harvesters threw away."""
        if not self._incomplete:
            return None
        self._incomplete -= 1
        damage = "incomplete: the buffer lacks packets"
        return Arrival(load=lambda: (None, damage), captured_ns=arrived_ns, captured_utc_ns=utc_ns)

    def _arrival(self, buffer: Any, arrived_ns: int, utc_ns: int) -> Arrival:
        nodes = self._camera.remote_device.node_map
        picture = first_picture(buffer, nodes)
        mapped_ns = self._clock.captured_ns(stamp_ns(buffer, nodes), arrived_ns)
        lag_ms = self._settings.exposure_lag_ms
        lag_ns = (0 if mapped_ns is None else arrived_ns - mapped_ns) + round((lag_ms or 0.0) * 1e6)
        return Arrival(
            load=picture.bgr,
            captured_ns=arrived_ns - lag_ns,
            captured_utc_ns=utc_ns - lag_ns,
            time_kind=TimeKind.ARRIVAL if mapped_ns is None or lag_ms is None else TimeKind.HARDWARE,
            lag_ns=lag_ns,
        )


def producers(given: tuple[Path, ...]) -> list[Path]:
    """The producers given, or all of GENICAM_GENTL64_PATH.

    Raises:
        SourceLost: there is none, or one that is given does not exist.
    """
    for path in given:
        if not path.is_file():
            raise SourceLost(f"{path}: no such producer")
    folders = [Path(folder) for folder in os.environ.get(GENTL_PATH, "").split(os.pathsep) if folder]
    found = list(given) or [path for folder in folders for path in sorted(folder.glob("*.cti"))]
    if not found:
        raise SourceLost(f"no GenTL producer: give producers, or set {GENTL_PATH} to the vendor's folder")
    return found


def list_cameras(producer: Path) -> list[CameraInfo]:
    """The cameras that one producer finds.

    Raises:
        SourceLost: it cannot be loaded, or harvesters is not installed.
    """
    core = _harvesters_core()
    with _told(str(producer)):
        harvester = core.Harvester()
        try:
            _load(harvester, producer)
            harvester.update()
            return [
                CameraInfo(
                    serial=_info(info, "serial_number"),
                    vendor=_info(info, "vendor"),
                    model=_info(info, "model"),
                    transport=_info(info, "tl_type"),
                    producer=producer,
                )
                for info in harvester.device_info_list
            ]
        finally:
            harvester.reset()


def describe(settings: GenicamSource) -> tuple[str, ...]:
    """What a camera can give, in lines for people: sizes, rates, pixel formats. It is opened, but not started.

    Raises:
        SourceLost: it cannot be opened.
    """
    connection = GenicamConnection(settings)
    try:
        nodes = connection.connect()
        width, height, rate, form = (
            getattr(nodes, name) if nodes.has_node(name) else None
            for name in ("Width", "Height", "AcquisitionFrameRate", "PixelFormat")
        )
        with _told(f"camera {settings.serial}"):
            lines = [f"up to {width.max}x{height.max} px, now {width.value}x{height.value}"] if width and height else []
            lines += [f"{rate.min:g} to {rate.max:g} fps, now {rate.value:g}"] if rate else []
            lines += [f"{', '.join(form.symbolics)}, now {form.value}"] if form else []
            return tuple(lines)
    finally:
        connection.close()


def set_feature(nodes: Any, name: str, value: Feature) -> None:
    """Sets one feature of a camera and reads it back; True runs a command.

    Raises:
        SourceLost: there is no such feature, it takes no such value, or the camera keeps another one.
    """
    node = getattr(nodes, name, None) if nodes.has_node(name) else None
    kind = type(node).__name__
    if node is None or kind not in ALLOWED:
        raise SourceLost(f"features.{name}: the camera has no such feature")
    types, allowed = ALLOWED[kind]
    if type(value) not in types:
        raise SourceLost(f"features.{name}: {value!r} is not {allowed}")
    if kind == "ICommand":
        _checked(name, value, node.execute)
        return
    _check_range(node, kind, name, value)
    _checked(name, value, lambda: setattr(node, "value", float(value) if kind == "IFloat" else value))
    given = node.value
    same = math.isclose(given, value, rel_tol=1e-3) if isinstance(given, float) else given == value  # type: ignore[arg-type]
    if not same:
        raise SourceLost(f"features.{name}: asked {value}, the camera gives {given}")


ALLOWED: dict[str, tuple[tuple[type, ...], str]] = {
    "IInteger": ((int,), "a whole number"),
    "IFloat": ((int, float), "a number"),
    "IBoolean": ((bool,), "true or false"),
    "IEnumeration": ((str,), "text"),
    "IString": ((str,), "text"),
    "ICommand": ((bool,), "true, which runs the command"),
}


def _check_range(node: Any, kind: str, name: str, value: Feature) -> None:
    if kind == "IEnumeration" and value not in node.symbolics:
        raise SourceLost(f"features.{name}: {value!r} is not one of {', '.join(node.symbolics)}")
    if kind in ("IInteger", "IFloat") and not node.min <= value <= node.max:
        raise SourceLost(f"features.{name}: {value} is not from {node.min:g} to {node.max:g}")


def _checked(name: str, value: Feature, act: Callable[[], object]) -> None:
    try:
        act()
    except _genicam_errors() as error:
        raise SourceLost(f"features.{name}: cannot be set to {value} now: {_first_line(error)}") from None


def _load(harvester: Any, producer: Path) -> None:
    try:
        harvester.add_file(str(producer), check_existence=True, check_validity=True)
    except OSError:
        raise SourceLost(f"{producer}: not a GenTL producer that can be loaded") from None


def _info(info: Any, key: str) -> str:
    try:
        return str(getattr(info, key))
    except _genicam_errors():
        return ""


def _harvesters_core() -> Any:
    try:
        from harvesters import core  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise SourceLost('kind "genicam" needs pip install "inspectd[genicam]"') from None
    logging.getLogger("harvesters.core").disabled = True  # it writes tracebacks of what is told in one line here
    return core


def _genicam_errors() -> tuple[type[Exception], ...]:
    from genicam import genapi, gentl  # noqa: PLC0415 - an extra

    errors: tuple[type[Exception], ...] = gentl.GenericException, genapi.GenericException
    return errors


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns what a producer raises into one line."""
    try:
        yield
    except SourceLost as error:
        text = str(error)
        raise SourceLost(text if text.startswith(name) else f"{name}: {text}") from None
    except _genicam_errors() as error:
        busy = type(error).__name__ in ("AccessDeniedException", "ResourceInUseException", "BusyException")
        raise SourceLost(f"{name}: {'in use by another program' if busy else _first_line(error)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceLost(f"{name}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].partition(" : ")[0].rstrip(".").lower() if lines else type(error).__name__


def _callback(core: Any, count: Callable[[], None]) -> Any:
    """A `harvesters.core.Callback`; nothing else is called back."""

    class Counting(core.Callback):  # type: ignore[misc]  # an extra without types
        def emit(self, context: object = None) -> None:
            del context
            count()

    return Counting()
