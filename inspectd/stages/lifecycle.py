"""What every child process does the same way: die with its parent, note signals, beat its heart, exit with a reason."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from inspectd.errors import ConfigError, EndpointHeld, ExitCode, InspectdError
from inspectd.log import configure_log, get_logger
from inspectd.recipe import Recipe
from inspectd.settings import Settings
from inspectd.transport.tickets import Table

if TYPE_CHECKING:
    from inspectd.transport.tickets import ChildView

PR_SET_PDEATHSIG = 1


class Stage(StrEnum):
    """The kinds of children."""

    PUBLISHER = "publisher"
    WORKER = "worker"
    CAPTURE = "capture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a child is told at birth."""

    parent_pid: int
    table_name: str
    child_index: int
    generation: int
    settings: Settings
    recipes: dict[str, Recipe]
    """By camera name."""
    camera: str = ""
    """Whose capture this is; empty for the other stages."""


class Life:
    """A child's own view of its life: when it was told to stop, and its heart.

    Attributes:
        stopping: set by SIGTERM or by the daemon's stopping flag; the loop reads it.
    """

    def __init__(self, charge: Charge, table: Table) -> None:
        self.charge = charge
        self.table = table
        self.heart: ChildView = table.child(charge.child_index)
        self._told = False
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @property
    def stopping(self) -> bool:
        """Whether this child was told to end."""
        return self._told

    def beat(self) -> None:
        """One heartbeat, from the work loop and nowhere else."""
        self.heart.beat(time.monotonic_ns())

    def settle(self) -> None:
        """All is loaded: from now on the garbage collector looks at what comes and goes, and its pauses are short."""
        gc.collect()
        gc.freeze()

    def _note(self, *_: object) -> None:
        self._told = True


Work = Callable[[Life], None]
"""What a stage does with its life."""


def stage_work(stage: Stage) -> Work:
    """What a stage does. Imported here, so that no process carries what only another one needs (torch, codecs)."""
    match stage:
        case Stage.CAPTURE:
            from inspectd.stages.capture import work
        case Stage.WORKER:
            from inspectd.stages.worker import work
        case Stage.PUBLISHER:
            from inspectd.stages.publisher import work
    return work


def live(charge: Charge, stage: Stage, work_of: Callable[[Stage], Work] = stage_work) -> None:
    """The whole life of a child: does its work and turns how it ends into an exit code and one line of log.

    This is the target of `multiprocessing.Process`; it never returns normally. `work_of` is for benchmarks, which put
    cameras and a detector of their own into the real stages.
    """
    _die_with(charge.parent_pid)
    bound = {"stage": stage.value} | ({"camera": charge.camera} if charge.camera else {})
    configure_log(charge.settings.log.level, charge.settings.log.format, **bound)
    logger = get_logger()
    try:
        work = work_of(stage)
        table = Table.attach(charge.table_name)
        life = Life(charge, table)
        life.beat()
        work(life)
    except ConfigError as error:
        _say(str(error))
        os._exit(ExitCode.CONFIG)
    except EndpointHeld as error:
        _say(str(error))
        os._exit(ExitCode.ENDPOINT_HELD)
    except InspectdError as error:
        logger.error("stage_failed", error=str(error))  # noqa: TRY400 - an expected failure is one line
        os._exit(ExitCode.FAILED)
    except Exception:
        logger.exception("stage_crashed")
        os._exit(ExitCode.FAILED)
    logger.debug("stage_ended")
    sys.stderr.flush()
    os._exit(ExitCode.DONE)


def _say(line: str) -> None:
    """One line for a person, on standard error."""
    sys.stderr.write(f"inspectd: {line}\n")
    sys.stderr.flush()


def _die_with(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent's spawning thread ends, then makes sure that it has not already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        structlog.get_logger().warning("parent_death_signal_refused", errno=ctypes.get_errno())
    if os.getppid() != parent_pid:
        os._exit(ExitCode.FAILED)
