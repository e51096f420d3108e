"""The publisher: ledgers, journal and the public sockets. One process, one loop, no call that can block for long.

A turn: read what was accepted (the ticket table) and found (results), collect what is to be answered, freeze, journal,
publish, mark as answered. Deadlines and heartbeats bound how long a turn may wait for the next message.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from inspectd.errors import JournalError, TransportError
from inspectd.journal.verdicts import Entry
from inspectd.log import get_logger
from inspectd.records import DaemonState, Decision, Reason, Verdict
from inspectd.stages.answers import Frozen, freeze, verdict_of
from inspectd.stages.audit import Audit
from inspectd.stages.condition import Condition
from inspectd.stages.events import Event, EventWatch
from inspectd.stages.evidence import EvidenceWriter
from inspectd.stages.figures import resident_bytes
from inspectd.stages.journaling import JournalWriter
from inspectd.stages.ledger import Answer, Ledger
from inspectd.stages.lifecycle import Life, Stage
from inspectd.stages.reading import JournalReader
from inspectd.stages.requests import Requests
from inspectd.stages.spill import Spill
from inspectd.stages.stations import Stations, verdict_at
from inspectd.stages.valve import Relief, Valve, give_back
from inspectd.telemetry import Metrics, MetricsServer
from inspectd.transport import wire
from inspectd.transport.endpoints import LINGER_STOP_MS, ControlSocket, VerdictSocket
from inspectd.transport.pipes import MAX_RESULT_BYTES, Commands, Inbox, stage_endpoint
from inspectd.transport.rows import unreadable
from inspectd.transport.sockets import Bell, Socket, finish_sockets, wait
from inspectd.transport.tickets import ROWS, CameraView

HEARTBEAT_NS = 200_000_000
RETURN_NS = 250_000_000
"""A publisher that replaces another one gives subscribers so long to come back (libzmq tries every 100 ms), since what
nobody hears is lost."""
BIRTH_READ_S = 1.0
"""How long a new publisher waits for what a dead one had committed; then it goes on from the ticket table alone."""
TURN_S = 0.05
LOST_RESULT_NS = 2_000_000_000
RESULTS_NS = 5_000_000
REFUSED_TOLD_NS = 1_000_000_000
DRAIN_NS = 2_200_000_000
CLOSE_S = 0.8
"""The journal's last chance: together with the drain it stays within what the supervisor waits for."""
SILENT_LIMIT_NS = 2_000_000_000


def work(life: Life) -> None:
    """The publisher's process."""
    Publisher(life).run()


