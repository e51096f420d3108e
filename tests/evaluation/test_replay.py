"""Recordings through the same Inspector as live frames: what is written, and how two replays are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import jsonschema
import numpy as np
import pytest
from tests_inspection import BrightDetector, bright_recipe

from inspectd.errors import ConfigError, SourceError
from inspectd.evaluation.recordings import EVERY_PART, parts_of
from inspectd.evaluation.replay import replay
from inspectd.images import decode_label_png, read_image_bgr
from inspectd.inspection import Inspector
from inspectd.recipe import Calibration
from inspectd.transport.wire import Schema, schema

WIDTH, HEIGHT = 160, 120


def spotted(bright: bool, seed: int = 0) -> np.ndarray:
    """A dark frame, with a bright square if it is a bad one."""
    frame = np.random.default_rng(seed).integers(20, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if bright:
        frame[40:70, 60:100] = 230
    return frame


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images; every third is bad, the seventh is no image."""
    images = tmp_path / "images"
    images.mkdir()
    for index in range(12):
        cv2.imwrite(str(images / f"part{index}.png"), spotted(index % 3 == 2, index))
    (images / "part6.png").write_bytes(b"no image")
    return images


def write_video(path: Path, frames: Iterator[np.ndarray], rate: int = 10) -> None:
    """An H.264 file of BGR frames."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1, rate)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode(None))


def passing_parts(parts: int) -> Iterator[np.ndarray]:
    """A grey belt on which discs pass from left to right, one after the other; every second one is bright."""
    rng = np.random.default_rng(3)
    belt = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for step in range(20 + parts * 60 + 20):
        frame = belt.copy()
        if 20 <= step < 20 + parts * 60:
            part, moment = divmod(step - 20, 60)
            level = 220 if part % 2 else 130
            cv2.circle(frame, (-30 + 4 * moment, HEIGHT // 2), 22, (level, level, level), cv2.FILLED, cv2.LINE_AA)
        yield cv2.add(frame, rng.integers(0, 4, frame.shape, dtype=np.uint8))


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def run(tmp_path: Path, path: Path, out: str = "out", *, threshold: float = 0.5, grid=(60, 80), **options):
    inspector = Inspector(bright_recipe(tmp_path, threshold=threshold, name="part"), BrightDetector(grid))
    return replay(inspector, path, tmp_path / out, **options)


def test_every_image_gets_one_verdict_of_the_contract(tmp_path: Path, folder: Path):
    """In the order of names, numbered without a gap, valid against the schema; what is no image is an error."""
    done = run(tmp_path, folder)
    verdicts = lines_of(tmp_path / "out")
    for verdict in verdicts:
        jsonschema.validate(verdict, schema(Schema.VERDICT))
    assert [verdict["seq"] for verdict in verdicts] == list(range(1, 13))
    wanted = ["fail" if index % 3 == 2 else "error" if index == 6 else "pass" for index in range(12)]
    assert [verdict["decision"] for verdict in verdicts] == wanted
    assert verdicts[6]["reason"] == "frame_corrupt"
    assert (verdicts[6]["score"], verdicts[6]["regions"], verdicts[6]["mask"]) == (None, [], None)
    assert all(verdict["simulated"] and not verdict["journaled"] for verdict in verdicts)
    assert done.summary.decisions == {"pass": 7, "fail": 4, "error": 1}


def test_masks_agree_with_the_regions(tmp_path: Path, folder: Path):
    """Each fail has its mask; labels, boxes and areas say the same."""
    run(tmp_path, folder)
    fails = [verdict for verdict in lines_of(tmp_path / "out") if verdict["decision"] == "fail"]
    assert len(list((tmp_path / "out" / "masks").iterdir())) == len(fails) == 4
    for verdict in fails:
        labels = decode_label_png((tmp_path / "out" / "masks" / f"{verdict['seq']:06}.png").read_bytes())
        assert [labels.shape[1], labels.shape[0]] == verdict["mask"]["size_wh_px"]
        for region in verdict["regions"]:
            ys, xs = np.nonzero(labels == region["id"])
            x, y = verdict["mask"]["origin_xy_px"]
            box = [x + xs.min(), y + ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert (box, len(xs)) == (region["bbox_xywh_px"], region["area_px"])


def test_pictures_show_every_frame_and_a_sheet_of_them(tmp_path: Path, folder: Path):
    """One annotated picture a verdict, with its strip below; and one sheet. None when not wanted."""
    run(tmp_path, folder)
    annotated = sorted((tmp_path / "out" / "annotated").iterdir())
    assert [path.stem for path in annotated] == [f"{seq:06}" for seq in range(1, 13)]
    assert read_image_bgr(annotated[0]).shape[0] > HEIGHT
    assert read_image_bgr(tmp_path / "out" / "sheet.png").shape[1] > 8 * 220
    run(tmp_path, folder, "bare", pictures=False)
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "masks",
        "report.json",
        "report.md",
        "verdicts.jsonl",
    ]


def test_a_replay_equals_its_baseline_at_any_batch_size(tmp_path: Path, folder: Path):
    """The same frames, recipe and weights: no flip, no other score."""
    run(tmp_path, folder, "first", batch=1)
    done = run(tmp_path, folder, "second", batch=5, baseline=tmp_path / "first")
    assert (done.flipped, done.comparison.compared, done.comparison.max_score_change) == (False, 12, 0.0)


def test_a_flip_is_found_and_told(tmp_path: Path, folder: Path):
    """Another threshold turns fails into passes: each such frame is named, in the report too."""
    run(tmp_path, folder, "first")
    done = run(tmp_path, folder, "second", threshold=0.95, baseline=tmp_path / "first")
    assert done.flipped
    assert [flip.frame_index for flip in done.comparison.flips] == [2, 5, 8, 11]
    assert done.comparison.other_recipe
    assert "frame 2: fail/anomaly" in (tmp_path / "second" / "report.md").read_text()
    assert len(json.loads((tmp_path / "second" / "report.json").read_text())["comparison"]["flips"]) == 4


def test_frames_too_few_or_too_many_are_flips(tmp_path: Path, folder: Path):
    """A verdict that is missing is not agreement."""
    run(tmp_path, folder, "first")
    (folder / "part11.png").unlink()
    done = run(tmp_path, folder, "second", baseline=tmp_path / "first")
    assert [(flip.frame_index, flip.now) for flip in done.comparison.flips] == [(11, None)]
    cv2.imwrite(str(folder / "part11.png"), spotted(bright=False))
    cv2.imwrite(str(folder / "part12.png"), spotted(bright=False))
    done = run(tmp_path, folder, "third", baseline=tmp_path / "second")
    assert [(flip.frame_index, flip.before) for flip in done.comparison.flips] == [(11, None), (12, None)]


def test_every_frame_of_a_video_is_inspected(tmp_path: Path):
    """Index and time are the stream's own, and progress reaches the end."""
    write_video(tmp_path / "Clip 1.mp4", (spotted(index == 4, index) for index in range(9)))
    seen: list[tuple[int, int | None]] = []
    run(tmp_path, tmp_path / "Clip 1.mp4", progress=lambda done, total: seen.append((done, total)))
    verdicts = lines_of(tmp_path / "out")
    assert [verdict["frame"]["index"] for verdict in verdicts] == list(range(9))
    assert [verdict["frame"]["pts_s"] for verdict in verdicts] == pytest.approx([index / 10 for index in range(9)])
    assert [index for index, verdict in enumerate(verdicts) if verdict["decision"] == "fail"] == [4]
    assert {verdict["camera"] for verdict in verdicts} == {"clip_1"}
    assert seen[-1] == (9, 9)


