"""Gates before the model in a real daemon: what nobody can vouch for is an `error` with its reason, never a pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from daemons import Daemon, Subscriber, running

from inspectd.records import PixelsU8

RECIPE = """
deadline_ms = 20000
[decision]
threshold = 1.0
pixel_threshold = 1.0
[quality]
min_brightness = 20
min_sharpness = 50
"""
"""Nothing but an error keeps a frame from passing."""


def textured(seed: int = 0) -> PixelsU8:
    return np.random.default_rng(seed).integers(60, 160, (96, 128, 3), dtype=np.uint8)


def pictures(folder: Path, *images: PixelsU8) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Subscriber]]:
    """Four cameras: one sees poor pictures, the others the same picture over and over."""
    folder = tmp_path_factory.mktemp("gates")
    poor = pictures(
        folder / "poor",
        textured(1),
        np.zeros((96, 128, 3), np.uint8),
        cv2.GaussianBlur(textured(2), (0, 0), 4),
        textured(3),
    )
    still = pictures(folder / "still", textured())
    standing = f'source = {{ kind = "folder", path = "{still}", loop = true, rate_fps = 20, frozen_after_s = '
    cameras = {
        "poor": f'source = {{ kind = "folder", path = "{poor}", pace = "fast" }}\n',
        "frozen": standing + "0.5 }\n",
        "asked": standing + '3600 }\ntrigger = { kind = "external" }\n',
        "belt": standing + '0.5 }\ntrigger = { kind = "presence" }\n',
    }
    daemon = Daemon(folder=folder / "daemon", cameras=cameras, recipe=RECIPE)
    with running(daemon) as subscriber:
        subscriber.until(lambda seen: seen.state == "ready")
        yield daemon, subscriber


Watched = tuple[Daemon, Subscriber]


def reasons(subscriber: Subscriber, camera: str, count: int) -> list[str]:
    """The reasons of a camera's first verdicts."""
    subscriber.until(lambda seen: len(seen.seqs(camera)) >= count)
    return [each["reason"] for each in subscriber.seen.verdicts if each["camera"] == camera][:count]


def test_black_and_blurred_frames_are_errors(watched: Watched) -> None:
    """A frame beyond the recipe's limits is `error/frame_quality`, its neighbours are judged; the log says why."""
    daemon, subscriber = watched
    assert reasons(subscriber, "poor", 4) == ["ok", "frame_quality", "frame_quality", "ok"]
    assert "too dark: mean 0.0, at least 20" in daemon.log()


def test_camera_that_stands_still_is_frozen(watched: Watched) -> None:
    """The same picture passes for `frozen_after_s`, then never again."""
    _, subscriber = watched
    told = reasons(subscriber, "frozen", 30)
    first = told.index("frame_frozen")
    assert 1 <= first <= 15
    assert set(told[:first]) == {"ok"}
    assert set(told[first:]) == {"frame_frozen"}


def test_second_part_with_the_same_picture_is_frozen_at_once(watched: Watched) -> None:
    """Asked for another part, a camera that shows the last one to the bit is not believed."""
    daemon, _ = watched
    verdicts = [
        daemon.ask("trigger", camera="asked", trigger_id=part, wait=True, timeout_s=60)["verdict"]
        for part in ("part 1", "part 2")
    ]
    assert [each["reason"] for each in verdicts] == ["ok", "frame_frozen"]


def test_frozen_camera_over_a_belt_is_told_without_a_part(watched: Watched) -> None:
    """Parts may pass unseen, so there is an error every second though no part was found."""
    _, subscriber = watched
    assert reasons(subscriber, "belt", 2) == ["frame_frozen", "frame_frozen"]