class Publisher:
    """One generation of the publisher."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._charge = life.charge
        self._table = life.table
        self._session = life.table.session
        self._born_ns = time.monotonic_ns()
        settings = self._charge.settings
        self._reserve_ns = round(settings.publisher.publish_reserve_ms * 1e6)
        self._metrics = Metrics()
        self._writer = JournalWriter(
            settings.state_dir / "journal.sqlite",
            keep_days=settings.journal.keep_days,
            spill=Spill.attach(self._table.spill_name),
            on_commit=self._metrics.committed,
        )
        self._audit = Audit(self._writer, strict=settings.journal.strict_audit, reserve_ns=self._reserve_ns)
        self._evidence = EvidenceWriter(
            settings.evidence_dir, round(settings.evidence.quota_mb * 1e6), sick=lambda: not self._audit.keeps_up()
        )
        self._views = {name: self._table.camera(index) for index, name in enumerate(self._table.cameras)}
        self._stations = Stations(settings, self._charge.recipes, self._views)
        self._recipes = {name: recipe.info for name, recipe in self._charge.recipes.items()} | self._stations.recipes
        self._condition = Condition(
            self._table,
            self._views,
            {name: recipe.sha256 for name, recipe in self._recipes.items()},
            writer=self._writer,
            audit=self._audit,
            evidence=self._evidence,
        )
        self._unsent: dict[tuple[str, int], tuple[Verdict, bytes | None]] = {}
        self._readers = tuple(JournalReader(settings.state_dir / "journal.sqlite") for _ in range(2))
        self._ledgers = {name: self._new_ledger(name, view) for name, view in self._views.items()}
        recipes = self._charge.recipes.items()
        self._models = {name: each.calibration.model_sha256 for name, each in recipes if each.calibration is not None}
        """The model of each camera: the calibrated one, or the first that judged. Weights may change under a worker."""
        self._hear_again()
        self._open_sockets()
        self._worker_generation = self._table.worker_generation
        told = {name: self._table.told(index) for index, name in enumerate(self._table.cameras)}
        self._events = EventWatch(self._table.told_of_daemon, told)
        self._turned_ns = self._born_ns
        self._valve = Valve(resident_bytes())
        self._beat_due_ns = 0
        self._checked_ns = self._born_ns
        self._drain_since_ns = 0
        self._refused = self._refused_told_ns = 0
        self._requests = Requests(
            life=life,
            triggers=self._readers[0],
            reader=self._readers[1],
            bell=self._bell,
            socket=self._control,
            commands=self._commands,
            metrics=self._metrics,
            state=self._condition.state,
            find_picture=self._evidence.find,
            stations=self._stations.by_name,
        )
        self._http = self._serve_metrics()

    def run(self) -> None:
        """Turns until the daemon stops and everything accepted is answered."""
        logger = get_logger()
        self._life.settle()
        self._life.heart.limit(SILENT_LIMIT_NS)
        logger.info("publisher_started", verdicts=self._charge.settings.endpoints.verdicts)
        if self._charge.generation > 1:
            self._await_subscribers()
            self._publish_event(Event(kind=wire.EventKind.PUBLISHER_RESTARTED, camera=None, details={}))
        while not self._done():
            wait(self._sockets, self._patience_s())
            self._life.beat()
            self.turn(time.monotonic_ns())
        self._close()
        logger.info("publisher_stopped", late_results=sum(ledger.late_results for ledger in self._ledgers.values()))

    def _await_subscribers(self) -> None:
        until_ns = time.monotonic_ns() + RETURN_NS
        while (left_ns := until_ns - time.monotonic_ns()) > 0:
            wait([self._verdicts], min(TURN_S, left_ns / 1e9))
            self._life.beat()
            self._serve_subscriptions()

    def turn(self, now_ns: int) -> None:
        """One turn of the loop."""
        self._turned_ns = now_ns
        for _ in self._wakes.drain():
            pass
        self._bell.hush()
        self._commands.throw_away()
        self._take_rows()
        self._stations.look()
        self._take_late_gates()
        self._take_results()
        self._notice_lost_work(now_ns)
        self._answer_all()
        self._relieve_memory(now_ns)
        self._serve_subscriptions()
        self._requests.serve(now_ns)
        self._tell_changes(now_ns)
        self._beat_if_due(now_ns)

    def _tell_changes(self, now_ns: int) -> None:
        for event in self._events.changes(self._condition.look(), now_ns):
            self._publish_event(event)

    def _relieve_memory(self, now_ns: int) -> None:
        if not self._valve.is_due(now_ns):
            return
        resident = resident_bytes()
        relief = self._valve.look(resident, now_ns, flooded=self._verdicts.flooded)
        if relief is not None:
            get_logger().warning("peers_dropped", endpoint=relief.name.lower(), resident_mb=resident // 1_000_000)
            {Relief.CONTROL: self._control, Relief.VERDICTS: self._verdicts}[relief].reopen()
            give_back()
        if relief is Relief.VERDICTS:
            self._await_subscribers()

    def _serve_subscriptions(self) -> None:
        self._verdicts.serve_subscriptions()
        for name, view in self._views.items():
            view.preview_wanted = self._verdicts.wants_preview(name)

    # -- what was accepted and found ------------------------------------------------------------------------------

    def _new_ledger(self, name: str, view: CameraView) -> Ledger:
        """The ledger as a dead publisher left it: what may have been sent is answered, and is never sent again."""
        view.answered_through = max(view.answered_through, view.sent_through)
        for entry in self._ready_entries(name, view.answered_through):
            try:
                self._unsent[name, entry.seq] = wire.verdict_from_bytes(entry.body), entry.mask
            except TransportError as error:
                get_logger().error("verdict_unreadable", camera=name, seq=entry.seq, error=str(error))
        return Ledger(answered_through=view.answered_through, reserve_ns=self._reserve_ns)

    def _ready_entries(self, name: str, sent_through: int) -> list[Entry]:
        """Verdicts that a dead publisher had committed, or promised, and surely never sent."""
        try:
            committed = self._readers[0].read(
                lambda journal: journal.since(name, sent_through, session=self._session, limit=ROWS), BIRTH_READ_S
            )
        except JournalError as error:  # an unreadable journal is no reason to be silent (I4)
            get_logger().error("journal_unreadable", error=str(error))
            committed = []
        return committed + [entry for entry in self._audit.owed if entry.camera == name and entry.seq > sent_through]

    def _take_rows(self) -> None:
        for name, view in self._views.items():
            ledger = self._ledgers[name]
            for seq in range(ledger.accepted_through + 1, view.high_water + 1):
                row = view.row(seq) or unreadable(seq)
                ledger.accept(row)
                if unsent := self._unsent.pop((name, seq), None):
                    ledger.resolve(*unsent)
                self._stations.take(name, row)
                self._requests.row_accepted(name, row)

    def _take_late_gates(self) -> None:
        """A trigger whose frame did not come was accepted first and decided later: by its camera, in its row."""
        for name, ledger in self._ledgers.items():
            for row in list(ledger.open_rows()):
                if row.slot < 0 and (now := self._views[name].row(row.seq)) is not None and now.gate is not None:
                    ledger.fail(row.seq, now.gate)

    def _take_results(self) -> None:
        """What the worker sent, for a short time a turn: nobody who floods the socket holds up the heartbeat."""
        until_ns = time.monotonic_ns() + RESULTS_NS
        for parts in self._results.drain():
            try:
                if parts[0] == b"":
                    self._take_picture(parts)
                else:
                    self._take_result(parts)
            except (TransportError, LookupError, TypeError, ValueError) as error:  # no worker of ours wrote that
                self._refuse_result(" ".join(str(error).split())[:200])
            if time.monotonic_ns() > until_ns:
                return

    def _refuse_result(self, error: str) -> None:
        """One line a second at most: a flood must cost neither the turn its time nor the log its disk."""
        self._metrics.refused_results.inc()
        self._refused += 1
        if self._turned_ns - self._refused_told_ns >= REFUSED_TOLD_NS:
            get_logger().error("result_refused", error=error, count=self._refused)
            self._refused, self._refused_told_ns = 0, self._turned_ns

    def _take_result(self, parts: list[bytes]) -> None:
        result = wire.result_from_bytes(parts[0])
        ledger = self._ledgers[self._camera(result.camera)]
        mask_png = parts[1] if len(parts) > 1 else None
        if result.worker_generation != self._table.worker_generation or not ledger.resolve(result, mask_png):
            self._metrics.late_results.inc()

    def _take_picture(self, parts: list[bytes]) -> None:
        head, picture = wire.picture_from_parts(parts)
        name = self._camera(head.camera)
        if head.what is wire.Extra.EVIDENCE:
            self._evidence.offer(self._session, name, head.seq, picture, shed_before=head.shed)
            return
        body = wire.preview_body(self._session, name, head.seq, head.size_wh_px)
        self._verdicts.send(wire.preview_topic(name), body, picture)

    def _camera(self, index: int) -> str:
        if not 0 <= index < len(self._table.cameras):
            raise TransportError(f"camera {index}: there are {len(self._table.cameras)}")
        return self._table.cameras[index]

    def _notice_lost_work(self, now_ns: int) -> None:
        """What a dead worker held, and results that were sent but never came, become errors at once."""
        if self._table.worker_generation != self._worker_generation:
            self._worker_generation = self._table.worker_generation
            lost = sum(self._ledgers[name].give_up(Reason.WORKER_LOST) for name in self._charge.settings.cameras)
            get_logger().warning("worker_lost", answered=lost)
        if now_ns - self._checked_ns < LOST_RESULT_NS:
            return
        self._checked_ns = now_ns
        for name, ledger in self._ledgers.items():
            for row in list(ledger.open_rows()):
                if self._result_is_lost(self._views[name], row.seq, now_ns):
                    ledger.fail(row.seq, Reason.INTERNAL)

    def _result_is_lost(self, view: CameraView, seq: int, now_ns: int) -> bool:
        row = view.row(seq)
        if row is None or not row.result_publisher:
            return False
        return row.result_publisher != self._charge.generation or now_ns - row.result_ns > LOST_RESULT_NS

    # -- answers ---------------------------------------------------------------------------------------------------

    def _answer_all(self) -> None:
        """The cameras first: a station speaks of what they really said, be it late or not in the journal."""
        self._answer([name for name in self._views if name not in self._stations.by_name])
        if self._stations.by_name:
            self._beat_if_due(time.monotonic_ns())
            self._answer(self._stations.by_name)

    def _answer(self, names: Iterable[str]) -> None:
        now_ns = time.monotonic_ns()  # what came before took its time of the turn
        overdue = self._overdue_reason()
        answers: list[Answer] = []
        frozen: list[Frozen] = []
        for name in names:
            ledger, station = self._ledgers[name], self._stations.get(name)
            for found, mask_png in station.decided(now_ns) if station is not None else ():
                ledger.resolve(found, mask_png)
            for answer in ledger.collect(now_ns, overdue if station is None else Reason.CAMERA_LOST):
                answers.append(answer)
                frozen.append(self._freeze(name, answer, now_ns))
        if frozen:
            patience_ns = self._patience_to_commit_ns(answers, frozen)
            self._publish_all(answers, self._audit.commit(frozen, patience_ns, self._requests.note))

    def _patience_to_commit_ns(self, answers: list[Answer], frozen: list[Frozen]) -> int:
        pairs = zip(answers, frozen, strict=True)
        timed = [(deadline_ns, each) for answer, each in pairs if (deadline_ns := answer.row.deadline_ns)]
        dues_ns = [deadline_ns - self._reserve_ns for deadline_ns, _ in timed]
        pressed_ns = [deadline_ns for deadline_ns, each in timed if not each.is_error]  # an error may come late
        return self._audit.patience_ns([*dues_ns, *self._dues_ns()], pressed_ns, time.monotonic_ns())

    def _publish_all(self, answers: list[Answer], ready: list[Frozen]) -> None:
        """Sends what is committed, in order; what was held up beyond its deadline, as the error that it is."""
        for number, answer in enumerate(answers):
            if _is_over(answer, ready[number], time.monotonic_ns()):
                self._replace_late(answers, ready, number)
            self._publish(ready[number])

    def _replace_late(self, answers: list[Answer], ready: list[Frozen], first: int) -> None:
        """Commits anew what is late by now."""
        now_ns = time.monotonic_ns()
        late = [number for number in range(first, len(answers)) if _is_over(answers[number], ready[number], now_ns)]
        for number in late:
            answer = replace(answers[number], outcome=Reason.LATE, mask_png=None)
            ready[number] = self._freeze(ready[number].verdict.camera, answer, now_ns)
        get_logger().warning("verdicts_late", count=len(late))
        patience_ns = self._patience_to_commit_ns(answers[first:], ready[first:])
        committed = self._audit.commit([ready[number] for number in late], patience_ns, self._requests.note)
        for number, each in zip(late, committed, strict=True):
            ready[number] = each

    def _dues_ns(self) -> Iterator[int]:
        return (due for ledger in self._ledgers.values() if (due := ledger.next_due_ns()) is not None)

    def _overdue_reason(self) -> Reason:
        if self._table.worker_ready:
            return Reason.LATE
        return Reason.WORKER_LOST if self._table.accepting else Reason.NOT_READY

    def _freeze(self, name: str, answer: Answer, now_ns: int) -> Frozen:
        current = self._views[name].row(answer.row.seq) or answer.row  # a trigger's frame may have come after its row
        answer, recipe = replace(answer, row=current), self._recipes[name]
        if (station := self._stations.get(name)) is not None:
            verdict = verdict_at(station, answer, session=self._session, recipe=recipe, now_ns=now_ns)
            return freeze(verdict, answer.mask_png)
        verdict = verdict_of(
            answer,
            session=self._session,
            camera=name,
            recipe=recipe,
            now_ns=now_ns,
            model_sha256=self._models.get(name),
            fail_on=self._charge.recipes[name].decision.fail_on,
        )
        if verdict.model is not None and verdict.decision is not Decision.ERROR:
            self._models[name] = verdict.model.sha256
        return freeze(verdict, answer.mask_png)

    def _publish(self, each: Frozen) -> None:
        verdict = each.verdict
        view = self._views[verdict.camera]
        view.sent_through = verdict.seq  # before the send: never to be sent twice
        self._verdicts.send(each.topic, each.body, each.mask_png)
        view.answered_through = verdict.seq
        self._metrics.verdicts.labels(verdict.camera, verdict.decision, verdict.reason).inc()
        if verdict.latency_ms.total is not None:
            self._metrics.latency.labels(verdict.camera).observe(verdict.latency_ms.total / 1000)
        self._requests.answered(each)
        self._stations.heard(verdict, each.mask_png)
        get_logger().debug(
            "verdict_published",
            camera=verdict.camera,
            seq=verdict.seq,
            decision=verdict.decision,
            reason=verdict.reason,
        )

    def _hear_again(self) -> None:
        """What cameras had answered before this publisher came; what cannot be found is missing at the deadline."""
        for station, camera, seq in self._stations.unheard():
            found = [entry for entry in self._ready_entries(camera, seq - 1) if entry.seq == seq]
            if found and seq <= self._views[camera].answered_through:
                try:
                    station.heard(wire.verdict_from_bytes(found[-1].body), found[-1].mask)
                except TransportError as error:
                    get_logger().error("verdict_unreadable", camera=camera, seq=seq, error=str(error))

    # -- heartbeats and events --------------------------------------------------------------------------------------

    def _beat_if_due(self, now_ns: int) -> None:
        if now_ns >= self._beat_due_ns:
            self._publish_heartbeat(now_ns)

    def _publish_heartbeat(self, now_ns: int) -> None:
        self._beat_due_ns = now_ns + HEARTBEAT_NS
        self._verdicts.send(wire.HEARTBEAT_TOPIC, self._condition.heartbeat(now_ns))

    def _publish_event(self, event: Event) -> None:
        body = wire.event_body(self._session, event.kind, event.camera, time.time_ns(), **event.details)
        self._verdicts.send(wire.event_topic(event.kind), body)
        get_logger().info(event.kind.value, camera=event.camera, **event.details)

    # -- life ---------------------------------------------------------------------------------------------------------

    def _open_sockets(self) -> None:
        settings, generation = self._charge.settings, self._charge.generation

        def mine(what: str) -> str:
            return stage_endpoint(settings.sockets_dir, Stage.PUBLISHER, generation, what)

        self._results = Inbox(mine("results"), max_bytes=MAX_RESULT_BYTES)
        self._wakes = Inbox(mine("wake"))
        self._commands = Commands(mine("commands"))
        self._verdicts = VerdictSocket(settings.endpoints.verdicts, wire.topics(self._views), self._life.beat)
        self._control = ControlSocket(settings.endpoints.control, self._life.beat)
        self._bell = Bell()
        internal = self._results, self._wakes, self._commands, self._bell
        self._sockets: list[Socket | Bell] = [*internal, self._verdicts, self._control]

    def _serve_metrics(self) -> MetricsServer | None:
        address = self._charge.settings.endpoints.metrics
        self._metrics.watch(self._condition.samples)
        if not address:
            return None
        try:
            return MetricsServer(
                address,
                self._metrics.registry,
                alive=lambda: time.monotonic_ns() - self._turned_ns < 1_000_000_000,
                ready=lambda: self._condition.state() is DaemonState.READY,
            )
        except OSError as error:  # metrics are no reason to stop inspecting
            get_logger().error("metrics_unavailable", endpoint=address, error=str(error))
            return None

    def _patience_s(self) -> float:
        """How long the next turn may wait: until a heartbeat or a verdict falls due."""
        dues_ns = (*self._dues_ns(), *self._stations.wakes_ns())
        until_ns = min([self._beat_due_ns, *dues_ns]) - time.monotonic_ns()
        return min(TURN_S, max(0.0, until_ns / 1e9))

    def _done(self) -> bool:
        """Whether the daemon stops and nothing is left to answer; what is not done in time is answered as an error."""
        if not self._life.stopping:
            return False
        now_ns = time.monotonic_ns()
        self._drain_since_ns = self._drain_since_ns or now_ns
        if now_ns - self._drain_since_ns > DRAIN_NS:
            for ledger in self._ledgers.values():
                ledger.give_up(Reason.INTERNAL)
            self.turn(now_ns)
        return all(view.high_water == view.answered_through for view in self._views.values())

    def _close(self) -> None:
        """The last heartbeat says `stopping`; then subscribers have a second to take what is queued."""
        self._tell_changes(time.monotonic_ns())  # the end of a camera may have come with the order to stop
        self._publish_heartbeat(time.monotonic_ns())
        for socket in (self._verdicts, self._control):
            socket.close(LINGER_STOP_MS)
        if self._http is not None:
            self._http.close()
        self._writer.close(CLOSE_S)
        for reader in self._readers:
            reader.close()
        for internal in (self._results, self._wakes, self._commands):
            internal.close()
        finish_sockets()
        with contextlib.suppress(OSError):
            self._life.beat()


def _is_over(answer: Answer, each: Frozen, now_ns: int) -> bool:
    """Whether it is too late to say anything but that it is late."""
    return 0 < answer.row.deadline_ns < now_ns and not each.is_error
