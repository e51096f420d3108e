"""Network cameras by RTSP over TCP (PyAV): H.264, H.265 and MJPEG. `LiveCamera` holds the connection.

Measured against OpenCV's reader (docs of the project's parts): that one hands out stale frames as good and hangs on a
stalled server.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from inspectd.errors import LoginRefused, SourceError, SourceLost, SourceTimeout
from inspectd.records import PixelsU8
from inspectd.source_settings import RtspSource
from inspectd.sources.addresses import address, check_host, redact
from inspectd.sources.decoding import NO_KEY_FRAME, Decoder, Picture, Upright, upright_size_wh_px
from inspectd.sources.exposures import ExposureClock
from inspectd.sources.hardware import accelerator
from inspectd.sources.live import STALE_S, Arrival, LiveCamera, Patience
from inspectd.sources.timing import Freshness

T = TypeVar("T")
READ_RESERVE_S = 0.5
"""PyAV's own limit comes after the watchdog's: it only lets the thread of a dead connection end."""
ANOTHER_OPEN_S = 2.5
"""A further connection waits no longer for an answer: it is there for a network that comes back."""
KEY_FRAME_LIMIT_S = 20.0
"""Without a sound key frame for so long the stream is taken anew: most cameras start with one."""
PARSED = frozenset({"h264", "hevc"})
"""FFmpeg hands out a frame of these only when the next one begins to arrive."""
REFUSALS = av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError
OPTIONS = {
    "rtsp_transport": "tcp",
    "fpsprobesize": "0",  # opens in 0.3 s instead of 1 s: the rate is of no interest
    "analyzeduration": "1000000",
    "fflags": "nobuffer",
    "flags": "low_delay",
    "max_delay": "0",
    "allowed_media_types": "video",
}


def rtsp_camera(settings: RtspSource, *, start_index: int = 0) -> LiveCamera:
    """A `FrameSource` over an RTSP connection, which begins to open.

    Raises:
        SourceLost: too many earlier connections still hang in the network.
    """
    return LiveCamera(
        RtspConnection(settings),
        name=redact(settings.url),
        size_wh_px=settings.max_size_wh_px,
        patience=Patience(
            open_s=settings.open_timeout_s + READ_RESERVE_S, silence_s=settings.silence_s, first_s=KEY_FRAME_LIMIT_S
        ),
        start_index=start_index,
        another=lambda: RtspConnection(settings, most_open_s=ANOTHER_OPEN_S),
    )


class RtspConnection:
    """A `Connection` to one URL. Its user and password reach the camera alone, and no message."""

    notes: tuple[str, ...] = ()

    def __init__(self, settings: RtspSource, *, most_open_s: float | None = None) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._name = redact(settings.url)
        self._open_s = min(settings.open_timeout_s, most_open_s or settings.open_timeout_s)
        self._upright = Upright()
        self._freshness = Freshness()
        lag_ms = settings.exposure_lag_ms
        self._clock = ExposureClock(
            lag_ns=None if lag_ms is None else round(lag_ms * 1e6), wall_ns=time.time_ns() - time.monotonic_ns()
        )
        self._container: InputContainer | None = None
        self._packets: Iterator[Packet[VideoStream]] = iter(())
        self._decoder: Decoder | None = None
        self._parsed = False
        self._handed_ns: int | None = None
        self._had_rtcp = False
        self._ready: deque[Arrival] = deque()
        self._size_wh_px: tuple[int, int] | None = None
        self._heard_s = self._key_frame_s = time.monotonic()

    def open(self) -> None:
        """Asks, and returns when the stream is described and playing."""
        url = address(self._settings)
        self._heard_s = time.monotonic()
        try:
            self._container = self._told(lambda: self._opened(url), self._open_s)
        except SourceLost:
            check_host(self._settings.url)
            raise
        stream = self._video(self._container)
        self._decoder = Decoder(stream, threads=2)
        self._parsed = stream.codec_context.name in PARSED
        self._packets = self._container.demux(stream)
        self._heard_s = self._key_frame_s = time.monotonic()

    def take(self) -> Arrival | None:
        """The next picture; None where a packet gave none."""
        if self._decoder is None:
            raise SourceLost(f"{self._name}: not open")
        if not self._ready:
            packet = self._told(lambda: next(self._packets, None), self._settings.silence_s)
            if packet is None or packet.size == 0:  # an empty packet asks to flush: what comes then is late
                raise SourceLost(f"{self._name}: the stream ended")
            self._heard_s = time.monotonic()
            self._feed(packet, self._decoder)
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Closes the connection, and lets go of the decoder, whose threads end with it."""
        self._decoder, self._packets = None, iter(())
        self._ready.clear()
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _opened(self, url: str) -> InputContainer:
        limits = self._open_s, self._settings.silence_s + READ_RESERVE_S
        return av.open(url, options=OPTIONS, timeout=limits, hwaccel=accelerator(self._settings.decode))

    def _told(self, do: Callable[[], T], limit_s: float) -> T:
        """What FFmpeg does, its errors in words of ours. Theirs hold the URL, so not even the context keeps them."""
        failure: SourceError
        try:
            return do()
        except FFmpegError as error:
            timed_out = isinstance(error, av.error.ExitError) or time.monotonic() - self._heard_s >= limit_s
            if timed_out:  # a read that its time limit cut off calls itself by any name, so the clock decides
                what = "no answer" if self._decoder is None else "no frame"
                failure = SourceTimeout(f"{self._name}: {what} for {limit_s:g} s")
            else:
                kind = LoginRefused if isinstance(error, REFUSALS) else SourceLost
                failure = kind(f"{self._name}: {_reason(error)}")
        raise failure

    def _video(self, container: InputContainer) -> VideoStream:
        if not container.streams.video:
            raise SourceLost(f"{self._name}: sends no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise SourceLost(f"{self._name}: sends video of a kind that cannot be decoded here")
        return stream

    def _feed(self, packet: Packet[VideoStream], decoder: Decoder) -> None:
        now_ns = time.monotonic_ns()
        pts_s = None if packet.pts is None else float(packet.pts * packet.time_base)
        # The first bytes of this frame are what made the parser give the last one away.
        arrived_ns = self._handed_ns if self._parsed and self._handed_ns is not None else now_ns
        self._handed_ns = now_ns
        self._clock.heard(arrived_ns, pts_s, self._rtcp_utc_ns(packet))
        fresh = self._freshness.is_fresh(now_ns / 1e9, pts_s)
        for picture in decoder.decode(packet):
            self._check_size(picture.raw)
            if decoder.damage != NO_KEY_FRAME:
                self._ready.append(self._arrival(picture, arrived_ns, fresh=fresh))
        self._check_key_frames(decoder)

    def _rtcp_utc_ns(self, packet: Packet[VideoStream]) -> int | None:
        """The sender's wall clock at the exposure (RTCP, by FFmpeg's producer reference time).

        The first of a connection comes with the frame before its own.
        """
        told = packet.get_sidedata("prft") if self._settings.trust_rtcp and packet.has_sidedata("prft") else None
        had, self._had_rtcp = self._had_rtcp, told is not None
        return struct.unpack_from("<q", bytes(told))[0] * 1000 if told is not None and had else None

    def _arrival(self, picture: Picture, arrived_ns: int, *, fresh: bool) -> Arrival:
        exposure = self._clock.exposure(arrived_ns, picture.pts_s)
        lag_ns = arrived_ns - exposure.captured_ns
        return Arrival(
            load=partial(_load, self._upright, picture),
            captured_ns=exposure.captured_ns,
            captured_utc_ns=time.time_ns() - (time.monotonic_ns() - exposure.captured_ns),
            time_kind=exposure.kind,
            lag_ns=lag_ns,
            pts_s=picture.pts_s,
            fresh=fresh and exposure.waited_ns <= STALE_S * 1e9,
        )

    def _check_key_frames(self, decoder: Decoder) -> None:
        now_s = time.monotonic()
        if decoder.damage is None:
            self._key_frame_s = now_s
        elif now_s - self._key_frame_s > KEY_FRAME_LIMIT_S:
            raise SourceLost(f"{self._name}: no sound key frame for {KEY_FRAME_LIMIT_S:g} s")

    def _check_size(self, raw: VideoFrame | None) -> None:
        if raw is None:
            return
        size, (most_w, most_h) = upright_size_wh_px(raw), self._settings.max_size_wh_px
        if size[0] > most_w or size[1] > most_h:
            raise SourceLost(f"{self._name}: sends {size[0]}x{size[1]} px, max_size_wh_px is [{most_w}, {most_h}]")
        if self._size_wh_px not in (None, size):
            raise SourceLost(f"{self._name}: the frame size changed to {size[0]}x{size[1]} px")
        self._size_wh_px = size


def _reason(error: FFmpegError) -> str:
    if isinstance(
        error, av.error.HTTPOtherClientError
    ):  # so it is with a stream of sound alone: nothing is to be played
        return "refuses to play; does it send video?"
    return (error.strerror or type(error).__name__).lower()


def _load(upright: Upright, picture: Picture) -> tuple[PixelsU8 | None, str | None]:
    return None if picture.raw is None else upright.pixels_bgr(picture.raw), picture.damage