def test_presence_gives_one_verdict_a_part(tmp_path: Path):
    """Six parts pass, every second one bright: six verdicts, in turn."""
    write_video(tmp_path / "belt.mp4", passing_parts(6), rate=30)
    run(tmp_path, tmp_path / "belt.mp4", threshold=0.7, trigger=EVERY_PART)
    verdicts = lines_of(tmp_path / "out")
    assert [verdict["decision"] for verdict in verdicts] == ["pass", "fail"] * 3
    assert {verdict["trigger"]["kind"] for verdict in verdicts} == {"presence"}
    recipe = bright_recipe(tmp_path)
    assert len(list(parts_of(tmp_path / "belt.mp4", recipe, presence=True))) == 6


def test_a_truncated_video_is_an_error_and_no_crash(tmp_path: Path):
    """What is there is inspected, what is lost is an error, and the report is written."""
    write_video(tmp_path / "whole.mp4", (spotted(index % 2 == 0, index) for index in range(40)))
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 3 // 4])
    done = run(tmp_path, tmp_path / "cut.mp4", pictures=False)
    decisions = [verdict["decision"] for verdict in lines_of(tmp_path / "out")]
    assert decisions[:20] == ["fail", "pass"] * 10
    assert done.summary.reasons["frame_corrupt"] == decisions.count("error") >= 1
    assert "error" in decisions[20:]


