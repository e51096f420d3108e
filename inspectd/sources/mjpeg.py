"""MJPEG over HTTP: a response without end, of type multipart/x-mixed-replace, one JPEG a part."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException, HTTPResponse
from statistics import median

from inspectd.errors import LoginRefused, SourceError, SourceLost, SourceTimeout
from inspectd.records import PixelsU8
from inspectd.source_settings import MjpegSource
from inspectd.sources import http_stream
from inspectd.sources.addresses import address, redact
from inspectd.sources.jpeg import decode_jpeg_bgr
from inspectd.sources.live import Arrival
from inspectd.sources.multipart import Part, Parts, boundary_of
from inspectd.sources.timing import CATCH_UP_S, GAP_S

RECEIVE_BYTES = 1 << 18
HEAD_BYTES = 1 << 16
"""A JPEG is never larger than its pixels and this."""
FASTEST_S = 0.002
"""Frames that come in faster than this waited somewhere, whatever the camera's rate."""


class MjpegConnection:
    """A `Connection` to one URL. Its user and password reach that host alone, and no message."""

    notes: tuple[str, ...] = ()

    def __init__(self, settings: MjpegSource) -> None:
        """Nothing is opened yet."""
        width, height = settings.max_size_wh_px
        self._settings = settings
        self._name = redact(settings.url)
        self._most_bytes = width * height * 3 + HEAD_BYTES
        self._response: HTTPResponse | None = None
        self._parts: Parts | None = None
        self._ready: Iterator[Part] = iter(())
        self._pace = Pace()
        self._stamps = Stamps()

    def open(self) -> None:
        """Asks, and returns when the response has begun."""
        try:
            self._response = http_stream.get(address(self._settings), self._settings.open_timeout_s)
        except (OSError, HTTPException, ValueError) as error:
            raise self._failure_of(error) from None
        kind = self._response.headers.get("Content-Type", "")
        boundary = boundary_of(kind)
        if boundary is None:
            told = kind.partition(";")[0].strip()[:60] or "nothing of a known type"
            raise SourceLost(f"{self._name}: sends {told}, expected multipart/x-mixed-replace with a boundary")
        self._parts = Parts(boundary, most_bytes=self._most_bytes)

    def take(self) -> Arrival | None:
        """The next picture; None where something came that is none yet."""
        try:
            part = next(self._ready, None)
            if part is None:
                self._receive()
                part = next(self._ready, None)
        except SourceError as error:
            raise SourceLost(f"{self._name}: {error}") from None
        if part is None or not part.headers.get("content-type", "image/jpeg").lower().startswith("image/"):
            return None
        lag_ns = round((self._settings.exposure_lag_ms or 0.0) * 1e6)
        captured_ns = part.began_ns - lag_ns
        return Arrival(
            load=partial(_load, part),
            captured_ns=captured_ns,
            captured_utc_ns=time.time_ns() - (time.monotonic_ns() - captured_ns),
            lag_ns=lag_ns,
            pts_s=self._stamps.of(part),
            fresh=self._pace.is_fresh(part.began_ns / 1e9),
        )

    def close(self) -> None:
        """Closes the connection."""
        if self._response is not None:
            self._response.close()

    def _receive(self) -> None:
        if self._response is None or self._parts is None:
            raise SourceLost("not open")
        try:
            data = self._response.read1(RECEIVE_BYTES)
        except (OSError, HTTPException, ValueError) as error:
            raise SourceLost(http_stream.told(error)) from None
        if not data:
            raise SourceLost("the stream ended")
        self._ready = self._parts.feed(data, time.monotonic_ns())

    def _failure_of(self, error: Exception) -> SourceError:
        if isinstance(error, TimeoutError):
            return SourceTimeout(f"{self._name}: no answer for {self._settings.open_timeout_s:g} s")
        kind = LoginRefused if isinstance(error, http_stream.LoginDenied) else SourceLost
        return kind(f"{self._name}: {http_stream.told(error)}")


class Stamps:
    """The times in seconds that some servers (mjpg-streamer) put on each part.

    They are believed from the second on, and as long as they advance: a time that stands still hides every gap, and no
    connection has two clocks.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._advance = True

    def of(self, part: Part) -> float | None:
        """Takes every part, in order; None where there is no time that can be believed."""
        try:
            stamp_s = float(part.headers["x-timestamp"])
        except (KeyError, ValueError):
            stamp_s = math.nan
        before_s, self._last_s = self._last_s, stamp_s
        self._advance &= math.isfinite(stamp_s) and (before_s is None or stamp_s > before_s)
        return stamp_s if self._advance and before_s is not None else None


class Pace:
    """Tells fresh frames from a backlog by the rate at which they come, since the stream has no reliable time.

    The first frame after a gap is stale, and so is every further one that comes in faster than half the usual pace.
    The beginning is a gap too: servers greet with the last frame that they have.
    """

    def __init__(self) -> None:
        self._arrival_s: float | None = None
        self._intervals_s: deque[float] = deque(maxlen=9)
        self._gap_ended_s: float | None = None

    def is_fresh(self, arrival_s: float) -> bool:
        """Takes one frame, in order of arrival."""
        since_s = None if self._arrival_s is None else arrival_s - self._arrival_s
        self._arrival_s = arrival_s
        usual_s = median(self._intervals_s) if self._intervals_s else None
        gap = since_s is None or (usual_s is not None and since_s > max(GAP_S, 2 * usual_s))
        in_pace = since_s is not None and since_s >= max(FASTEST_S, 0.5 * (usual_s or 0.0))
        if gap:
            self._gap_ended_s = arrival_s
        elif self._gap_ended_s is not None and (in_pace or arrival_s - self._gap_ended_s > CATCH_UP_S):
            self._gap_ended_s = None
        if since_s is not None and in_pace:  # a backlog says nothing of the rate
            self._intervals_s.append(since_s)
        return self._gap_ended_s is None


def _load(part: Part) -> tuple[PixelsU8 | None, str | None]:
    return (None, part.damage) if part.damage is not None else decode_jpeg_bgr(part.content)
