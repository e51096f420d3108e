"""A network camera on loopback: sends the encoded frames of a clip by RTSP, in a loop, as a live encoder would.

Run by the system's Python, which has GStreamer: `gst_camera.py PORT CLIP [--fps N] [--pushes FILE] [--user U:P]`. The
clip is H.264, H.265 or MJPEG. Each frame's number (it goes on over the loops and over connections) and the monotonic
time in ns of its push are a line of FILE.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtspServer  # noqa: E402, F401 - GstApp types the app elements

BYTES = "stream-format=byte-stream,alignment=au"
PARSERS = {
    "video/x-h264": f"h264parse config-interval=-1 ! video/x-h264,{BYTES}",
    "video/x-h265": f"h265parse config-interval=-1 ! video/x-h265,{BYTES}",
    "image/jpeg": "identity",
}
PAYLOADERS = {
    "video/x-h264": "h264parse config-interval=-1 ! rtph264pay",
    "video/x-h265": "h265parse config-interval=-1 ! rtph265pay",
    "image/jpeg": "rtpjpegpay",
}


class Clip:
    """The encoded frames of a file: `frames` are `(bytes, is_key)`, each key frame with its parameter sets."""

    def __init__(self, path: Path) -> None:
        self.kind = next(iter(samples(path, "identity"))).get_caps().get_structure(0).get_name()
        self.frames: list[tuple[bytes, bool]] = []
        for sample in samples(path, PARSERS[self.kind]):
            self.caps = sample.get_caps()
            held = sample.get_buffer()
            is_key = not held.get_flags() & Gst.BufferFlags.DELTA_UNIT
            self.frames.append((held.extract_dup(0, held.get_size()), is_key))


def samples(path: Path, parser: str) -> Iterator[Gst.Sample]:
    """Yields the samples of a file's video, parsed."""
    pipeline = Gst.parse_launch(f"filesrc location={path} ! parsebin ! {parser} ! appsink name=out sync=false")
    pipeline.set_state(Gst.State.PLAYING)
    try:
        while (sample := pipeline.get_by_name("out").emit("pull-sample")) is not None:
            yield sample
    finally:
        pipeline.set_state(Gst.State.NULL)


class Camera:
    """Pushes the clip's frames at their rate while a client listens, beginning with a key frame."""

    def __init__(self, clip: Clip, fps: float, pushes: Path | None) -> None:
        self._clip = clip
        self._period_s = 1 / fps
        self._log = None if pushes is None else os.open(pushes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._number = 0

    def configure(self, _factory: object, media: object) -> None:
        source = media.get_element().get_by_name_recurse_up("in")  # type: ignore[attr-defined]
        source.set_property("caps", self._clip.caps)
        while not self._frame()[1]:
            self._number += 1
        first_s = time.monotonic() + self._period_s  # until then the source takes nothing
        GLib.timeout_add(round(self._period_s * 1000), self._turn, source, first_s)

    def _turn(self, source: object, due_s: float) -> bool:
        """Pushes one frame and comes again when the next is due; a pause is not caught up."""
        if self._push(source):
            due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
            GLib.timeout_add(max(0, round((due_s - time.monotonic()) * 1000)), self._turn, source, due_s)
        return False

    def _push(self, source: object) -> bool:
        encoded, is_key = self._frame()
        held = Gst.Buffer.new_wrapped(encoded)
        now_ns = time.monotonic_ns()
        if not is_key:
            held.set_flags(Gst.BufferFlags.DELTA_UNIT)
        if self._log is not None:
            os.write(self._log, f"{self._number} {now_ns}\n".encode())
        self._number += 1
        return bool(source.emit("push-buffer", held) == Gst.FlowReturn.OK)  # type: ignore[attr-defined]

    def _frame(self) -> tuple[bytes, bool]:
        return self._clip.frames[self._number % len(self._clip.frames)]


def guard(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, user: str, password: str) -> None:
    """Only that user may look."""
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for what in ("access", "construct"):
        permissions.add_permission_for_role("viewer", f"media.factory.{what}", True)
    factory.set_permissions(permissions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port")
    parser.add_argument("clip", type=Path)
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--pushes", type=Path)
    parser.add_argument("--user")
    args = parser.parse_args()
    Gst.init(None)
    clip = Clip(args.clip)
    factory = GstRtspServer.RTSPMediaFactory()
    payloader = PAYLOADERS[clip.kind]
    factory.set_launch(f"( appsrc name=in is-live=true format=time do-timestamp=true ! {payloader} name=pay0 pt=96 )")
    factory.set_shared(True)
    factory.connect("media-configure", Camera(clip, args.fps, args.pushes).configure)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    if args.user:
        guard(server, factory, *args.user.split(":", 1))
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    sys.stdout.write(f"ready {len(clip.frames)}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main()
