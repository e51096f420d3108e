"""`[cameras.NAME.source]`: where frames come from, one table for each kind of source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from inspectd.toml import Strict


class FileSource(Strict):
    """`kind = "file"`: a video file."""

    kind: Literal["file"]
    path: Path
    pace: Literal["realtime", "fast"] = "realtime"
    """`realtime` gives frames at their own times, like a camera; `fast` as fast as the worker takes them."""
    loop: bool = False
    frozen_after_s: float | None = Field(default=None, gt=0, le=3600)
    """The same picture for so long is `frame_frozen`; off by default, since recordings may stand still."""


class FolderSource(Strict):
    """`kind = "folder"`: the images of a folder, in the order of their names."""

    kind: Literal["folder"]
    path: Path
    pace: Literal["realtime", "fast"] = "realtime"
    rate_fps: float = Field(default=10.0, gt=0, le=1000)
    """Frames per second at `pace = "realtime"`."""
    loop: bool = False
    frozen_after_s: float | None = Field(default=None, gt=0, le=3600)
    """The same picture for so long is `frame_frozen`; off by default, since recordings may stand still."""


def _frame_size(value: tuple[int, int]) -> tuple[int, int]:
    if not all(16 <= side <= 16384 for side in value):
        raise ValueError("expected [width, height], each from 16 to 16384 px")
    return value


FrameSize = Annotated[tuple[int, int], AfterValidator(_frame_size)]


V4l2Format = Literal["MJPG", "YUYV", "UYVY", "NV12", "GREY", "Y10", "Y12", "Y16", "BGR3", "RGB3"]


class NetworkSource(Strict):
    """What every network camera is told. User and password stand in `url`, or in keys of their own.

    However they are given, they never reach a log, an event or an error.
    """

    url: str
    username: str | None = Field(default=None, min_length=1, max_length=256)
    password: SecretStr | None = None
    """Better from the environment than from the file: `INSPECTD_CAMERAS__CAM1__SOURCE__PASSWORD`."""
    password_file: Path | None = None
    """A file whose first line is the password, read at every connection; variables such as
    `${CREDENTIALS_DIRECTORY}` (systemd's `LoadCredential=`) are filled in."""
    open_timeout_s: float = Field(default=5.0, gt=0, le=60)
    silence_s: float = Field(default=2.0, gt=0.1, le=60)
    """No frame for this long means the camera is lost."""
    exposure_lag_ms: float | None = Field(default=None, ge=0, le=5000)
    """How long after its exposure a frame arrives, at the least; unset is unknown, and taken as none."""
    frozen_after_s: float | None = Field(default=5.0, gt=0, le=3600)
    """Bit-identical pictures for so long are `frame_frozen`: a living camera has noise."""
    max_size_wh_px: FrameSize = (1920, 1080)
    """The largest frame that is taken; the shared memory is sized by it."""

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file: only one of them is allowed")
        if (self.password is not None or self.password_file is not None) and self.username is None:
            raise ValueError("username: is needed with password or password_file")
        if self.username is not None and "@" in self.url.split("://", 1)[-1].partition("/")[0]:
            raise ValueError("username: not allowed where the url has a user of its own")
        return self


class RtspSource(NetworkSource):
    """`kind = "rtsp"`: a network camera, RTSP over TCP: `rtsp://[user:password@]host[:port]/path`."""

    kind: Literal["rtsp"]
    trust_rtcp: bool = True
    """The camera's clock, by RTCP, counts where it agrees with the arrivals; false for one that nobody sets."""
    decode: Literal["software", "auto", "cuda", "qsv", "vaapi"] = "software"
    """`auto` takes the hardware that there is, others the one named; software where it cannot. Hardware does not
    tell damage inside a picture."""

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        if not re.match(r"rtsps?://[^/\s]+", value):
            raise ValueError("expected rtsp://HOST[:PORT]/PATH")
        return value


class MjpegSource(NetworkSource):
    """`kind = "mjpeg"`: a network camera, MJPEG over HTTP: `http[s]://[user:password@]host[:port]/path`."""

    kind: Literal["mjpeg"]

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            right = False
        if not right or re.search(r"\s", value):
            raise ValueError("expected http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")
        return value


class DropSource(Strict):
    """`kind = "drop"`: a folder that somebody else fills; each image is inspected once, when it is whole."""

    kind: Literal["drop"]
    path: Path
    max_size_wh_px: FrameSize = (1920, 1080)
    """The largest image that is taken; the shared memory is sized by it."""
    settle_s: float = Field(default=0.2, ge=0.02, le=60)
    """A file is looked at when its size and time have not changed for so long."""
    unreadable_after_s: float = Field(default=10.0, gt=0, le=3600)
    """A file that cannot be read so long after its last change is `error/frame_corrupt`."""
    frozen_after_s: float | None = Field(default=None, gt=0, le=3600)
    """The same picture for so long is `frame_frozen`; off by default, since parts may look alike to the bit."""
    index: Path | None = None
    """Where it is noted which images were inspected; default: `drop/NAME` in `state_dir`."""

    @property
    def pace(self) -> Literal["fast"]:
        """Images wait for a free slot; none is skipped, none is late."""
        return "fast"


class V4l2Source(Strict):
    """`kind = "v4l2"`: a camera of the kernel's (USB Video Class, CSI, capture card).

    Size, format, exposure, gain, focus and white balance that are given must be in force, or the camera counts as lost:
    thresholds were measured with them. Another rate than asked for is a warning.
    """

    kind: Literal["v4l2"]
    device: Path
    """`/dev/v4l/by-id/…` (the stable name; its last part is enough) or `/dev/videoN`."""
    size_wh_px: FrameSize = (1280, 720)
    format: V4l2Format | None = None
    """The pixel format; default: what OpenCV finds first, mostly YUYV. USB carries full size and rate as MJPG only."""
    fps: float | None = Field(default=None, gt=0, le=1000)
    exposure_us: float | None = Field(default=None, gt=0, le=10_000_000)
    """Exposure time; switches the automatic off. The kernel counts in 100 µs."""
    gain: int | None = None
    focus: int | None = None
    """Focus in the device's steps; switches the automatic off."""
    white_balance_k: int | None = Field(default=None, ge=1000, le=20_000)
    """Colour temperature; switches the automatic off."""
    open_timeout_s: float = Field(default=5.0, gt=0, le=60)
    silence_s: float = Field(default=2.0, gt=0.1, le=60)
    """No frame for this long means the camera is lost."""
    frozen_after_s: float | None = Field(default=5.0, gt=0, le=3600)
    """Bit-identical pictures for so long are `frame_frozen`: a living camera has noise."""
    exposure_lag_ms: float | None = Field(default=None, ge=0, le=10_000)
    """How long after the middle of its exposure the driver stamps a frame, at the least: when its first data come, or
    its last. Unset is unknown, and taken as none."""

    @field_validator("device")
    @classmethod
    def _by_id(cls, value: Path) -> Path:
        return Path("/dev/v4l/by-id") / value if len(value.parts) == 1 else value

    @property
    def max_size_wh_px(self) -> tuple[int, int]:
        """The shared memory is sized by the very size that is asked for."""
        return self.size_wh_px


class GenicamSource(Strict):
    """`kind = "genicam"`: a GigE Vision, USB3 Vision or other camera by a vendor's GenTL producer."""

    kind: Literal["genicam"]
    serial: str = Field(min_length=1, max_length=64)
    """The camera's serial number; `inspectd cameras` shows it."""
    producers: tuple[Path, ...] = ()
    """The vendor's `.cti` files; default: all in the folders of GENICAM_GENTL64_PATH."""
    features: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Features by name, set in this order, read back and compared; true runs a command. Triggers are features too."""
    max_size_wh_px: FrameSize = (1920, 1080)
    """The largest frame that is taken; the shared memory is sized by it."""
    open_timeout_s: float = Field(default=15.0, gt=0, le=60)
    """Producers take seconds to find cameras."""
    silence_s: float = Field(default=2.0, gt=0.1, le=86_400)
    """No frame for this long means the camera is lost; with a hardware trigger, longer than the line stands still."""
    frozen_after_s: float | None = Field(default=5.0, gt=0, le=3600)
    """Bit-identical pictures for so long are `frame_frozen`: a living camera has noise."""
    exposure_lag_ms: float | None = Field(default=None, ge=0, le=10_000)
    """How long after the middle of its exposure a frame arrives, at the least (readout and transfer): the camera's own
    clock is tied to the quickest arrival. Unset is unknown, and taken as none."""


Source = Annotated[
    FileSource | FolderSource | DropSource | RtspSource | MjpegSource | V4l2Source | GenicamSource,
    Field(discriminator="kind"),
]
