"""V4L2: what cannot be a camera is told by the kernel's own answers; what a camera makes of its settings is compared.

There is no video device on a test machine, so a recorded device stands in for `cv2.VideoCapture`, and only for that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import number_of, numbered
from mjpeg_servers import jpeg

from inspectd.errors import SourceError, SourceLost, SourceTimeout
from inspectd.records import TimeKind
from inspectd.source_settings import V4l2Source
from inspectd.sources import v4l2, v4l2_kernel
from inspectd.sources.live import LiveCamera, Patience
from inspectd.sources.open import open_source, probe
from inspectd.sources.v4l2 import V4l2Connection, differences

SIZE = (160, 96)


def settings(device: Path | str = "/dev/video9", **more: object) -> V4l2Source:
    return V4l2Source.model_validate({"kind": "v4l2", "device": device, "size_wh_px": SIZE} | more)


def failure_of(source: V4l2Source) -> str:
    deadline_s = time.monotonic() + 30
    with closing(open_source(source)) as camera:
        try:
            while time.monotonic() < deadline_s:
                camera.read(0.05)
        except SourceError as error:
            return str(error)
    raise AssertionError("never lost")


def test_missing_device_is_one_line() -> None:
    """A device that is not plugged in is lost, and the line says how to find its name."""
    assert failure_of(settings("usb-Cam_1-video-index0")) == (
        "/dev/v4l/by-id/usb-Cam_1-video-index0: no such device; it is unplugged, or has another name "
        "(inspectd cameras shows them)"
    )


@pytest.mark.parametrize("device", ["/dev/null", "/etc/passwd"])
def test_what_is_no_video_device_is_told(device: str) -> None:
    """Another device, or a file, does not know what a camera knows."""
    assert failure_of(settings(device)) == f"{device}: not a video device (inappropriate ioctl for device)"


EXAMINE = """
import os, sys
from pathlib import Path
from inspectd.sources.v4l2_kernel import examine
if os.geteuid() == 0:
    os.seteuid(65534)
