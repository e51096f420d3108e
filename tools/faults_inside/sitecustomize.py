"""The saboteur inside: loaded by every process of a daemon that tools/faults.py starts, before anything of inspectd.

The product holds no code for faults. This wraps a few of its functions as their modules are imported, and does harm
only by order: a file in the folder FAULTS_ORDERS, taken away when it is obeyed (or obeyed while it lies there). With
FAULTS_BUG it seeds one of the bugs that the harness must find.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ORDERS = Path(os.environ.get("FAULTS_ORDERS", "/nonexistent"))
BUGS = os.environ.get("FAULTS_BUG", "").split(",")
BUG_EVERY = 12
"""A seeded bug that is not bound to a fault happens to every so manieth verdict."""


def taken(name: str) -> str | None:
    """An order's text, once; None where there is no such order."""
    try:
        text = (ORDERS / name).read_text()
        (ORDERS / name).unlink()
    except FileNotFoundError:
        return None
    return text


def standing(name: str) -> str | None:
    """An order's text as long as it lies there."""
    try:
        return (ORDERS / name).read_text()
    except FileNotFoundError:
        return None


def wrap(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, around(getattr(owner, name)))


def me() -> str:
    """The name of this process: `worker`, `publisher`, `capture-CAMERA`."""
    from multiprocessing import current_process  # noqa: PLC0415 - not before it is needed

    return current_process().name


def die_at(step: str) -> None:
    """SIGKILL between two steps of acceptance, at the one that the order names."""
    name = f"die-{me()}"
    if standing(name) == step and taken(name) is not None:
        os.kill(os.getpid(), signal.SIGKILL)


# -- acceptance: ring, row, high water, wake-ups -----------------------------------------------------------------------


def tickets(module: ModuleType) -> None:
    def around(accept: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, row, after_step=die_at: accept(self, row, after_step)

    wrap(module.CameraView, "accept", around)


def ring(module: ModuleType) -> None:
    def around_write(write: Callable[..., Any]) -> Callable[..., Any]:
        def spied(self: Any, slot: int, pixels_bgr: Any, seq: int) -> Any:
            if spells_bad(pixels_bgr) is False:
                good_parts[:] = [pixels_bgr]
            overrun(self, write)
            return write(self, slot, pixels_bgr, seq, lambda step: die_at(f"ring.{step}"))

        return spied

    def around_view(view: Callable[..., Any]) -> Callable[..., Any]:
        def slow(self: Any, slot: int, *where: int) -> Any:
            pixels = view(self, slot, *where)
            if pixels is not None:
                stand_still(self, slot, pixels)
            return pixels

        return slow

    true_still = module.Ring.still
    wrap(module.Ring, "write", around_write)
    wrap(module.Ring, "view", around_view)
    if "no_second_check" in BUGS:

        def first_check_only(self: Any, slot: int, generation: int) -> bool:
            caller = sys._getframe(1).f_code.co_name  # noqa: SLF001
            return caller not in ("view", "read") or bool(true_still(self, slot, generation))

        module.Ring.still = first_check_only


def stand_still(ring_: Any, slot: int, pixels_bgr: Any) -> None:
    """The reader stops in the middle of its copy, if the part that it looks at is bad; it says where."""
    if standing("stop-reading") is None or spells_bad(pixels_bgr) is not True or taken("stop-reading") is None:
        return
    (ORDERS / ".stopped").write_text(f"{ring_._segment.name} {slot}")  # noqa: SLF001
    (ORDERS / ".stopped").rename(ORDERS / "stopped")
    os.kill(os.getpid(), signal.SIGSTOP)


good_parts: list[Any] = []
"""The last good part that this capture wrote."""


def overrun(ring_: Any, write: Callable[..., Any]) -> None:
    """The writer puts a good part into the slot that the stopped reader looks at."""
    order = standing("overrun")
    if order is None or not good_parts:
        return
    name, slot = order.split()
    if name == ring_._segment.name and taken("overrun") is not None:  # noqa: SLF001
        write(ring_, int(slot), good_parts[0], 0)


def spells_bad(picture_bgr: Any) -> bool | None:
    """Whether the picture's blocks (see faults_clip.py) call its part bad; None where there are none."""
    block, bit = 16, 14
    if picture_bgr.shape[:2] != (272, 240):
        return None
    row, column = divmod(bit, 15)
    centre = picture_bgr[row * block + 4 : row * block + 12, column * block + 4 : column * block + 12]
    return bool(centre.mean() > 127)


def pipes(module: ModuleType) -> None:
    def around(send: Callable[..., Any]) -> Callable[..., Any]:
        def spied(self: Any, parts: Any) -> Any:
            die_at("wake")
            return send(self, parts)

        return spied

    wrap(module.Outbox, "send", around)


def endpoints(module: ModuleType) -> None:
    if "double_publish" not in BUGS:
        return

    def twice(send: Callable[..., Any]) -> Callable[..., Any]:
        def sent(self: Any, topic: bytes, *parts: Any) -> None:
            send(self, topic, *parts)
            if topic.startswith(b"verdict/") and every_now_and_then():
                send(self, topic, *parts)

        return sent

    wrap(module.VerdictSocket, "send", twice)


# -- the model ---------------------------------------------------------------------------------------------------------


def clip(module: ModuleType) -> None:
    def around(encode: Callable[..., Any]) -> Callable[..., Any]:
        def sabotaged(self: Any, tokens: Any, *rest: Any) -> Any:
            import torch  # noqa: PLC0415 - the worker has it

            if (seconds := standing("crawl")) is not None:
                time.sleep(float(seconds))
            if (frames := standing("memory")) is not None and len(tokens) >= int(frames):
                raise torch.OutOfMemoryError("CUDA out of memory (by order of tools/faults.py)")
            outputs, before = encode(self, tokens, *rest)
            if standing("nan") is not None:
                outputs = [output * torch.nan for output in outputs]
            return outputs, before

        return sabotaged

    wrap(module.VisionTower, "encode", around)


def inspection(module: ModuleType) -> None:
    """The classical bug: a comparison with NaN is false, so nothing was found."""
    if "nan_is_pass" not in BUGS:
        return

    def around(init: Callable[..., Any]) -> Callable[..., Any]:
        def blind(self: Any, *, scores: Any, **rest: Any) -> None:
            init(self, scores=tuple(0.0 if math.isnan(score) else score for score in scores), **rest)

        return blind

    wrap(module.Measurement, "__init__", around)
    module.Measurement.finite = True


# -- the ledger --------------------------------------------------------------------------------------------------------


def ledger(module: ModuleType) -> None:
    if "dropped_ticket" not in BUGS:
        return

    def around(collect: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *now: [answer for answer in collect(*now) if not every_now_and_then()]

    wrap(module.Ledger, "collect", around)


_counted = 0


def every_now_and_then() -> bool:
    global _counted  # noqa: PLW0603 - one counter a process
    _counted += 1
    return _counted % BUG_EVERY == 0


# -- getting in --------------------------------------------------------------------------------------------------------

WRAPPED = {
    "inspectd.transport.tickets": tickets,
    "inspectd.transport.ring": ring,
    "inspectd.transport.pipes": pipes,
    "inspectd.transport.endpoints": endpoints,
    "inspectd.detect.clip": clip,
    "inspectd.inspection": inspection,
    "inspectd.stages.ledger": ledger,
}


class Finder:
    """Finds what is to be wrapped as everybody else would, and wraps it when it has been loaded."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        harm = WRAPPED.pop(name, None)
        if harm is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            harm(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


if "FAULTS_ORDERS" in os.environ:
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
