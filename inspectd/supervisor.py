"""The supervisor: the parent of all. It owns the shared memory; it spawns, watches, replaces and ends the children.

Signals are only noted; the loop acts. A child that is dead, or silent beyond its limit, is killed and replaced with
back-off, as a new generation with sockets of its own. A wrong configuration (exit 3) is never retried.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from inspectd.errors import ConfigError, ExitCode, JournalError
from inspectd.inspection import inspection_error
from inspectd.log import configure_log, get_logger
from inspectd.recipe import Recipe, load_recipe
from inspectd.records import CameraState
from inspectd.settings import Settings
from inspectd.sources.open import probe
from inspectd.sources.presence import presence_error
from inspectd.stages.birth import born
from inspectd.stages.lifecycle import Charge, Stage, live
from inspectd.stages.notify import Notifier
from inspectd.stages.restarts import Restarts
from inspectd.stages.spill import Spill
from inspectd.stages.state import StateLock, answer_left_rows, new_session, open_journal, segment_prefix
from inspectd.stages.station_rules import stations_error
from inspectd.transport.memory import require_capacity, sweep
from inspectd.transport.pipes import require_short_paths, sweep_stage_endpoints
from inspectd.transport.ring import Ring
from inspectd.transport.tickets import CameraView, Table

LOOK_S = 0.05
"""How often heartbeats and signals are looked at; a death is noticed at once."""
SPAWN_LIMIT_NS = 120_000_000_000
STOP_PATIENCE_S = {Stage.CAPTURE: 0.6, Stage.PUBLISHER: 3.3, Stage.WORKER: 0.2}
"""In this order: nothing more is accepted, what was is answered, then nobody needs the model."""
STOP_JOURNAL_S = 0.4
"""What the journal may still take then. All of it together stays below the five seconds of contract §6."""
DEATH_S = 0.1
"""SIGKILL ends a process sooner, unless a hung device holds it in the kernel: such a one is left behind."""
UNDEAD_S = 1.0
"""One that is still there so long after its SIGKILL is replaced: it never runs code of ours again."""
MOST_UNDEAD = 3
"""So many of one place may hang in the kernel; the next is started when one of them has gone."""


@dataclass(slots=True)
class _Child:
    """One place in the daemon, filled by one process at a time."""

    index: int
    stage: Stage
    camera: str
    process: SpawnProcess | None = None
    generation: int = 0
    killed_s: float | None = None
    undead: list[SpawnProcess] = field(default_factory=list)
    restarts: Restarts = field(default_factory=Restarts)
    retry_s: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.camera}" if self.camera else str(self.stage)

    @property
    def may_be_born(self) -> bool:
        """Whether its time has come, and not too many before it hang in the kernel."""
        self.undead = [process for process in self.undead if process.exitcode is None]
        return time.monotonic() >= self.retry_s and len(self.undead) < MOST_UNDEAD


class Supervisor:
    """One daemon, from start to end.

    Args:
        settings: the whole configuration.
        exit_at_end: stop when every camera has ended and is answered.
        child: what each child process runs; must be picklable.
    """

    def __init__(
        self, settings: Settings, *, exit_at_end: bool = False, child: Callable[[Charge, Stage], None] = live
    ) -> None:
        self._settings = settings
        self._child = child
        self._exit_at_end = exit_at_end
        self._signalled = False
        self._exit_code = ExitCode.DONE
        self._context = multiprocessing.get_context("spawn")
        self._notifier = Notifier()
        self._recipes: dict[str, Recipe] = {}
        self._children: list[_Child] = []
        self._table: Table
        self._was_ready = False
        self._undead: list[SpawnProcess] = []

    def run(self) -> ExitCode:
        """Runs the daemon until it is told to stop, or cannot go on.

        Raises:
            ConfigError: the configuration is wrong, or another daemon lives on the same state folder.
            TransportError: shared memory cannot be had.
            JournalError: the journal cannot be written.
        """
        self._recipes = {name: load_recipe(self._settings.recipe_path(name)) for name in self._settings.cameras}
        if (error := stations_error(self._settings, self._recipes)) is not None:
            raise ConfigError(error)
        slot_bytes = self._slot_bytes()
        with ExitStack() as stack:
            stack.enter_context(StateLock(self._settings.state_dir))
            require_short_paths(self._settings.sockets_dir)
            configure_log(self._settings.log.level, self._settings.log.format, stage="supervisor")
            self._note_signals(stack)
            prefix = segment_prefix(self._settings.state_dir)
            open_journal(self._settings.state_dir)
            sweep(prefix)
            stack.callback(self._sweep_answered, prefix)
            self._create_shared_memory(prefix, slot_bytes)
            self._prepare_sockets_dir()
            self._make_children()
            try:
                self._watch()
            finally:
                self._stop_all()
        get_logger().info("daemon_stopped", exit_code=int(self._exit_code))
        if any(process.exitcode is None for process in self._undead):
            sys.stderr.flush()
            os._exit(self._exit_code)  # multiprocessing would wait for them for ever
        return self._exit_code

    # -- start ------------------------------------------------------------------------------------------------------

    def _slot_bytes(self) -> dict[str, int]:
        """The largest frame of each camera, in bytes. Missing recordings, regions beyond the frame are found here."""
        sizes = {}
        for name, camera in self._settings.cameras.items():
            width, height = probe(camera.source).size_wh_px
            recipe, size = self._recipes[name], (width, height)
            error = inspection_error(recipe, size) or presence_error(self._settings, name, recipe, size)
            if error is not None:
                raise ConfigError(error)
            sizes[name] = width * height * 3
        return sizes

    def _create_shared_memory(self, prefix: str, slot_bytes: dict[str, int]) -> None:
        session = new_session()
        names, stations = tuple(self._settings.cameras), tuple(self._settings.stations)
        spill_bytes = round(self._settings.journal.spill_mb * 1e6)
        require_capacity(sum(self._settings.cameras[name].slots * slot_bytes[name] for name in names), spill_bytes)
        children = ["publisher", "worker", *(f"capture-{name}" for name in names)]
        self._table = Table.create(
            f"{prefix}{session[-8:]}-table",
            session=session,
            cameras=(*names, *stations),
            children=children,
            started_ns=time.monotonic_ns(),
        )
        Spill.create(self._table.spill_name, spill_bytes).close()
        for index, name in enumerate(names):
            Ring.create(
                self._table.ring_name(index), slots=self._settings.cameras[name].slots, slot_bytes=slot_bytes[name]
            ).close()
        get_logger().info("daemon_started", session=session, pid=os.getpid(), cameras=list(names))

    def _prepare_sockets_dir(self) -> None:
        folder = self._settings.sockets_dir
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep_stage_endpoints(folder)
        except OSError as error:
            raise ConfigError(f"runtime_dir {folder}: {error.strerror or error}") from error

    def _make_children(self) -> None:
        places = [(Stage.PUBLISHER, ""), (Stage.WORKER, "")]
        places += [(Stage.CAPTURE, name) for name in self._settings.cameras]
        self._children = [_Child(index, stage, camera) for index, (stage, camera) in enumerate(places)]
        for child in self._children:
            self._spawn(child)

    def _spawn(self, child: _Child) -> None:
        child.generation += 1
        if child.stage is Stage.PUBLISHER:
            self._table.publisher_generation = child.generation
        elif child.stage is Stage.WORKER:
            self._table.worker_generation = child.generation
        row = self._table.child(child.index)
        row.limit(SPAWN_LIMIT_NS)
        row.beat(time.monotonic_ns())
        charge = Charge(
            parent_pid=os.getpid(),
            table_name=self._table.name,
            child_index=child.index,
            generation=child.generation,
            settings=self._settings,
            recipes=self._recipes,
            camera=child.camera,
        )
        packed = pickle.dumps((self._child, charge, child.stage))
        module = f"inspectd.stages.{child.stage}"
        nicely = child.stage is Stage.CAPTURE and child.generation > 1  # the other cameras are at work
        child.process = self._context.Process(
            target=born, args=(packed, module), kwargs={"nicely": nicely}, name=child.name
        )
        child.process.start()
        child.killed_s = None
        row.born(child.process.pid or 0, child.generation)
        get_logger().debug("child_spawned", child=child.name, pid=child.process.pid, generation=child.generation)

    # -- watch ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._signalled and self._exit_code is ExitCode.DONE:
            for child in self._children:
                self._look_after(child)
            self._open_when_ready()
            self._tell_progress()
            if self._exit_at_end and self._all_ended():
                return
            wait([child.process.sentinel for child in self._children if child.process is not None], LOOK_S)

    def _look_after(self, child: _Child) -> None:
        if child.process is None:
            if child.may_be_born:
                self._spawn(child)
            return
        code = child.process.exitcode
        if code is not None:
            self._bury(child, code)
        elif child.killed_s is None and self._is_silent(child):
            child.killed_s = time.monotonic()
            get_logger().warning("child_silent", child=child.name, pid=child.process.pid)
            child.process.kill()  # and the next look buries it
        elif child.killed_s is not None and time.monotonic() - child.killed_s > UNDEAD_S:
            self._leave(child, child.process)

    def _leave(self, child: _Child, process: SpawnProcess) -> None:
        """Gives up waiting for a process that a hung disk or device holds in the kernel, its SIGKILL pending."""
        get_logger().error("child_hangs_in_the_kernel", child=child.name, pid=process.pid)
        child.undead.append(process)
        if child.stage is Stage.CAPTURE:
            self._view(child.camera).state = CameraState.LOST
        self._bury(child, -signal.SIGKILL)

    def _is_silent(self, child: _Child) -> bool:
        row = self._table.child(child.index)
        return time.monotonic_ns() - row.beat_ns > row.beat_limit_ns

    def _bury(self, child: _Child, code: int) -> None:
        """Decides what the death of a child means: the end of the daemon, or a new generation, now or later."""
        child.process = None
        if code == ExitCode.CONFIG and child.stage is Stage.CAPTURE and self._was_ready:
            get_logger().error("camera_given_up", camera=child.camera)  # the other cameras go on
            self._view(child.camera).state = CameraState.LOST
            child.retry_s = math.inf
            return
        final = code == ExitCode.CONFIG and not self._was_ready  # what was right once may be so again: a busy machine
        if final or code == ExitCode.ENDPOINT_HELD:
            self._exit_code = ExitCode(code)
            return
        now_s = time.monotonic()
        pause_s = child.restarts.pause_s(now_s)
        child.retry_s = now_s + pause_s
        get_logger().warning("child_died", child=child.name, exit_code=code, retry_in_s=pause_s)
        if child.stage is Stage.WORKER:  # what it held is lost: the publisher answers it now, not at the next spawn
            self._table.worker_generation = child.generation + 1
        if child.stage is Stage.CAPTURE:
            self._note_blind(self._view(child.camera), for_long=child.restarts.many)

    def _note_blind(self, view: CameraView, *, for_long: bool) -> None:
        """A camera without a capture is not ready, whatever that one had said."""
        if for_long:
            view.state = CameraState.LOST
        elif view.state is CameraState.READY:
            view.state = CameraState.STARTING

    def _open_when_ready(self) -> None:
        """Lets cameras accept once the model is warm and somebody can answer; then whatever happens is answered."""
        settled = all(view.state is not CameraState.STARTING for view in self._views())
        if self._was_ready or not (self._table.worker_ready and self._publisher_has_begun() and settled):
            return
        self._was_ready = True
        self._table.accepting = True
        self._notifier.ready(self._status())
        get_logger().info("daemon_ready")

    def _publisher_has_begun(self) -> bool:
        """Whether it has its endpoints: from then on it may be silent for no longer than at its work."""
        publishers = (child.index for child in self._children if child.stage is Stage.PUBLISHER)
        return all(self._table.child(index).beat_limit_ns < SPAWN_LIMIT_NS for index in publishers)

    def _tell_progress(self) -> None:
        self._notifier.watchdog()
        if self._was_ready:
            self._notifier.status(self._status())

    def _status(self) -> str:
        """One line for `systemctl status`."""
        views = [self._view(name) for name in self._settings.cameras]
        lost = sum(view.state is CameraState.LOST for view in views)
        state = "ready" if self._table.worker_ready and not lost else "degraded"
        return f"{state}: {len(views)} cameras, {lost} lost, {sum(view.answered_through for view in views)} verdicts"

    def _all_ended(self) -> bool:
        return all(
            view.state is CameraState.ENDED and view.answered_through == view.high_water for view in self._views()
        )

    def _view(self, camera: str) -> CameraView:
        return self._table.camera(self._table.cameras.index(camera))

    def _views(self) -> Iterator[CameraView]:
        return map(self._view, self._table.cameras)

    # -- stop -------------------------------------------------------------------------------------------------------

    def _note_signals(self, stack: ExitStack) -> None:
        def note(*_: object) -> None:
            self._signalled = True

        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, note))

    def _stop_all(self) -> None:
        """Drains: captures first, so that nothing more is accepted, then the publisher, then the worker."""
        self._notifier.stopping()
        self._table.stopping = True
        for stage, patience_s in STOP_PATIENCE_S.items():
            self._stop([child for child in self._children if child.stage is stage], patience_s)
        self._table.close()

    def _stop(self, children: list[_Child], patience_s: float) -> None:
        alive = [child.process for child in children if child.process is not None]
        for process in alive:
            process.terminate()
        until_s = time.monotonic() + patience_s
        for process in alive:
            process.join(max(0.0, until_s - time.monotonic()))
            if process.exitcode is None:
                get_logger().warning("child_killed", child=process.name, pid=process.pid)
                process.kill()
                process.join(DEATH_S)
        self._undead += [process for process in alive if process.exitcode is None]
        self._undead += [process for child in children for process in child.undead]

    def _sweep_answered(self, prefix: str) -> None:
        """Takes the shared memory away, but never with rows that nobody has answered: a publisher may have died too."""
        try:
            answer_left_rows(self._settings.state_dir, limit_s=STOP_JOURNAL_S)
        except JournalError as error:
            get_logger().error("rows_left_for_the_next_start", error=str(error))
            return
        sweep(prefix)


def run_daemon(settings: Settings, *, exit_at_end: bool = False) -> ExitCode:
    """Runs the daemon in this process and its children; returns its exit code."""
    return Supervisor(settings, exit_at_end=exit_at_end).run()
