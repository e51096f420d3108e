"""Parts on a belt through the whole daemon: each is inspected once, by several frames where the recipe says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from belts import ZONE, Belt
from clips import write_clip
from daemons import Daemon, file_camera, running

from inspectd.transport.wire import Schema, schema

MakeDaemon = Callable[..., Daemon]

STARTS = [180, 330, 475, 640, 790]
SPEED_PX = 6.0
FRAMES = 155
PRESENCE = f'kind = "presence", zone_xywh_px = {list(ZONE)}'
DECISION = "[decision]\nthreshold = 0.5\npixel_threshold = 0.5\n"
REGION = "[region]\npolygon_px = [[60, 60], [180, 60], [180, 180], [60, 180]]\n"


@pytest.fixture(scope="module")
def belt_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five parts pass in six seconds."""
    belt = Belt(STARTS, speed_px=SPEED_PX)
    frames = (belt.frame(index).pixels_bgr for index in range(FRAMES))
    return write_clip(tmp_path_factory.mktemp("belt") / "belt.mp4", frames)


def centred_at() -> list[float]:
    return Belt(STARTS, speed_px=SPEED_PX).centred_at()


def told(verdict: dict[str, Any]) -> dict[str, Any]:
    """What must be the same live and offline."""
    return {key: verdict[key] for key in ("seq", "trigger", "decision", "reason", "frame", "votes")}


def test_frames_of_each_part_vote_live_as_in_replay(make_daemon: MakeDaemon, belt_clip: Path) -> None:
    """Three frames of every part make one verdict; `replay` of the clip says the same of the same frames (I5)."""
    recipe = f'[vote]\nframes = 3\nrule = "mean"\n{DECISION}{REGION}'
    daemon = make_daemon({"cam1": file_camera(belt_clip, trigger=PRESENCE)}, recipe=recipe)
    with running(daemon, "--exit-at-end") as subscriber:
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None)
        assert daemon.wait() == 0
    assert [each["frame"]["index"] for each in seen.verdicts] == pytest.approx(centred_at(), abs=3)
    for verdict in seen.verdicts:
        jsonschema.validate(verdict, schema(Schema.VERDICT))
        assert (verdict["votes"]["rule"], verdict["votes"]["frames"]) == ("mean", 3)
    out = daemon.folder / "replayed"
    command = ["replay", str(belt_clip), "--recipe", str(daemon.folder / "recipes" / "part.toml"), "--presence"]
    more = ["--config", str(daemon.config), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "inspectd", *command, *more], check=True, capture_output=True)
    offline = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [told(each) for each in offline] == [told(each) for each in seen.verdicts]
    scores = [each["score"] for each in seen.verdicts]
    assert [each["score"] for each in offline] == pytest.approx(scores, abs=1e-5)


def test_part_that_was_taken_is_not_taken_again_by_a_new_capture(make_daemon: MakeDaemon, belt_clip: Path) -> None:
    """Capture is killed right after it took a part that still lies in the zone: all parts are inspected once."""
    daemon = make_daemon({"cam1": file_camera(belt_clip, pace="realtime", trigger=PRESENCE)}, recipe=DECISION)
    with running(daemon, "--exit-at-end") as subscriber:
        for taken in (1, 3):
            subscriber.until(lambda seen, taken=taken: len(seen.verdicts) >= taken)
            processes = daemon.ask("status")["processes"]
            psutil.Process(next(each["pid"] for each in processes if each["name"] == "capture-cam1")).kill()
        seen = subscriber.until(lambda seen: seen.ended("cam1") is not None)
    assert any(event["kind"] == "capture_restarted" for event in seen.events)
    assert seen.seqs("cam1") == list(range(1, len(STARTS) + 1))
    assert [each["frame"]["index"] for each in seen.verdicts] == pytest.approx(centred_at(), abs=3)


@pytest.mark.parametrize(
    ("camera", "vote", "named"),
    [
        (
            "every_nth = 2",
            "frames = 3",
            'vote.frames: 3 needs trigger.kind = "presence"; cameras.cam1 has',
        ),
        (f"{PRESENCE} }}\nslots = 2\n#", "frames = 3", "vote.frames: 3 frames of a part need cameras.cam1.slots = 3"),
        (PRESENCE, 'frames = 2\nrule = "best"', "vote.rule"),
        (PRESENCE, "frames = 9", "vote.frames"),
        ('kind = "presence", zone_xywh_px = [200, 0, 60, 60]', "frames = 1", "does not lie in the frame of 240x240"),
    ],
)
def test_votes_and_zones_that_cannot_be_are_one_line(
    make_daemon: MakeDaemon, belt_clip: Path, camera: str, vote: str, named: str
) -> None:
    """Before anything starts, by file and key."""
    daemon = make_daemon({"cam1": file_camera(belt_clip, trigger=camera)}, recipe=f"[vote]\n{vote}\n{DECISION}")
    assert daemon.run() == 3
    assert named in daemon.log()
    assert len(daemon.log().splitlines()) == 1
