"""A child loads what it needs at low priority, and is itself again afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOSY = "import os\nprint(os.getpriority(os.PRIO_PROCESS, 0))\n"
BIRTH = """
import pickle
from inspectd.stages.birth import born
born(pickle.dumps((exec, "import os, nosy; print(os.getpriority(os.PRIO_PROCESS, 0))")), "nosy", nicely={nicely})
"""


@pytest.mark.parametrize(("nicely", "loading"), [(True, 10), (False, 0)])
def test_modules_are_loaded_nicely_and_work_is_done_as_usual(tmp_path: Path, nicely: bool, loading: int) -> None:
    """The module says how nice its loader is, then the work how nice the process is."""
    (tmp_path / "nosy.py").write_text(NOSY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", BIRTH.format(nicely=nicely)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.split() == [str(min(19, own + loading)), str(own)]