def test_nothing_is_measured_from_a_damaged_frame(tmp_path: Path, folder: Path):
    """Calibration must not take the black stand-in of an unreadable image for a good part."""
    with pytest.raises(SourceError, match=r"images: frame 6 is damaged: part6\.png"):
        list(parts_of(folder, bright_recipe(tmp_path)))
    (folder / "part6.png").unlink()
    assert len(list(parts_of(folder, bright_recipe(tmp_path), presence=True))) == 11


def test_a_folder_that_holds_a_replay_is_not_overwritten(tmp_path: Path, folder: Path):
    """It may be somebody's baseline."""
    run(tmp_path, folder)
    with pytest.raises(ConfigError, match="holds a replay already"):
        run(tmp_path, folder)


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "No such file"), ("", "holds no verdict"), ("{}", r"verdicts\.jsonl:1: not a verdict"), ("x", ":1: not a")],
)
def test_a_baseline_that_is_none_is_refused(tmp_path: Path, folder: Path, content: str | None, part: str):
    """Before a single frame is inspected."""
    (tmp_path / "base").mkdir()
    if content is not None:
        (tmp_path / "base" / "verdicts.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=part):
        run(tmp_path, folder, baseline=tmp_path / "base")
    assert not (tmp_path / "out").exists()


def test_recordings_that_cannot_be_used_are_refused(tmp_path: Path, folder: Path):
    """Missing, or too small for the recipe's region: one line, exit 3."""
    with pytest.raises(ConfigError, match=r"none\.mp4"):
        run(tmp_path, tmp_path / "none.mp4")
    text = "[region]\npolygon_px = [[0, 0], [300, 0], [300, 100], [0, 100]]"
    inspector = Inspector(bright_recipe(tmp_path, text), BrightDetector())
    with pytest.raises(ConfigError, match="a frame is 160x120"):
        replay(inspector, folder, tmp_path / "out")


def test_thresholds_of_another_model_are_refused(tmp_path: Path, folder: Path):
    """Replay is as strict as the daemon: a score means nothing beside another model's threshold."""
    recipe = bright_recipe(tmp_path, threshold=None)
    measured = Calibration(
        threshold=0.5,
        pixel_threshold=0.5,
        model_sha256="a" * 64,
        good=20,
        bad=0,
        target_false_reject_rate=0.05,
        measured_utc="2026-01-01T00:00:00Z",
    )
    inspector = Inspector(recipe.model_copy(update={"calibration": measured}), BrightDetector())
    with pytest.raises(ConfigError, match="measured with model aaaaaaaaaaaa"):
        replay(inspector, folder, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, folder: Path):
    """A file stands where the folder should be."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(ConfigError, match="out"):
        run(tmp_path, folder)
