"""The command line as a user meets it: a process, its exit code and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Said:
    """What a verb left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line with which it failed; the daemon's own log lines are not counted."""
        lines = [line for line in self.err.splitlines() if line.startswith("inspectd: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def inspectd(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Said:
    """Runs `inspectd` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "inspectd", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=cwd,
        env=clean_environment() | environment,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def clean_environment() -> dict[str, str]:
    """The environment without settings of a daemon, wide enough for tables, and one thread for each process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("INSPECTD_")}
    return inherited | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
