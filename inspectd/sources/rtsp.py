"""Network cameras by RTSP over TCP (PyAV). A thread reads and decodes; `read` never blocks longer than asked.

Measured against OpenCV's reader (docs of the project's parts): that one hands out stale frames as good and hangs on a
stalled server. Here each connection lives in a thread of its own with time limits on every read; a watchdog that does
not trust those limits gives the connection up, and the next one starts afresh.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from inspectd.errors import SourceError, SourceLost, SourceTimeout
from inspectd.records import Frame
from inspectd.settings import RtspSource
from inspectd.sources.decoding import NO_KEY_FRAME, Decoder, Picture, Upright, upright_size_wh_px
from inspectd.sources.timing import Freshness

THREAD_NAME = "rtsp-reader"
MOST_READERS = 8
"""Connections of this process that may wait for their own time limits to end; more would be a leak."""
READ_RESERVE_S = 0.5
"""PyAV's own limit comes after the watchdog's: it only lets the thread of a dead connection end."""
JOIN_S = 0.2
"""A stream that runs lets its thread end within a packet or two; a stalled one is not waited for."""
QUEUE_FRAMES = 2
STALE_S = 0.5
"""A frame that nobody took for so long is not handed out any more."""
KEY_FRAME_LIMIT_S = 20.0
"""Without a sound key frame for so long the stream is taken anew: most cameras start with one."""
OPTIONS = {
    "rtsp_transport": "tcp",
    "fpsprobesize": "0",  # opens in 0.3 s instead of 1 s: the rate is of no interest
    "analyzeduration": "1000000",
    "fflags": "nobuffer",
    "flags": "low_delay",
    "max_delay": "0",
    "allowed_media_types": "video",
}


def redact(url: str) -> str:
    """A URL without user, password and query, any of which may be a secret.

    >>> redact("rtsp://admin:s3cret@10.0.0.7:554/stream?token=abc")
    'rtsp://***@10.0.0.7:554/stream?***'
    """
    url = re.sub(r"(?<=://)[^/?#]*@", "***@", url)
    return re.sub(r"\?.*", "?***", url, flags=re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Arrival:
    index: int
    picture: Picture
    arrived_ns: int
    arrived_utc_ns: int


class RtspCamera:
    """A `FrameSource` over one connection. When `read` raises, close it and open another."""

    simulated = False
    live = True

    def __init__(self, settings: RtspSource, *, start_index: int = 0) -> None:
        """Starts connecting and returns at once.

        Raises:
            SourceLost: too many earlier connections still hang in the network.
        """
        self.size_wh_px = settings.max_size_wh_px
        self._settings = settings
        self._name = redact(settings.url)
        self._upright = Upright()
        self._link = _Link(settings, start_index)
        if sum(thread.name == THREAD_NAME for thread in threading.enumerate()) >= MOST_READERS:
            raise SourceLost(f"{self._name}: {MOST_READERS} earlier connections still hang; waiting for them to end")
        self._thread = threading.Thread(target=self._link.run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def next_index(self) -> int:
        """The index after the last frame that arrived."""
        return self._link.next_index

    @property
    def frames_missed(self) -> int:
        """Frames that arrived stale or were overwritten by newer ones."""
        return self._link.missed

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, or None."""
        until_s = time.monotonic() + timeout_s
        while True:
            arrival = self._link.take(until_s)
            if arrival is None:
                self._link.check()
                return None
            if time.monotonic_ns() - arrival.arrived_ns <= STALE_S * 1e9:
                return self._frame(arrival)
            self._link.missed += 1

    def close(self) -> None:
        """Tells the connection to end. Its thread follows at its next packet, or else within the time limits."""
        self._link.stop()
        self._thread.join(JOIN_S)

    def _frame(self, arrival: _Arrival) -> Frame:
        picture = arrival.picture
        width, height = self.size_wh_px
        raw = picture.raw
        return Frame(
            index=arrival.index,
            pixels_bgr=np.zeros((height, width, 3), np.uint8) if raw is None else self._upright.pixels_bgr(raw),
            captured_ns=arrival.arrived_ns,
            captured_utc_ns=arrival.arrived_utc_ns,
            pts_s=picture.pts_s,
            damage=picture.damage,
        )


