"""Loaded by every process of a daemon that a test starts with `broken_model`: the model fails while a flag file exists.

The product holds no code for faults: the processes of such a daemon find this folder on their PYTHONPATH, and the
tower's `encode` is wrapped as soon as its module is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "inspectd.detect.clip"
FAULT = os.environ.get("INSPECTD_TEST_FAULT", "")
FLAG = Path(os.environ.get("INSPECTD_TEST_FAULT_FLAG", "/nowhere"))
"""While it exists the fault happens to passes of at least as many frames as the file says."""


def _breaking(encode: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def broken(self: Any, tokens: Any, groups: Any, beat: Any) -> Any:
        if not FLAG.exists() or len(tokens) < int(FLAG.read_text() or 1):
            return encode(self, tokens, groups, beat)
        match FAULT:
            case "out_of_memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")
            case "device_error":
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        outputs, before = encode(self, tokens, groups, beat)
        return [output * torch.nan for output in outputs], before

    return broken


class _Finder(MetaPathFinder):
    """Finds the target once, as every other finder would, and breaks it when it has been loaded."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert isinstance(spec.loader, Loader)
        execute = spec.loader.exec_module

        def execute_and_break(module: ModuleType) -> None:
            execute(module)
            module.VisionTower.encode = _breaking(module.VisionTower.encode)

        spec.loader.exec_module = execute_and_break  # type: ignore[method-assign]
        return spec


if FAULT:
    sys.meta_path.insert(0, _Finder())
