#!/usr/bin/env python3
"""Trains the demo model: a tiny CLIP in open_clip's own format, on rendered parts that it sees with captions.

    train_demo_model.py --render     render the training pictures (3.5 GB under var/; goes on where it stopped)
    train_demo_model.py --train      train; a second start goes on from the last checkpoint
    train_demo_model.py --export     write model.json and model.safetensors (fp16) to --assets
    train_demo_model.py --evaluate   print the table of the model in --assets on parts that training never saw

Several may be given together. --render --train --export --evaluate does everything. --start-from FOLDER begins with the
weights of an earlier model instead of none. Minutes are of processor time, so that a busy machine trains as long.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from demo_dataset import HELD_OUT_DEFECT, HELD_OUT_KIND, Pictures, render_shards  # noqa: E402
from demo_evaluation import evaluate, print_table  # noqa: E402
from demo_network import CONFIG, build_model, whiten  # noqa: E402
from demo_objective import HAS_BF16, WEIGHTS, Heads, Vocabulary, losses  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, distributed, nn  # noqa: E402

WORK = ROOT / "var" / "demo_model"
SHARDS = WORK / "shards"
CHECKPOINT = WORK / "checkpoint.pt"
WARM_UP_STEPS = 150
SAVE_EVERY_S = 120
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to train: ``groups`` products a step in each of ``workers`` processes, each for ``minutes`` of a core."""

    workers: int
    groups: int
    minutes: float
    peak_rate: float
    start_from: Path | None


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix steps are made orthogonal (K. Jordan, 2024): fewer steps for small transformers.

    The factor 0.2 √max(shape) gives steps the size of AdamW's (Moonlight, arXiv 2502.16982).
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Moves every parameter once."""
        for group in self.param_groups:
            for parameter in group["params"]:
                held = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                held.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(held, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest half-orthogonal matrix."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    x = x.bfloat16() if HAS_BF16 else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).float()


def make_optimizers(model: nn.Module, heads: Heads, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    matrices, others = [], []
    for name, parameter in [*model.named_parameters(), *heads.named_parameters()]:
        (matrices if parameter.ndim == 2 and "resblocks" in name else others).append(parameter)
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, lr=rate), adamw]


def learning_rate(progress: float, step: int, peak: float) -> float:
    """A short warm-up, then a cosine over the time budget.

    >>> learning_rate(0.5, 1000, 1.0)
    0.505
    """
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def average(parameters: list[nn.Parameter], extra: float) -> float:
    """Averages gradients over the processes in one message; ``extra`` travels along and is averaged too."""
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None] + [torch.tensor([extra])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    at = 0
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
    return float(flat[-1])


class Trainer:
    """One of the training processes: its model, its optimizers, and how far it has come."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.model, self.heads, self.vocabulary = build_model(), Heads(), Vocabulary()
        self.optimizers = make_optimizers(self.model, self.heads, plan.peak_rate)
        self.parameters = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        self.pictures = Pictures(SHARDS)
        self.groups = self.pictures.refresh()
        self.step, self.used_s = 0, 0.0
        self._saved, self._last = time.monotonic(), time.process_time()
        self._seen: dict[str, float] = {}
        if CHECKPOINT.exists():
            self._resume()
        elif plan.start_from is not None:
            weights = load_file(plan.start_from / "model.safetensors")
            self.model.load_state_dict({name: value.float() for name, value in weights.items()})
        else:
            whiten(self.model, self.pictures.batch(np.random.default_rng(0), 12).pixels)
        self.rng = np.random.default_rng([self.step, rank])
        torch.manual_seed(self.step * plan.workers + rank)

    def _resume(self) -> None:
        state = torch.load(CHECKPOINT, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.used_s = state["step"], state["used_s"]
        print(f"worker {self.rank}: on from step {self.step}, {self.used_s / 60:.1f} min used", flush=True)

    def save(self) -> None:
        """Writes beside and renames: a kill leaves the old checkpoint or the new one."""
        kept = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "optimizers": kept}
        temporary = CHECKPOINT.with_suffix(".tmp")
        torch.save({**state, "step": self.step, "used_s": self.used_s}, temporary)
        temporary.replace(CHECKPOINT)
        self._saved = time.monotonic()

    def advance(self) -> None:
        """One step, the same in all processes."""
        rate = learning_rate(self.used_s / (self.plan.minutes * 60), self.step, self.plan.peak_rate)
        for group in [g for optimizer in self.optimizers for g in optimizer.param_groups]:
            group["lr"] = rate
        batch = self.pictures.batch(self.rng, self.plan.groups)
        terms = losses(self.model, self.heads, self.vocabulary, batch, self.rng)
        torch.stack([terms[name] * weight for name, weight in WEIGHTS.items()]).sum().backward()
        now = time.process_time()
        self.used_s, self._last = average(self.parameters, self.used_s + now - self._last), now
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._report(terms, rate)

    def _report(self, terms: dict[str, Tensor], rate: float) -> None:
        for name, value in terms.items():
            self._seen[name] = 0.98 * self._seen.get(name, float(value.detach())) + 0.02 * float(value.detach())
        if self.step % 50 == 0:
            self.groups = self.pictures.refresh()
        if self.rank == 0 and self.step % 25 == 0:
            text = " ".join(f"{name}={value:.3f}" for name, value in self._seen.items())
            print(f"{self.step} {self.used_s / 60:.1f} min rate={rate:.2e} groups={self.groups} {text}", flush=True)
        if self.rank == 0 and time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()


