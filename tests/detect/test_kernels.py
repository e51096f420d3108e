"""Kernels of our own: by Triton's interpreter and its compiler, where Triton is there; and what is asked of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest
import torch
from structlog.testing import capture_logs
from tests_detect import CPU, EVERY_DEVICE, NEEDS_CUDA, golden

from inspectd.detect import clip
from inspectd.detect.build import choose_device
from inspectd.detect.kernels import (
    TOLERANCE,
    accumulation_error,
    attention_error,
    fused_norm,
    norm_error,
    window_attention,
)

LENGTHS, WIDTHS = (2, 5, 10, 17, 26, 32), (60, 64, 768, 896, 1024)
CHIPS = (75, 80, 90, 100)

INTERPRET = """
import json, sys
from functools import partial
import torch
from inspectd.detect.kernels import attention_error, norm_error
from inspectd.detect.norm_kernel import normalise
from inspectd.detect.window_kernel import attend_windows

lengths, widths = json.loads(sys.argv[1])
place = {"device": torch.device("cpu")}
found = {}
for length in lengths:
    for asked in (1, length):
        kind = {"width": 48, "heads": 3, "dtype": torch.float32}
        error = attention_error(attend_windows, length, asked, **kind, **place)
        found[f"windows of {length}, {asked} asked for"] = error
kind = {"width": 60, "heads": 3, "dtype": torch.float32}
found["heads of 20"] = attention_error(attend_windows, 10, 10, **kind, **place)
for width in widths:
    found[f"rows of {width}"] = norm_error(partial(normalise, dtype=torch.float32), width, **place)
print(json.dumps(found))
"""

COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from inspectd.detect.norm_kernel import _normalise
from inspectd.detect.window_kernel import _attend

def size(kernel, types, sizes, chip):
    types = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(sizes, "constexpr")
    places = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
    return len(compile(ASTSource(kernel, types, places), target=GPUTarget("cuda", chip, 32)).asm["cubin"])

chip = int(sys.argv[1])
half = "*fp16" if chip < 80 else "*bf16"
tiles = {"head": 64, "query_rows": 64, "key_rows": 64, "columns": 64}
print(size(_attend, dict.fromkeys(("query", "key", "value", "out"), half), tiles, chip))
rows = dict.fromkeys(("x", "lacking", "weight", "bias"), "*fp32") | {"out": half, "eps": "fp32"}
print(size(_normalise, rows, {"width": 896, "columns": 1024}, chip))
"""


