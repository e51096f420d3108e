"""How the daemon is, as the table, the journal and the evidence show it: for heartbeats, events and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inspectd.records import CameraState, DaemonState
from inspectd.stages.audit import Audit
from inspectd.stages.events import CameraLook, Look
from inspectd.stages.evidence import EvidenceWriter
from inspectd.stages.journaling import JournalWriter
from inspectd.telemetry import Sample
from inspectd.transport.tickets import CameraView, Table
from inspectd.transport.wire import CameraBeat, heartbeat_body


class Condition:
    """Reads; changes nothing.

    Args:
        views: every camera.
        recipe_sha256: of each camera's recipe.
    """

    def __init__(
        self,
        table: Table,
        views: Mapping[str, CameraView],
        recipe_sha256: Mapping[str, str],
        *,
        writer: JournalWriter,
        audit: Audit,
        evidence: EvidenceWriter,
    ) -> None:
        self._table, self._views, self._recipe_sha256 = table, views, recipe_sha256
        self._writer, self._audit, self._evidence = writer, audit, evidence

    def state(self) -> DaemonState:
        """The daemon as a whole."""
        if self._table.stopping:
            return DaemonState.STOPPING
        if not self._table.accepting:
            return DaemonState.STARTING
        lost = any(view.state is CameraState.LOST for view in self._views.values())
        sound = self._table.worker_ready and self._audit.keeps_up() and not lost
        return DaemonState.READY if sound else DaemonState.DEGRADED

    def heartbeat(self, now_ns: int) -> bytes:
        """The body of a heartbeat."""
        cameras = {
            name: CameraBeat(
                state=CameraState.PAUSED if view.paused else view.state,
                last_seq=view.answered_through,
                recipe_sha256=self._recipe_sha256[name],
            )
            for name, view in self._views.items()
        }
        uptime_s = (now_ns - self._table.started_ns) / 1e9
        return heartbeat_body(self._table.session, self.state(), uptime_s, cameras)

    def look(self) -> Look:
        """What events are made of."""
        return Look(
            worker_generation=self._table.worker_generation,
            journal_healthy=self._audit.keeps_up(),
            cameras=tuple(
                CameraLook(
                    name=name,
                    state=view.state,
                    accepted_through=view.high_water,
                    answered_through=view.answered_through,
                    frames_skipped=view.frames_skipped,
                    frames_damaged=view.frames_damaged,
                    capture_generation=view.capture_generation,
                )
                for name, view in self._views.items()
            ),
        )

    def samples(self) -> Mapping[str, Iterable[Sample]]:
        """What is read at scrape time."""
        views = self._views.items()
        return {
            "inspectd_frames_read": [((name,), view.frames_read) for name, view in views],
            "inspectd_frames_skipped": [((name,), view.frames_skipped) for name, view in views],
            "inspectd_frames_damaged": [((name,), view.frames_damaged) for name, view in views],
            "inspectd_frames_waiting": [((name,), view.high_water - view.answered_through) for name, view in views],
            "inspectd_camera_up": [((name,), float(view.state is CameraState.READY)) for name, view in views],
            "inspectd_last_seq": [((name,), view.answered_through) for name, view in views],
            "inspectd_messages_dropped": [
                sample
                for name, view in views
                for sample in (((name, "wake-up"), view.wakeups_dropped), ((name, "result"), view.results_dropped))
            ],
            "inspectd_restarts": [((child.name,), child.restarts) for child in self._table.children()],
            "inspectd_evidence_pictures": [
                (("written",), self._evidence.written),
                (("shed",), self._evidence.shed),
            ],
            "inspectd_evidence_bytes": [((), self._evidence.used_bytes)],
            "inspectd_unjournaled_verdicts": [((), self._audit.unjournaled)],
            "inspectd_journal_backlog": [((), self._writer.backlog)],
            "inspectd_journal_given_up": [
                (("verdict",), self._writer.lost),
                (("mask",), self._writer.masks_dropped),
                (("note",), self._writer.unnoted),
            ],
            "inspectd_ready": [((), float(self.state() is DaemonState.READY))],
        }
