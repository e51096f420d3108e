"""Passes recorded as CUDA graphs: one launch instead of hundreds, which is what a small batch costs otherwise.

A graph reads and writes the memory that it was recorded with. That memory is kept here as long as the graph is: its
input, which is filled before each replay, its result, which must be copied away in the same stream, and a pool for what
lies between, which all graphs share, for one stream runs them one after the other. Whatever else a pass reads (weights,
text, references, the plan's indices) its detector must keep, and call `clear` before it lets go of any of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inspectd.detect.plans import Plan
from inspectd.log import get_logger

Compute = Callable[[Tensor, Plan], Tensor]
"""Grey levels `(N, 3, H, W)` and a plan to a result on the device; nothing in it may wait for the device."""
_WARM_RUNS = 2
"""Before a recording: libraries set themselves up, kernels are compiled."""
_TOLERANCE = 5e-3
"""Scores and maps of a replay against those of plain launches: bf16 may take other products, and drifts less."""


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """One graph, its input and its result; `plan` keeps the indices that it reads."""

    graph: Any
    grey: Tensor
    found: Tensor
    plan: Plan

    def run(self, grey: Tensor) -> Tensor:
        self.grey.copy_(grey)
        self.graph.replay()
        return self.found


class Recordings:
    """The recorded passes of one detector. Without any, or on a CPU, passes are launched plainly."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wanted = device.type == "cuda"
        self._recorded: dict[Plan, _Recorded] = {}
        self._pool: Any = None
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self._recorded)

    def run(self, compute: Compute, grey: Tensor, plan: Plan) -> Tensor:
        """The pass's result, to be copied before the next pass is launched."""
        recorded = self._recorded.get(plan)
        return compute(grey, plan) if recorded is None else recorded.run(grey)

    def lack(self, plan: Plan) -> bool:
        """Whether the pass is still to be recorded."""
        return self._wanted and plan not in self._recorded

    def record(self, compute: Compute, grey: Tensor, plan: Plan) -> None:
        """Records the pass of such pixels. One that cannot be recorded, or replays differently, leaves all plain."""
        if not self.lack(plan):
            return
        try:
            recorded = self._record(compute, grey, plan)
            differs_by = _largest_difference(compute, recorded, grey)
        except Exception as error:  # noqa: BLE001 - torch, CUDA and Triton refuse in their own ways
            self._give_up(f"{type(error).__name__}: {error}".partition("\n")[0])
            return
        if differs_by <= _TOLERANCE:
            self._recorded[plan] = recorded
        else:
            self._give_up(f"a replay differs by {differs_by:.3g}")

    def stop(self) -> None:
        """Gives them up for good: their memory is wanted elsewhere, or they cannot be had."""
        self._wanted = False
        self.clear()

    def clear(self) -> None:
        """Forgets all recordings, and with them their memory; waits for those that still run."""
        if self._recorded:
            torch.cuda.synchronize(self._device)
        self._recorded.clear()
        self._pool = None

    def _give_up(self, error: str) -> None:
        self.stop()
        get_logger().warning("graphs_refused", device=str(self._device), error=error)

    def _record(self, compute: Compute, grey: Tensor, plan: Plan) -> _Recorded:
        kept, current = grey.clone(), torch.cuda.current_stream(self._device)
        self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_RUNS):
                compute(kept, plan)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                found = compute(kept, plan)
        finally:
            torch.cuda.set_stream(current)  # which a capture that fails leaves behind
        self._pool = self._pool or graph.pool()
        return _Recorded(graph, kept, found, plan)


def _largest_difference(compute: Compute, recorded: _Recorded, grey: Tensor) -> float:
    """Of a replay from plain launches, on the recorded pixels and on others: a graph must follow its input."""
    worst = 0.0
    for pixels in (255 - grey, grey):
        replayed = recorded.run(pixels).clone()
        difference = float((replayed - compute(pixels, recorded.plan)).abs().max())
        worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return worst
