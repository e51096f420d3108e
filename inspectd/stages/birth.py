"""The first moments of a child: it can load what it needs at low priority, so that nobody else has to wait for that.

Loading takes a core for a second, which the worker may want just then. A process that has made itself nice cannot take
it back without privileges; a thread of it can end. Imports nothing heavy itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from importlib import import_module
from typing import Any

from inspectd.stderr import guard_stderr

LOADING_NICENESS = 10


def born(packed: bytes, module: str, *, nicely: bool) -> None:
    """Does what a pickled `(function, *arguments)` says, once it and a module are loaded."""
    guard_stderr()
    if nicely:
        loader = threading.Thread(target=_load, args=(packed, module), name="loader")
        loader.start()
        loader.join()
    function, *arguments = pickle.loads(packed)  # noqa: S301 - from the parent; what failed in the thread is raised here
    function(*arguments)


def _load(packed: bytes, module: str) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + LOADING_NICENESS)
    with contextlib.suppress(Exception):  # it is loaded again, and fails again, where somebody can tell
        unpacked: tuple[Any, ...] = pickle.loads(packed)  # noqa: S301 - from the parent
        del unpacked
        import_module(module)
