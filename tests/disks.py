"""Disks that hang, are full or cannot be written, for real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemons import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from faults_hung import hung_mount

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


@contextmanager
def hanging_reads(folder: Path, file: Path) -> Iterator[tuple[Path, Path]]:
    """A file once more, on a disk whose reads hang while another one is there; both paths. Whoever hangs is let go."""
    (folder / "real").mkdir()
    shutil.copy(file, folder / "real")
    flag = folder / "hangs"
    with ExitStack() as stack:
        try:
            stack.enter_context(hung_mount(folder / "real", folder / "mount", flag))
        except OSError as error:
            pytest.skip(f"needs root and FUSE: {error}")
        stack.callback(flag.unlink, missing_ok=True)
        yield folder / "mount" / file.name, flag


def small_disk(folder: Path, size: str = "2m", options: str = "rw") -> tuple[str, ...]:
    """What a program is started by that has a disk of its own at `folder`: seen from outside below `/proc/PID/root`."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount of its own here")
    script = f'mount -t tmpfs -o size={size},{options} none "$0" && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script, str(folder))


def fill(folder: Path) -> Path:
    """Leaves no room on the disk of a folder. The ballast, to be removed."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for chunk in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(chunk)) == chunk:
                    pass
            except OSError:
                continue
    return ballast