def run_triton(script: str, *arguments: str, **settings: str) -> str:
    """What a script prints in a process of its own: interpreted and compiled kernels do not go together in one."""
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA alone (pip install triton, 1 GB)")
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(words, env=plain | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def interpreted() -> dict[str, float]:
    """How far kernels are from exact, run row by row on the CPU."""
    found: dict[str, float] = json.loads(run_triton(INTERPRET, json.dumps([LENGTHS, WIDTHS]), TRITON_INTERPRET="1"))
    return found


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("first_alone", [False, True])
def test_window_kernel_is_exact_attention(length: int, first_alone: bool):
    """Every window sees itself alone, beside NaN too; the last program, which lacks windows, writes none of them."""
    assert interpreted()[f"windows of {length}, {1 if first_alone else length} asked for"] < 1e-5


def test_window_kernel_takes_heads_of_any_width():
    """Heads of 20 numbers are no power of two, and those of their neighbours stay out."""
    assert interpreted()["heads of 20"] < 1e-5


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_kernel_is_torchs_layer_norm(width: int):
    """Of rows with what they lack, far from zero and one of them NaN, in widths that are powers of two and not."""
    assert interpreted()[f"rows of {width}"] < 1e-5


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile(chip: int):
    """The compiler needs no card, and refuses what the interpreter takes (names of Python in the kernel)."""
    assert all(int(size) > 1000 for size in run_triton(COMPILE, str(chip)).split())


def shifted(query, key, value, out, *, length, heads):
    """Wrong in one way: the windows' neighbours are seen."""
    plain(query, key.roll(1, dims=0), value, out, length=length, heads=heads)


def leaking(query, key, value, out, *, length, heads):
    """Wrong in another: NaN reaches everybody."""
    plain(query, key, value, out, length=length, heads=heads)
    out += 0 * value.sum()


def hiding(query, key, value, out, *, length, heads):
    """Wrong in the worst way: NaN is lost."""
    plain(query, key.nan_to_num(), value.nan_to_num(), out, length=length, heads=heads)


def plain(query, key, value, out, *, length, heads):
    """torch's own attention under the kernel's signature."""
    parts = [x.unflatten(0, (len(key) // length, -1)).unflatten(2, (heads, -1)) for x in (query, key, value)]
    query, key, value = (part.transpose(1, 2) for part in parts)
    weights = (query @ key.transpose(-1, -2)).softmax(dim=-1)
    out.copy_((weights @ value).transpose(1, 2).flatten(2).flatten(0, 1))


@pytest.mark.parametrize(
    ("attend", "sound"),
    [(plain, True), (shifted, False), (leaking, False), (hiding, False)],
    ids=lambda one: one.__name__ if callable(one) else str(one),
)
def test_check_tells_right_from_wrong(attend: Callable[..., None], sound: bool):
    """What is checked before the kernel is used: a wrong mask, NaN that spreads and NaN that is lost are refused."""
    error = attention_error(attend, 5, 5, width=32, heads=2, device=CPU, dtype=torch.float32)
    assert (error <= TOLERANCE) is sound


def plain_norm(x, lacking, weight, bias, eps):
    """torch's own layer norm under the kernel's signature."""
    return torch.nn.functional.layer_norm(x + lacking, (x.shape[1],), weight, bias, eps)


def forgetful_norm(x, lacking, weight, bias, eps):
    """Wrong in one way: what the residual lacks stays away."""
    return plain_norm(x, 0 * lacking, weight, bias, eps)


def one_pass_norm(x, lacking, weight, bias, eps):
    """Wrong in another: rows share one variance."""
    x = x + lacking
    return (x - x.mean(dim=1, keepdim=True)) / (x.nan_to_num().var() + eps).sqrt() * weight + bias


def hiding_norm(x, lacking, weight, bias, eps):
    """Wrong in the worst way: NaN is lost."""
    return plain_norm(x.nan_to_num(), lacking, weight, bias, eps)


@pytest.mark.parametrize(
    ("norm", "sound"),
    [(plain_norm, True), (forgetful_norm, False), (one_pass_norm, False), (hiding_norm, False)],
    ids=lambda one: one.__name__ if callable(one) else str(one),
)
def test_check_tells_a_right_norm_from_wrong_ones(norm: Callable[..., torch.Tensor], sound: bool):
    """What is checked before the kernel is used."""
    assert (norm_error(norm, 64, device=CPU) <= TOLERANCE) is sound


@EVERY_DEVICE
@pytest.mark.parametrize("few_shot", [False, True])
def test_deferred_biases_change_nothing(monkeypatch: pytest.MonkeyPatch, device: str, few_shot: bool):
    """Added where the residual is read instead of where it is written, also for the patches of the last two blocks."""
    values, place = golden(), choose_device(device)
    plain = values.tower(device=device)
    monkeypatch.setattr(clip, "fused_norm", lambda *_: plain_norm)
    deferring = values.tower(device=device)
    pixels = values["pixels"].to(place)
    rows = torch.arange(226, device=place)[None] + 226 * torch.arange(3, device=place)[:, None]
    groups = [clip.Group(rows, keep_patches=few_shot), clip.Group(rows[:, [0, 1, 2, 16, 17]])]

    def encoded(tower: clip.VisionTower) -> list[torch.Tensor]:
        with torch.inference_mode():
            hidden, before = tower.encode(tower.tokens(pixels), groups, lambda: None)
            return [*hidden, before]

    assert [block.lacking is None for block in deferring._blocks] == [False] * 4
    biases = [float(block.lacking.abs().max()) for block in deferring._blocks]
    assert min(biases) > 1e-3
    for found, expected in zip(encoded(deferring), encoded(plain), strict=True):
        assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_cpu_and_fp32_keep_what_torch_has():
    """They have no use for kernels of our own, and say nothing."""
    with capture_logs() as lines:
        for device, dtype in ((CPU, torch.bfloat16), (torch.device("cuda"), torch.float32)):
            assert window_attention(device, dtype, 64, 2) is None
            assert fused_norm(device, dtype, 64) is None
    assert lines == []


@pytest.mark.parametrize("kernel", ["windows", "norm"])
def test_device_without_a_compiler_keeps_what_torch_has(monkeypatch: pytest.MonkeyPatch, kernel: str):
    """Where a kernel cannot be had, the detector works without it and says so in one line."""
    for module in ("window_kernel", "norm_kernel"):
        monkeypatch.setitem(sys.modules, f"inspectd.detect.{module}", None)
    ask = {"windows": lambda *place: window_attention(*place, 64, 2), "norm": lambda *place: fused_norm(*place, 64)}
    with capture_logs() as lines:
        assert ask[kernel](torch.device("cuda"), torch.bfloat16) is None
    assert [(line["event"], line["kernel"]) for line in lines] == [("kernel_refused", kernel)]
    assert "ModuleNotFoundError" in lines[0]["error"]


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_are_taken_on_a_device(dtype: torch.dtype):
    """On a GPU they compile and agree, so that they are what a tower gets."""
    device = choose_device("cuda")
    with capture_logs() as lines:
        assert window_attention(device, dtype, 896, 14) is not None
        assert fused_norm(device, dtype, 896) is not None
    assert lines == []
    assert accumulation_error(64, device=device, dtype=dtype) < 2e-3  # in bf16 a rounded product is off by 8e-3
