"""Pictures for the evidence, made in the worker: which frames, and the thread that encodes them after their verdict.

The pixels are here alone: a frame's slot in the ring is free again as soon as its crops are taken out of it. The thread
has the lowest priority that a thread can have and takes what it is offered only where it has room, so that no verdict
waits for a picture.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from queue import Full, Queue

from inspectd.images import encode_jpeg, encode_png
from inspectd.inspection import Crops
from inspectd.log import get_logger
from inspectd.records import Decision, Inspection
from inspectd.settings import Evidence
from inspectd.stages.preview import picture_bgr
from inspectd.transport.pipes import Outbox
from inspectd.transport.wire import Extra, PictureHead, picture_parts

JPEG_QUALITY = 90
LOWEST_PRIORITY = 19
WAITING = 8
"""Pictures that may wait to be encoded, and again to be sent: some ten MB each where frames are large."""


class Picks:
    """Which frames leave a picture. Pure."""

    def __init__(self, settings: Evidence) -> None:
        self._decisions = settings.decisions if settings.quota_mb else ()
        self._every_nth_pass = settings.every_nth_pass if settings.quota_mb else None
        self._passes: Counter[int] = Counter()

    def picks(self, camera: int, decision: Decision) -> bool:
        """Whether a frame with this decision leaves one; counts the passes of each camera."""
        if decision in self._decisions:
            return True
        if decision is not Decision.PASS or self._every_nth_pass is None:
            return False
        self._passes[camera] += 1
        return self._passes[camera] % self._every_nth_pass == 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exposure:
    """A frame whose verdict has gone out; `decision` is what that will be."""

    camera: int
    seq: int
    decision: Decision
    crops: Crops
    inspection: Inspection
    pixel_threshold: float


class Pictures:
    """The worker's side of the evidence. `offer` and `forward` are for its loop and never wait."""

    def __init__(self, settings: Evidence) -> None:
        self.wants_maps = settings.heatmap and settings.quota_mb > 0
        self._settings = settings
        self._picks = Picks(settings)
        self._offered: Queue[Exposure] = Queue(WAITING)
        self._made: deque[tuple[PictureHead, bytes]] = deque()
        self._shed = 0
        if settings.quota_mb:
            threading.Thread(target=self._run, name="pictures", daemon=True).start()

    def offer(self, exposure: Exposure) -> None:
        """Takes a frame, if it is to leave a picture and there is room."""
        if not self._picks.picks(exposure.camera, exposure.decision):
            return
        try:
            self._offered.put_nowait(exposure)
        except Full:
            self._shed += 1

    def forward(self, results: Outbox) -> None:
        """Sends what is encoded; a picture that finds no room is dropped, and the next one tells how many were."""
        while self._made:
            head, picture = self._made.popleft()
            shed, self._shed = self._shed, 0
            if results.send(picture_parts(replace(head, shed=shed), picture)) is None:
                self._shed += shed + 1

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while True:
            exposure = self._offered.get()
            try:
                picture = self._encode(exposure)
            except ValueError as error:
                get_logger().error("picture_unencodable", seq=exposure.seq, error=str(error))
                continue
            head = PictureHead(what=Extra.EVIDENCE, camera=exposure.camera, seq=exposure.seq)
            self._made.append((head, picture))

    def _encode(self, exposure: Exposure) -> bytes:
        bgr = picture_bgr(exposure.crops, exposure.inspection, exposure.pixel_threshold)
        return encode_png(bgr) if self._settings.format == "png" else encode_jpeg(bgr, quality=JPEG_QUALITY)
