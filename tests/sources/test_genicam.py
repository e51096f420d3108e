"""GenICam by a real producer, the virtual one of the genicam wheel: features, formats, losses, one line each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from inspectd.errors import SourceError, SourceLost
from inspectd.records import Frame, TimeKind
from inspectd.source_settings import GenicamSource
from inspectd.sources.base import FrameSource
from inspectd.sources.genicam import GENTL_PATH, GenicamConnection, _told, list_cameras
from inspectd.sources.open import open_source, probe
from inspectd.sources.timing import DeviceClock

genicam = pytest.importorskip("genicam", reason='needs pip install "inspectd[genicam]"')
PRODUCER = Path(genicam.__file__).parent / "viky.cti"
PATIENCE_S = 60.0


def settings(**more: object) -> GenicamSource:
    usual = {"kind": "genicam", "serial": "1", "producers": (PRODUCER,), "max_size_wh_px": (800, 800)}
    return GenicamSource.model_validate(usual | more)


def read_frame(camera: FrameSource) -> Frame:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if (frame := camera.read(0.05)) is not None:
            return frame
    raise AssertionError("no frame")


def failure_of(source: GenicamSource) -> str:
    with closing(open_source(source)) as camera:
        try:
            while True:
                read_frame(camera)
        except SourceError as error:
            return str(error)


@pytest.mark.parametrize(("form", "grey"), [("Mono8", True), ("RGBa8", False)])
def test_frames_come_as_the_features_say(form: str, grey: bool) -> None:
    """Size and pixel format are set in order and are those of the frames; a camera without a clock gives arrivals."""
    features = {"PixelFormat": form, "Width": 320, "Height": 200, "AcquisitionFrameRate": 60.0}
    with closing(open_source(settings(features=features), start_index=5)) as camera:
        frames = [read_frame(camera) for _ in range(8)]
    assert {(frame.pixels_bgr.shape, frame.damage, frame.time_kind) for frame in frames} == {
        ((200, 320, 3), None, TimeKind.ARRIVAL)
    }
    assert (np.ptp(frames[0].pixels_bgr, axis=2).max() == 0) == grey
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    assert (camera.simulated, camera.live) == (False, True)


def test_cameras_differ_by_serial() -> None:
    """The producer's three cameras paint in three colours; the serial number chooses."""
    colours = []
    for serial in "012":
        with closing(open_source(settings(serial=serial))) as camera:
            picture = read_frame(camera).pixels_bgr.astype(int)
        colours.append(int(picture.reshape(-1, 3).sum(axis=0).argmax()))
    assert colours == [2, 1, 0]


