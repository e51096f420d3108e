"""Rows: what the pictures may suffer: cut files, flipped bits, another size, another format, a camera that freezes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import faults_clip
import numpy as np
from faults_clip import Kind, Pixels, Spelt
from faults_trial import Trial
from faults_witness import Seen
from faults_workshop import DEADLINE_MS, playing

FPS = 25
FRAMES = 28
CLIPS_A_DAEMON = 3
VISIBLE_LEVELS, VISIBLE_SHARE = 24, 0.002
"""A picture is visibly damaged where so large a share of its pixels is so many grey levels off."""
FROZEN_AFTER_S = 0.6


@dataclass(slots=True)
class DamagedTruth:
    """Clips that were damaged on purpose, each as the harness's own decoder shows it against what it was before.

    Frames are found by their time in the stream, for a decoder may swallow some.
    """

    kinds: dict[str, list[Kind]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    """The time of number 0, in frames: a transport stream does not begin at 0."""
    owned_up: dict[str, set[int]] = field(default_factory=dict)
    """Frames that any decoder says are damaged: a gate can see those."""
    visible: dict[str, set[int]] = field(default_factory=dict)

    def number_of(self, seen: Seen) -> int | None:
        return None if seen.pts_s is None else round(seen.pts_s * FPS) - self.first[seen.camera]

    def objection(self, seen: Seen) -> str | None:
        number = self.number_of(seen)
        if number is None:
            return "a pass without a time in the stream"
        if number in self.owned_up[seen.camera]:
            return f"frame {number} is damaged, and its decoder says so"
        if number in self.visible[seen.camera]:
            return None  # told apart: no gate can see it
        return f"frame {number} is bad" if self.kinds[seen.camera][number] is Kind.BAD else None


def damaged(trial: Trial) -> None:
    """Files cut off, bits flipped in H.264, another size and another format in mid-stream."""
    truth = DamagedTruth()
    verdicts: list[Seen] = []
    folder = trial.workshop.folder / trial.name
    folder.mkdir(exist_ok=True)
    for number in range(0, trial.times, CLIPS_A_DAEMON):
        cameras: dict[str, str] = {}
        for clip in range(number, min(number + CLIPS_A_DAEMON, trial.times)):
            cameras |= _harmed(trial, folder, clip, truth)
        with trial.daemon(cameras, objection=truth.objection, warm=False) as line:
            ended = line.witness.until(lambda line=line: _all_ended(line.witness.beats), 120.0)  # type: ignore[misc]
            trial.must(ended, "not every camera came to its end")
        verdicts += line.witness.verdicts
    _tell(trial, truth, verdicts)


def _harmed(trial: Trial, folder: Path, number: int, truth: DamagedTruth) -> dict[str, str]:
    """One clip of each kind of harm, and the camera that plays it."""
    parts = trial.workshop.parts(trial.rng.randrange(2**31), 16)
    pictures = [faults_clip.spell(n, *parts[n % len(parts)]) for n in range(FRAMES)]
    cameras = {}
    for name, harm in {"flip": _flipped, "cut": _cut, "size": _resized, "form": _reformed}.items():
        camera = f"{name}{number}"
        path = harm(trial, folder / camera, pictures)
        _learn(truth, camera, path, pictures)
        cameras[camera] = playing(path, loop=False, pace="fast")
        trial.injected += 1
    return cameras


def _all_ended(beats: list) -> bool:  # type: ignore[type-arg]
    return bool(beats) and all(state == "ended" for state in beats[-1].camera_state.values())


def _tell(trial: Trial, truth: DamagedTruth, verdicts: list[Seen]) -> None:
    """How many visibly damaged frames no gate saw, and what became of them."""
    visible = [s for s in verdicts if truth.number_of(s) in truth.visible[s.camera]]
    unseen = [seen for seen in visible if seen.judged]
    passed = sum(seen.decision == "pass" for seen in unseen)
    corrupt = sum(seen.reason == "frame_corrupt" for seen in verdicts)
    trial.must(corrupt > 0, "nothing was answered error/frame_corrupt")
    share = f"{len(unseen) / len(visible):.1%}" if visible else "none"
    trial.notes.append(
        f"{len(visible)} verdicts on visibly damaged frames, {len(unseen)} ({share}) seen by no gate, {passed} of them "
        f"passed; {corrupt} error/frame_corrupt"
    )


def _learn(truth: DamagedTruth, camera: str, path: Path, pictures: list[Pixels]) -> None:
    """Decodes the damaged file as any player does, and holds every picture against the one that went in."""
    truth.kinds[camera] = [spelt.kind for picture in pictures if (spelt := faults_clip.read(picture)) is not None]
    truth.owned_up[camera], truth.visible[camera] = set(), set()
    shown = [(time_s, *rest) for time_s, *rest in faults_clip.decode(path) if time_s is not None]
    spelt = [(round(time_s * FPS), faults_clip.read(picture)) for time_s, picture, _ in shown]
    truth.first[camera] = next(at - says.number for at, says in spelt if says is not None)
    for time_s, picture, confessed in shown:
        number = round(time_s * FPS) - truth.first[camera]
        if confessed:
            truth.owned_up[camera].add(number)
        if not 0 <= number < len(pictures) or _differs(picture, pictures[number]):
            truth.visible[camera].add(number)


def _differs(picture: Pixels, original: Pixels) -> bool:
    if picture.shape != original.shape:
        return True
    off = np.abs(picture.astype(np.int16) - original.astype(np.int16)).max(2) > VISIBLE_LEVELS
    return bool(off.mean() > VISIBLE_SHARE)


def _flipped(trial: Trial, stem: Path, pictures: list[Pixels]) -> Path:
    """Three packets with a flipped bit or some changed bytes, as a bad disk or link leaves them."""
    path = faults_clip.write(stem.with_suffix(".mp4"), pictures, FPS)
    packets = faults_clip.packets_of(path)
    data = bytearray(path.read_bytes())
    for at, size, _ in trial.rng.sample(list(packets[1:]), 3):
        start = at + trial.rng.randrange(min(8, size - 1), size)
        if trial.rng.random() < 0.5:
            data[start] ^= 1 << trial.rng.randrange(8)
            continue
        for offset in range(start, min(start + trial.rng.randrange(1, 6), at + size)):
            data[offset] ^= trial.rng.randrange(1, 256)
    path.write_bytes(bytes(data))
    return path


def _cut(trial: Trial, stem: Path, pictures: list[Pixels]) -> Path:
    """A transport stream that ends in the middle of a packet."""
    path = faults_clip.write(stem.with_suffix(".ts"), pictures, FPS, form="mpegts")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * trial.rng.uniform(0.4, 0.9))])
    return path


def _resized(trial: Trial, stem: Path, pictures: list[Pixels]) -> Path:
    """A stream whose pictures are larger from some moment on."""
    where = trial.rng.randrange(8, 20)
    larger = [np.ascontiguousarray(np.pad(picture, ((0, 32), (0, 32), (0, 0)))) for picture in pictures]
    return _joined(stem, pictures, larger, where)


def _reformed(trial: Trial, stem: Path, pictures: list[Pixels]) -> Path:
    """A stream whose codec or pixel format changes from some moment on."""
    where = trial.rng.randrange(8, 20)
    change = trial.rng.choice([{"codec": "mpeg2video"}, {"pix_fmt": "yuv422p"}, {"pix_fmt": "yuv444p"}])
    return _joined(stem, pictures, pictures, where, **change)


def _joined(stem: Path, first: list[Pixels], then: list[Pixels], where: int, **change: str) -> Path:
    """Two streams one behind the other in one file, as a camera that was set anew sends them."""
    head = faults_clip.write(stem.with_suffix(".head.ts"), first[:where], FPS, form="mpegts")
    tail = faults_clip.write(
        stem.with_suffix(".tail.ts"), then[where:], FPS, form="mpegts", first_number=where, **change
    )
    path = stem.with_suffix(".ts")
    path.write_bytes(head.read_bytes() + tail.read_bytes())
    return path


def frozen(trial: Trial) -> None:
    """A camera that gives the same picture again and again."""
    fps = 10
    parts = trial.workshop.parts(trial.rng.randrange(2**31), 16)
    still = round(1.6 * fps)
    pictures: list[Pixels] = []
    spelt: list[Spelt] = []
    for number in range(trial.times):
        moving = list(range(number * 8, number * 8 + 8))
        stays = trial.rng.choice(moving)
        for at in moving:
            repeats = still if at == stays else 1
            kind, part = parts[at % len(parts)]
            pictures += [faults_clip.spell(at, kind, part)] * repeats
            spelt += [Spelt(number=at, kind=kind)] * repeats
        trial.injected += 1
    pictures += [faults_clip.spell(9999, *parts[0])]
    spelt += [Spelt(number=9999, kind=parts[0][0])]
    folder = trial.workshop.folder / trial.name
    folder.mkdir(exist_ok=True)
    clip = faults_clip.write(folder / "frozen.mkv", pictures, fps, codec="mjpeg", pix_fmt="yuvj420p")
    since = _frozen_since(spelt, fps)

    def objection(seen: Seen) -> str | None:
        at = seen.index or 0
        if spelt[at].kind is Kind.BAD:
            return f"frame {at} is bad"
        beyond = since[at] > FROZEN_AFTER_S + 0.15
        return f"frame {at} has stood still for {since[at]:.1f} s" if beyond else None

    camera = {"cam1": playing(clip, loop=False, frozen_after_s=FROZEN_AFTER_S)}
    with trial.daemon(camera, objection=objection, warm=False, deadline_ms=DEADLINE_MS) as line:
        trial.must(line.witness.until(lambda: _all_ended(line.witness.beats), 60.0 + len(pictures) / fps), "no end")
        time.sleep(0.2)
    verdicts = line.witness.verdicts
    errors = [seen for seen in verdicts if seen.reason == "frame_frozen"]
    passes = sum(seen.decision == "pass" and since[seen.index or 0] > 0 for seen in verdicts)
    early = sum(since[seen.index or 0] < FROZEN_AFTER_S - 0.15 for seen in errors)
    runs = sum(since[a] > 0 and since[b] == 0 for a, b in pairwise(range(len(since))))
    caught = {_run_of(since, seen.index or 0) for seen in errors}
    trial.must(len(caught) == runs, f"{len(caught)} of {runs} freezes were noticed")
    trial.must(early == 0, f"{early} frames were called frozen before the limit")
    trial.notes.append(
        f"limit {FROZEN_AFTER_S:g} s: {len(errors)} error/frame_frozen; {passes} passes on a repeat before the limit"
    )


def _frozen_since(spelt: list[Spelt], fps: float) -> list[float]:
    """For each frame, how long the picture has stood still."""
    since = [0.0]
    for before, now in pairwise(spelt):
        since.append(since[-1] + 1 / fps if now == before else 0.0)
    return since


def _run_of(since: list[float], index: int) -> int:
    """Where the freeze that a frame belongs to began."""
    while index > 0 and since[index] > 0:
        index -= 1
    return index