examine(Path(sys.argv[1]))
"""


def test_permission_denied_names_the_group() -> None:
    """A user who is not in the group video is told so."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        device = Path(folder, "video0")
        device.touch(0)
        command = [sys.executable, "-c", EXAMINE, str(device)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{device}: permission denied; the daemon's user must be in the group video" in done.stderr


def test_numbers_of_the_kernel_are_right() -> None:
    """Request codes carry the size of what they take: direction, size, type and number (asm-generic/ioctl.h)."""

    def code(direction: int, number: int, size: int) -> int:
        return direction << 30 | size << 16 | ord("V") << 8 | number

    assert code(2, 0, 104) == v4l2_kernel.QUERYCAP
    assert code(3, 2, 64) == v4l2_kernel.ENUM_FMT
    assert code(3, 4, 208) == v4l2_kernel.G_FMT
    assert code(3, 8, 20) == v4l2_kernel.REQBUFS
    assert code(3, 74, 44) == v4l2_kernel.ENUM_FRAMESIZES
    assert code(3, 75, 52) == v4l2_kernel.ENUM_FRAMEINTERVALS


def test_devices_are_listed_by_their_stable_names(tmp_path: Path) -> None:
    """A device is named by its identity where udev gives one; the first of two names counts."""
    (tmp_path / "by-id").mkdir()
    for name in ("usb-A-video-index0", "usb-A-video-index0-alias"):
        (tmp_path / "by-id" / name).symlink_to("/dev/video2")
    for number in (0, 2, 10):
        (tmp_path / "sys" / f"video{number}").mkdir(parents=True)
    found = v4l2_kernel.devices(by_id=tmp_path / "by-id", sysfs=tmp_path / "sys")
    assert [path.name for path in found] == ["video0", "usb-A-video-index0", "video10"]
    assert v4l2_kernel.devices(by_id=tmp_path / "none", sysfs=tmp_path / "none") == []


@dataclass
class RecordedDevice:
    """A fake of `cv2.VideoCapture`: what a webcam answered, with the limits that it keeps. The only fake here."""

    buffers: list[np.ndarray]
    opened: bool = True
    most_fps: float = 30.0
    least_exposure: float = 3.0
    clock_offset_ns: int = -5_000_000
    properties: dict[int, float] = field(default_factory=dict)
    released: bool = False

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def set(self, prop: int, value: float) -> bool:
        match prop:
            case cv2.CAP_PROP_FPS:
                value = min(value, self.most_fps)
            case cv2.CAP_PROP_EXPOSURE:
                value = max(value, self.least_exposure)
        self.properties[prop] = value
        return True

    def get(self, prop: int) -> float:
        if prop == cv2.CAP_PROP_POS_MSEC:
            return (time.monotonic_ns() + self.clock_offset_ns) / 1e6
        return self.properties.get(prop, -1.0)

    def grab(self) -> bool:
        time.sleep(0.02)
        return bool(self.buffers)

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return True, self.buffers.pop(0).reshape(1, -1)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows the recorded device."""
    device = v4l2_kernel.VideoDevice(path=Path("/dev/video9"), card="Cam", driver="uvcvideo", modes=())
    monkeypatch.setattr(v4l2_kernel, "examine", lambda _: device)
    monkeypatch.delenv(v4l2.SELECT_TIMEOUT, raising=False)


def frames_of(device: RecordedDevice, source: V4l2Source, count: int) -> list[object]:
    connection = V4l2Connection(source, opens=lambda _: device)
    patience = Patience(open_s=5, silence_s=5)
    camera = LiveCamera(connection, name="cam", size_wh_px=SIZE, patience=patience)
    deadline_s, frames = time.monotonic() + 30, []
    with closing(camera):
        while len(frames) < count and time.monotonic() < deadline_s:
            if (frame := camera.read(0.05)) is not None:
                frames.append(frame)
    return frames


def yuyv(number: int) -> np.ndarray:
    grey = cv2.cvtColor(numbered(number, SIZE), cv2.COLOR_BGR2GRAY)
    return np.dstack([grey, np.full_like(grey, 128)]).reshape(-1)


@pytest.mark.usefixtures("plugged")
def test_frames_carry_the_drivers_time() -> None:
    """Pictures are converted here, and exposed when the driver says."""
    device = RecordedDevice([yuyv(number) for number in range(3)])
    frames = frames_of(device, settings(format="YUYV", silence_s=1.5, exposure_lag_ms=0), 3)
    assert [number_of(frame.pixels_bgr) for frame in frames] == [0, 1, 2]
    assert {(frame.damage, frame.time_kind) for frame in frames} == {(None, TimeKind.HARDWARE)}
    assert all(4_000_000 <= frame.lag_ns < 2_000_000_000 for frame in frames)
    assert device.properties[cv2.CAP_PROP_CONVERT_RGB] == 0
    assert os.environ[v4l2.SELECT_TIMEOUT] == "2"


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(("lag_ms", "kind"), [(None, TimeKind.ARRIVAL), (30, TimeKind.HARDWARE)])
def test_driver_stamps_frames_after_their_exposure(lag_ms: float | None, kind: TimeKind) -> None:
    """How long after it, a person says; who does not know is not told that the exposure was stamped."""
    device = RecordedDevice([yuyv(1)])
    (frame,) = frames_of(device, settings(format="YUYV", exposure_lag_ms=lag_ms), 1)
    assert frame.time_kind is kind
    assert 0 <= frame.lag_ns - ((lag_ms or 0) + 4) * 1e6 < 1e9
    assert frame.arrived_ns <= time.monotonic_ns()


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("offset_ns", [-(10**15), 10**15], ids=["another-clock", "future"])
def test_time_of_another_clock_is_not_believed(offset_ns: int) -> None:
    """A driver that stamps with the wall clock gives the arrival."""
    (frame,) = frames_of(RecordedDevice([yuyv(1)], clock_offset_ns=offset_ns), settings(format="YUYV"), 1)
    assert (frame.time_kind, frame.lag_ns) == (TimeKind.ARRIVAL, 0)


@pytest.mark.usefixtures("plugged")
def test_short_buffers_and_cut_pictures_are_damage() -> None:
    """OpenCV's own conversion would show half of an older picture."""
    (short,) = frames_of(RecordedDevice([yuyv(1)[:-100]]), settings(format="YUYV"), 1)
    assert short.damage == f"incomplete: {160 * 96 * 2 - 100} bytes of {160 * 96 * 2}"
    pictures = [np.frombuffer(jpeg(7, SIZE), np.uint8), np.frombuffer(jpeg(8, SIZE)[:-300], np.uint8)]
    whole, cut = frames_of(RecordedDevice(pictures), settings(format="MJPG"), 2)
    assert (number_of(whole.pixels_bgr), whole.damage, cut.damage) == (7, None, "a JPEG without its end")


ASKED = {"format": "MJPG", "fps": 60.0, "exposure_us": 100.0, "gain": 4, "focus": 10, "white_balance_k": 4600}


@pytest.mark.usefixtures("plugged")
def test_what_is_not_in_force_is_told() -> None:
    """Another rate is a note; another exposure refuses the camera, since thresholds were measured with it."""
    device = RecordedDevice([])
    connection = V4l2Connection(settings(**ASKED), opens=lambda _: device)
    with pytest.raises(SourceLost) as caught:
        connection.open()
    assert str(caught.value) == "/dev/video9: asked exposure_us 100, the device gives 300"
    told = {str(each): each.grave for each in differences(settings(**ASKED), device)}
    assert told == {
        "asked fps 60, the device gives 30": False,
        "asked exposure_us 100, the device gives 300": True,
    }
    connection.close()
    assert device.released


@pytest.mark.usefixtures("plugged")
def test_rate_that_differs_is_a_note() -> None:
    """The camera is used, and `check` shows it."""
    connection = V4l2Connection(settings(fps=60.0, format="YUYV"), opens=lambda _: RecordedDevice([]))
    connection.open()
    assert connection.notes == ("asked fps 60, the device gives 30",)


@pytest.mark.usefixtures("plugged")
def test_automatics_are_switched_off_by_what_is_asked() -> None:
    """A fixed exposure, focus or white balance means that the camera does not change it."""
    device = RecordedDevice([])
    v4l2.apply(settings(**ASKED), device)
    off = cv2.CAP_PROP_AUTO_EXPOSURE, cv2.CAP_PROP_AUTOFOCUS, cv2.CAP_PROP_AUTO_WB
    assert [device.properties[prop] for prop in off] == [v4l2.MANUAL_EXPOSURE, 0, 0]


@pytest.mark.usefixtures("plugged")
def test_silent_device_is_a_timeout_and_an_unplugged_one_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV only says that there was no frame; the kernel knows why."""
    connection = V4l2Connection(settings(format="YUYV"), opens=lambda _: RecordedDevice([]))
    connection.open()
    with pytest.raises(SourceTimeout, match="no frame for 2 s"):
        connection.take()
    monkeypatch.undo()
    with pytest.raises(SourceLost, match="no such device; it is unplugged"):
        connection.take()


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(("busy", "told"), [(True, "in use by another program"), (False, "cannot be opened by OpenCV")])
def test_device_that_does_not_open_is_told(monkeypatch: pytest.MonkeyPatch, busy: bool, told: str) -> None:
    """The kernel says whether another program has it."""
    monkeypatch.setattr(v4l2_kernel, "is_busy", lambda _: busy)
    with pytest.raises(SourceLost, match=f"/dev/video9: {told}"):
        V4l2Connection(settings(), opens=lambda _: RecordedDevice([], opened=False)).open()


def test_opencv_itself_opens_no_device_that_is_none() -> None:
    """The real `cv2.VideoCapture` is what is used otherwise: it answers, and does not raise."""
    device = v4l2._open_device(Path("/dev/null"))
    assert not device.isOpened()
    assert not v4l2_kernel.is_busy(Path("/dev/null"))
    assert v4l2_kernel.line_bytes(Path("/dev/null")) == 0


def test_ring_is_sized_by_what_is_asked() -> None:
    """The camera gives the very size, or is not used."""
    assert probe(settings()).size_wh_px == SIZE
