"""Pictures of what was judged: below their quota always, found by their verdict, and never in a verdict's way."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import PATIENCE_S, Daemon, file_camera, running, shared
from disks import small_disk

from inspectd.images import read_image_bgr
from inspectd.records import Decision
from inspectd.settings import Evidence
from inspectd.stages.evidence import EvidenceStore, EvidenceWriter
from inspectd.stages.pictures import Picks

KEEP_ON_A_SMALL_DISK = """
import shutil, sys
from pathlib import Path
from inspectd.stages.evidence import EvidenceStore
folder = Path(sys.argv[1])
store = EvidenceStore(folder / "evidence", 100_000_000)
store.open()
kept = [store.put(f"s/cam1/{seq}.jpg", bytes(30_000)) for seq in range(200)]
print(0 < sum(kept) < 200, shutil.disk_usage(folder).free >= 100_000, store.has("s/cam1/0.jpg"))
(folder / "other").write_bytes(bytes(shutil.disk_usage(folder).free - 20_000))
store.give_way()
print(shutil.disk_usage(folder).free >= 100_000, store.has("s/cam1/0.jpg"), store.used_bytes > 0)
"""


def lying(folder: Path) -> dict[str, int]:
    """What lies below a folder, with its blocks."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_blocks * 512 for path in files}


def until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_the_quota_holds_at_every_moment_and_the_oldest_go_first(tmp_path: Path) -> None:
    """Pictures of any size, restarts and quotas that change: what lies there is the newest that fit, and is counted."""
    dice, put = random.Random(7), []
    for quota_bytes in (100_000, 100_000, 60_000, 200_000):
        store = EvidenceStore(tmp_path, quota_bytes)
        store.open()
        for _ in range(40):
            name = f"s{len(put) // 30}/cam{dice.randrange(3)}/{len(put)}.jpg"
            assert store.put(name, dice.randbytes(dice.randrange(1, 30_000)))
            os.utime(tmp_path / name, ns=(len(put), len(put)))
            put.append(name)
            sizes = lying(tmp_path)
            assert sum(sizes.values()) == store.used_bytes <= quota_bytes
            assert set(sizes) == set(put[len(put) - len(sizes) :])
    assert all(any(folder.iterdir()) for folder in tmp_path.rglob("*") if folder.is_dir())


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    """A picture beyond the whole quota costs no other; one that is written again counts once."""
    store = EvidenceStore(tmp_path, 20_000)
    store.open()
    assert store.put("s/cam1/1.jpg", bytes(5000))
    assert not store.put("s/cam1/2.jpg", bytes(20_001))
    assert store.put("s/cam1/1.jpg", bytes(6000))
    assert lying(tmp_path) == {"s/cam1/1.jpg": 8192}
    assert store.used_bytes == 8192


def test_what_was_cut_short_is_taken_away(tmp_path: Path) -> None:
    """Half a picture, or an empty one, of a process or a machine that died is none."""
    (tmp_path / "s" / "cam1").mkdir(parents=True)
    (tmp_path / "s" / "cam1" / "1.jpg.part").write_bytes(bytes(100))
    (tmp_path / "s" / "cam1" / "2.jpg").touch()
    (tmp_path / "s" / "cam1" / "3.jpg").write_bytes(bytes(100))
    EvidenceStore(tmp_path, 20_000).open()
    assert list(lying(tmp_path)) == ["s/cam1/3.jpg"]


def test_evidence_gives_way_to_the_journal(tmp_path: Path) -> None:
    """Whatever the quota says, the journal's room stays free; where others take it, the oldest pictures go."""
    command = [*small_disk(tmp_path, "2m"), sys.executable, "-c", KEEP_ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.splitlines() == ["True True True", "True False True"]


def test_pictures_are_shed_while_the_journal_is_sick(tmp_path: Path) -> None:
    """Nothing is written then, all of it is counted, and it goes on afterwards."""
    sick = [True]
    writer = EvidenceWriter(tmp_path, 100_000, sick=lambda: sick[0])
    writer.offer("s", "cam1", 1, b"jpeg", shed_before=2)
    sick.clear()
    sick.append(False)
    writer.offer("s", "cam1", 2, b"\x89PNG")
    until(lambda: writer.written == 1)
    assert writer.shed == 3
    assert (writer.find("s", "cam1", 1), writer.find("s", "cam1", 2)) == (None, "s/cam1/2.png")


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    """Pictures that come meanwhile are shed in the end; none blocks whoever offers it."""
    (tmp_path / "evidence").touch()
    writer = EvidenceWriter(tmp_path / "evidence", 1_000_000, sick=lambda: False)
    for seq in range(100):
        writer.offer("s", "cam1", seq, b"jpeg")
    assert writer.shed > 50
    (tmp_path / "evidence").unlink()
    until(lambda: writer.written + writer.shed == 100)


@pytest.mark.parametrize(
    ("settings", "picked"),
    [
        ({}, []),
        ({"quota_mb": 1}, ["fail", "error"]),
        ({"quota_mb": 1, "decisions": ("pass",)}, ["pass"] * 6),
        ({"quota_mb": 1, "decisions": (), "every_nth_pass": 3}, ["pass"] * 2),
    ],
)
def test_the_settings_say_which_frames_leave_a_picture(settings: dict[str, object], picked: list[str]) -> None:
    """Off without a quota; by decision; and every n-th pass of each camera."""
    picks = Picks(Evidence(**settings))
    verdicts = [*[Decision.PASS] * 3, Decision.FAIL, *[Decision.PASS] * 3, Decision.ERROR]
    assert [each for each in verdicts if picks.picks(0, each)] == picked


def test_a_daemon_keeps_pictures_of_what_it_rejects(make_daemon: Callable[..., Daemon]) -> None:
    """Each is whole, of the inspected box, lies where the verdict's numbers lead to, and `history` names it."""
    camera = file_camera(shared("data", "video", "dark_belt_1280x960.mp4"), trigger="every_nth = 4")
    region = "[region]\npolygon_px = [[100, 100], [740, 100], [740, 580], [100, 580]]\n"
    recipe = f"{region}[decision]\nthreshold = 0.0\npixel_threshold = 0.5\n"
    daemon = make_daemon({"cam1": camera}, recipe=recipe, extra="[evidence]\nquota_mb = 50\nheatmap = true")
    with running(daemon) as subscriber:
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None)
        failed = [each for each in seen.verdicts if each["decision"] == "fail"]
        assert failed
        folder = daemon.journal.parent / "evidence"
        until(lambda: len(list(folder.glob("*/*/*.jpg"))) == len(failed))
        reply = daemon.ask("history", camera="cam1", since_seq=0)
    assert reply["verdicts"] == seen.verdicts
    assert reply["evidence"] == {str(each["seq"]): f"{each['session']}/cam1/{each['seq']}.jpg" for each in failed}
    for place in reply["evidence"].values():
        assert read_image_bgr(folder / place).shape == (480, 640, 3)
