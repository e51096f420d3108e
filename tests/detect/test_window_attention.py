"""The fused attention of windows: on the CPU by Triton's interpreter, where Triton is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from structlog.testing import capture_logs
from tests_detect import CPU, NEEDS_CUDA

from inspectd.detect.window_attention import TOLERANCE, largest_error, window_attention


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The kernel, run row by row on the CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA alone (pip install triton, 1 GB)")
    from inspectd.detect.window_kernel import attend_windows

    return attend_windows


@pytest.mark.parametrize("length", [2, 5, 10, 17, 26, 32])
@pytest.mark.parametrize("first_alone", [False, True])
def test_kernel_is_exact_attention(interpreted: Callable[..., None], length: int, first_alone: bool):
    """Every window sees itself alone, beside NaN too; the last program, which lacks windows, writes none of them."""
    queries = 1 if first_alone else length
    assert largest_error(interpreted, length, queries, width=48, heads=3, device=CPU, dtype=torch.float32) < 1e-5


def test_kernel_takes_heads_of_any_width(interpreted: Callable[..., None]):
    """Heads of 20 numbers are no power of two, and those of their neighbours stay out."""
    assert largest_error(interpreted, 10, 10, width=60, heads=3, device=CPU, dtype=torch.float32) < 1e-5


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from inspectd.detect.window_kernel import _attend as kernel

sizes = {"head": 64, "query_rows": 64, "key_rows": 64, "columns": 64}
types = {name: "constexpr" if name in sizes else "i32" for name in kernel.arg_names}
types |= dict.fromkeys(("query", "key", "value", "out"), "*bf16")
places = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
binary = compile(ASTSource(kernel, types, places), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
print(len(binary))
"""


def test_kernel_compiles_for_a_hopper_card():
    """The compiler needs no card, and refuses what the interpreter takes (names of Python in the kernel)."""
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA alone (pip install triton, 1 GB)")
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(words, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


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
    error = largest_error(attend, 5, 5, width=32, heads=2, device=CPU, dtype=torch.float32)
    assert (error <= TOLERANCE) is sound


def test_cpu_and_fp32_keep_their_own_attention():
    """They have no use for the kernel, and say nothing."""
    with capture_logs() as lines:
        assert window_attention(CPU, torch.bfloat16, 64, 2) is None
        assert window_attention(torch.device("cuda"), torch.float32, 64, 2) is None
    assert lines == []


def test_device_without_a_compiler_keeps_its_own_attention(monkeypatch: pytest.MonkeyPatch):
    """Where the kernel cannot be had, the detector works without it and says so in one line."""
    monkeypatch.setitem(sys.modules, "inspectd.detect.window_kernel", None)
    with capture_logs() as lines:
        assert window_attention(torch.device("cuda"), torch.bfloat16, 64, 2) is None
    assert [line["event"] for line in lines] == ["window_kernel_refused"]
    assert "ModuleNotFoundError" in lines[0]["error"]


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_is_taken_on_a_device(dtype: torch.dtype):
    """On a GPU it compiles and agrees, so that it is what windows get."""
    assert window_attention(torch.device("cuda", 0), dtype, 896, 14) is not None