class _Link:
    """One connection: its thread runs `run`, everything else is called by the reader of the camera."""

    def __init__(self, settings: RtspSource, start_index: int) -> None:
        self.next_index = start_index
        self.missed = 0
        self._settings = settings
        self._name = redact(settings.url)
        self._changed = threading.Condition()
        self._queue: deque[_Arrival] = deque()
        self._failure: SourceError | None = None
        self._stopping = False
        self._size_wh_px: tuple[int, int] | None = None
        self._opened = False
        self._heard_s = time.monotonic()
        """When the source last gave a sign: the start, the opening, a packet before the first frame, a frame."""
        self._key_frame_s = time.monotonic()
        """When the stream was last sound."""

    def take(self, until_s: float) -> _Arrival | None:
        """The oldest waiting frame; None at `until_s`, or at once when the connection has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._failure, max(0.0, until_s - time.monotonic()))
            return self._queue.popleft() if self._queue else None

    def check(self) -> None:
        """The watchdog: raises what ended the connection, or SourceTimeout when it is silent beyond its limit."""
        silent_s = time.monotonic() - self._heard_s
        if self._failure is not None:
            raise self._failure
        if not self._opened and silent_s > self._settings.open_timeout_s + self._settings.silence_s:
            raise SourceTimeout(f"{self._name}: no answer for {self._settings.open_timeout_s:g} s")
        if self._opened and silent_s > self._settings.silence_s:
            raise SourceTimeout(f"{self._name}: no frame for {self._settings.silence_s:g} s")

    def stop(self) -> None:
        """The thread ends at its next packet or time limit."""
        self._stopping = True
        with self._changed:
            self._queue.clear()

    def run(self) -> None:
        """The thread: open, read, decode, until stopped or failed."""
        failure: SourceError = SourceLost(f"{self._name}: the reader stopped")
        try:
            self._read_all()
            failure = SourceLost(f"{self._name}: the stream ended")
        except SourceError as error:
            failure = error
        except FFmpegError as error:
            failure = self._failure_of(error)
        finally:
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _failure_of(self, error: FFmpegError) -> SourceError:
        """What FFmpeg's error means. One that its time limit cut off calls itself by any name, so the clock decides."""
        limit_s = self._settings.silence_s if self._opened else self._settings.open_timeout_s
        if isinstance(error, av.error.ExitError) or time.monotonic() - self._heard_s >= limit_s:
            return SourceTimeout(f"{self._name}: no {'frame' if self._opened else 'answer'} for {limit_s:g} s")
        return SourceLost(f"{self._name}: {(error.strerror or type(error).__name__).lower()}")

    def _read_all(self) -> None:
        limits = self._settings.open_timeout_s, self._settings.silence_s + READ_RESERVE_S
        with closing(av.open(self._settings.url, options=OPTIONS, timeout=limits)) as container:
            stream = self._video(container)
            decoder = Decoder(stream, threads=2)
            freshness = Freshness()
            self._heard_s = self._key_frame_s = time.monotonic()
            self._opened = True
            for packet in container.demux(stream):
                if self._stopping or packet.size == 0:  # an empty packet asks to flush: what comes then is late
                    return
                self._feed(packet, decoder, freshness)

    def _video(self, container: InputContainer) -> VideoStream:
        if not container.streams.video:
            raise SourceLost(f"{self._name}: sends no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise SourceLost(f"{self._name}: sends video of a kind that cannot be decoded here")
        return stream

    def _feed(self, packet: Packet[VideoStream], decoder: Decoder, freshness: Freshness) -> None:
        arrived_ns, arrived_utc_ns = time.monotonic_ns(), time.time_ns()
        pts_s = None if packet.pts is None else float(packet.pts * packet.time_base)
        fresh = freshness.is_fresh(arrived_ns / 1e9, pts_s)
        for picture in decoder.decode(packet):
            self._check_size(picture.raw)
            if decoder.damage != NO_KEY_FRAME:
                self._put(picture, arrived_ns, arrived_utc_ns, fresh=fresh)
        self._check_key_frames(decoder)

    def _check_key_frames(self, decoder: Decoder) -> None:
        now_s = time.monotonic()
        if decoder.damage == NO_KEY_FRAME:
            self._heard_s = now_s
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

    def _put(self, picture: Picture, arrived_ns: int, arrived_utc_ns: int, *, fresh: bool) -> None:
        arrival = _Arrival(index=self.next_index, picture=picture, arrived_ns=arrived_ns, arrived_utc_ns=arrived_utc_ns)
        self._heard_s = arrived_ns / 1e9
        with self._changed:
            self.next_index += 1
            if not fresh or self._stopping:
                self.missed += 1
                return
            if len(self._queue) >= QUEUE_FRAMES:
                self._queue.popleft()
                self.missed += 1
            self._queue.append(arrival)
            self._changed.notify_all()