MISTAKES = {
    "serial": ({"serial": "9"}, "no camera with the serial number 9; there are: 0, 1, 2"),
    "unknown": ({"features": {"Widht": 400}}, "features.Widht: the camera has no such feature"),
    "range": ({"features": {"Width": 5000}}, "features.Width: 5000 is not from 100 to 800"),
    "symbol": ({"features": {"PixelFormat": "Mono9"}}, "features.PixelFormat: 'Mono9' is not one of RGBa8, Mono8"),
    "type": ({"features": {"Width": "wide"}}, "features.Width: 'wide' is not a whole number"),
    "boolean": ({"features": {"Width": True}}, "features.Width: True is not a whole number"),
    "locked": ({"features": {"PayloadSize": 5}}, "features.PayloadSize: cannot be set to 5 now: node is not writable"),
    "missing": ({"producers": ("/none.cti",)}, "/none.cti: no such producer"),
    "no-library": ({"producers": ("/etc/passwd",)}, "/etc/passwd: not a GenTL producer that can be loaded"),
    "too-large": ({"max_size_wh_px": (96, 96)}, "sends 400x400 px, max_size_wh_px is [96, 96]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each mistake names what is allowed, and the vendor's library writes nothing beside it."""
    more, told = MISTAKES[name]
    assert failure_of(settings(**more)) == f"camera {more.get('serial', '1')}: {told}"
    assert capfd.readouterr() == ("", "")


def test_producers_are_found_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vendors' installers set a variable; without it there is nothing to look in."""
    monkeypatch.setenv(GENTL_PATH, f"/none:{PRODUCER.parent}")
    with closing(open_source(settings(producers=()))) as camera:
        read_frame(camera)
    monkeypatch.delenv(GENTL_PATH)
    assert f"set {GENTL_PATH}" in failure_of(settings(producers=()))


@pytest.fixture
def connection() -> Iterator[GenicamConnection]:
    """An open connection, used without its thread."""
    opened = GenicamConnection(settings())
    opened.open()
    yield opened
    opened.close()


def test_incomplete_buffer_is_a_damaged_frame(connection: GenicamConnection) -> None:
    """harvesters throws such a buffer away and calls back: the frame is not lost without a word."""
    acquirer = connection._camera
    acquirer._emit_callbacks(acquirer.Events.INCOMPLETE_BUFFER)
    acquirer.stop()
    arrival = connection.take()
    assert arrival is not None
    assert arrival.load() == (None, "incomplete: the buffer lacks packets")


def test_camera_in_use_is_told(connection: GenicamConnection) -> None:
    """The producer's own refusal to open a camera twice becomes one line."""
    with pytest.raises(SourceLost, match="cam: in use by another program"), _told("cam"):
        connection._harvester.create({"serial_number": "1"})


def test_camera_is_there_again_after_every_close() -> None:
    """Producer and camera are let go of: they open again and again."""
    for _ in range(5):
        with closing(open_source(settings())) as camera:
            read_frame(camera)


def test_list_names_every_camera() -> None:
    """What `inspectd cameras` shows."""
    found = list_cameras(PRODUCER)
    assert [(each.serial, each.model, each.transport) for each in found] == [(n, "Viky", "Custom") for n in "012"]
    with pytest.raises(SourceLost, match=r"^/etc/passwd: not a GenTL producer"):
        list_cameras(Path("/etc/passwd"))


def test_opening_does_not_block() -> None:
    """`probe` trusts the settings."""
    assert probe(settings(producers=("/none.cti",))).size_wh_px == (800, 800)


MS = 1_000_000


@pytest.mark.parametrize(("lag_ms", "kind"), [(None, TimeKind.ARRIVAL), (40, TimeKind.HARDWARE)])
def test_stamped_frame_is_older_than_its_quickest_way(
    monkeypatch: pytest.MonkeyPatch, lag_ms: float | None, kind: TimeKind
) -> None:
    """A camera's clock is tied to arrivals: who does not say how long readout and transfer take knows no more."""
    monkeypatch.setattr("inspectd.sources.genicam.stamp_ns", lambda *_: time.monotonic_ns() - 10**15)
    source = settings(exposure_lag_ms=lag_ms, features={"AcquisitionFrameRate": 60.0})
    with closing(open_source(source)) as camera:
        frames = [read_frame(camera) for _ in range(4)]
    assert {frame.time_kind for frame in frames} == {kind}
    assert all(frame.lag_ns >= (lag_ms or 0) * MS and frame.arrived_ns <= time.monotonic_ns() for frame in frames)


def test_clock_of_a_camera_is_mapped_by_the_fastest_way() -> None:
    """Jitter of the network goes away, and no frame is from the future."""
    clock = DeviceClock()
    ways = [12, 10, 30, 10, 11]
    mapped = [clock.captured_ns((40 * n + 7) * MS, (1000 + 40 * n + way) * MS) for n, way in enumerate(ways)]
    assert mapped == [(1012 + 0) * MS, (1010 + 40) * MS, (1010 + 80) * MS, (1010 + 120) * MS, (1010 + 160) * MS]


def test_drift_of_a_clock_is_followed() -> None:
    """A clock that is slow by 100 ppm is never off by more than it drifts in two windows."""
    clock = DeviceClock()
    for n in range(2000):
        stamp_ns, arrived_ns = round(n * 40 * MS * (1 - 1e-4)), (n * 40 + 9) * MS
        mapped = clock.captured_ns(stamp_ns + 1, arrived_ns)
        assert mapped is not None
        assert 0 <= arrived_ns - mapped <= 1.1 * MS


def test_clock_that_stands_still_or_is_reset_is_not_believed() -> None:
    """Without a clock that runs there is only the arrival."""
    clock = DeviceClock()
    assert clock.captured_ns(5, 100) == 100
    assert clock.captured_ns(5, 200) is None
    assert clock.captured_ns(2, 300) is None
    assert clock.captured_ns(3, 400) == 400
    assert clock.captured_ns(None, 500) is None
