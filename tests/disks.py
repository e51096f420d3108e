"""Disks that hang, are full or cannot be written, for real processes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HANGING_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static void hang(void) {
    const char *flag = getenv("HANG_WHILE");
    while (flag && access(flag, F_OK) == 0) usleep(2000);
}
int fsync(int fd) { hang(); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { hang(); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


def hanging_disk(folder: Path) -> tuple[dict[str, str], Path]:
    """The environment of a program whose fsync hangs while a file is there, and that file."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the hanging fsync")
    source, shim, flag = folder / "hang.c", folder / "hang.so", folder / "hangs"
    source.write_text(HANGING_SYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(shim), "HANG_WHILE": str(flag)}, flag