def train(rank: int, plan: Plan, port: int) -> None:
    """The life of one training process, of one thread: until the minutes are used up over all runs together."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=plan.workers)
    trainer = Trainer(plan, rank)
    while trainer.used_s < plan.minutes * 60:
        trainer.advance()
    if rank == 0:
        trainer.save()
        print(f"trained {trainer.step} steps in {trainer.used_s / 60:.1f} min", flush=True)
    distributed.destroy_process_group()


def start_training(plan: Plan) -> None:
    """Starts the processes and waits for them."""
    WORK.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    torch.multiprocessing.spawn(train, (plan, port), nprocs=plan.workers)


def export(folder: Path) -> None:
    """Writes the checkpoint's model in open_clip's format: ``model.json`` and fp16 ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(CHECKPOINT, weights_only=True)["model"]
    temporary = folder / "model.safetensors.tmp"
    save_file({name: value.half().contiguous() for name, value in state.items()}, temporary)
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Does what the flags say, in the order of the flags' list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for verb in ("render", "train", "export", "evaluate"):
        parser.add_argument(f"--{verb}", action="store_true")
    parser.add_argument("--shards", type=int, default=130, help="128 pictures each")
    parser.add_argument("--part", type=int, default=0, help="render every --parts-th shard from this one on")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--workers", type=int, default=2, help="training processes of one thread each")
    parser.add_argument("--groups", type=int, default=2, help="products a step in each process, 8 pictures each")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--start-from", type=Path, help="a folder with an earlier model.safetensors")
    parser.add_argument("--assets", type=Path, default=ROOT / "inspectd" / "demo")
    parser.add_argument("--products", type=int, default=52, help="products in the table")
    wanted = parser.parse_args()
    if not (wanted.render or wanted.train or wanted.export or wanted.evaluate):
        parser.error("nothing to do: give --render, --train, --export or --evaluate")
    if wanted.render:
        render_shards(SHARDS, wanted.shards, wanted.part, wanted.parts)
    if wanted.train:
        start_training(
            Plan(
                workers=wanted.workers,
                groups=wanted.groups,
                minutes=wanted.minutes,
                peak_rate=wanted.rate,
                start_from=wanted.start_from,
            )
        )
    if wanted.export:
        export(wanted.assets)
    if wanted.evaluate:
        weights, config = wanted.assets / "model.safetensors", wanted.assets / "model.json"
        kept_out = {"held_kind": HELD_OUT_KIND, "held_defect": HELD_OUT_DEFECT}
        print_table(evaluate(weights, config, wanted.products, **kept_out, cache_dir=WORK / "cache")[0])


if __name__ == "__main__":
    main()
