"""What every row works with: the clip, its truth, the recipe, and what the daemon says where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import faults_clip
import numpy as np
from faults_clip import STRIP_PX, Kind, Pixels
from faults_daemon import ROOT, START_S, Daemon
from faults_tally import LoopTruth
from faults_witness import Witness

DEMO = ROOT / "inspectd" / "demo"
CAMERAS = ("cam1", "cam2", "cam3", "cam4")
FRAMES = 24
"""Of the clip that plays again and again."""
LOAD = 0.65
"""The share of the machine's frames a second that the cameras give together: what is left is for the faults."""
MOST_FPS = 25.0
DEADLINE_MS = 1500
PATIENT_MS = 6000
"""The deadline where something is stopped and goes on again."""
RECIPE = """object = "hex nut"
deadline_ms = {deadline_ms}
[model]
backbone = "inspectd-demo"
config = "{demo}/model.json"
weights = "{demo}/model.safetensors"
[detector]
scales = [2]
[decision]
threshold = 0.5  # on parts of other seeds the good ones stay below 0.1, the bad ones above 0.98
pixel_threshold = 0.7
[region]
polygon_px = [[0, 32], [240, 32], [240, 272], [0, 272]]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every row needs: the clip, its truth, and what the model says of it where nothing is wrong.

    Attributes:
        fps: of each camera, so that all together load the machine.
        excused: frames that the model misjudges without any fault; a pass on them says nothing.
    """

    folder: Path
    clip: Path
    kinds: tuple[Kind, ...]
    scores: Mapping[int, float]
    excused: frozenset[int]
    carried_fps: float
    fps: float

    @property
    def embeddings(self) -> Path:
        """What the first daemon kept of the prompts: the others start with it, as any second start does."""
        return self.folder / "baseline" / "state" / "cache"

    @property
    def truth(self) -> LoopTruth:
        return LoopTruth(kinds=self.kinds, scores=self.scores, excused=self.excused)

    def parts(self, seed: int, count: int) -> list[tuple[Kind, Pixels]]:
        """Parts of the clip in another order."""
        shown = [picture[STRIP_PX:] for _, picture, _ in faults_clip.decode(self.clip)]
        order = np.random.default_rng(seed).permutation(len(shown))[:count]
        return [(self.kinds[number], shown[number]) for number in order]

    @property
    def margin(self) -> tuple[float, float]:
        """The highest score of a good part and the lowest of a bad one."""
        by_kind = {kind: [self.scores[n] for n, own in enumerate(self.kinds) if own is kind] for kind in Kind}
        return max(by_kind[Kind.GOOD]), min(by_kind[Kind.BAD])


def prepare(folder: Path, seed: int, *, fps: float | None = None) -> Workshop:
    """Renders the clip, reads its truth back from its pixels, and runs the daemon on it once with nothing wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "workshop.json"
    if kept.exists() and (facts := json.loads(kept.read_text()))["seed"] == seed:
        return _workshop(folder, facts)
    parts = faults_clip.render(seed, FRAMES)
    pictures = [faults_clip.spell(number, kind, part) for number, (kind, part) in enumerate(parts)]
    clip = faults_clip.write(folder / "baseline.mp4", pictures, 25)
    scores, carried_fps = _baseline(folder, clip)
    fps = fps or min(MOST_FPS, max(1.0, round(LOAD * carried_fps / len(CAMERAS), 1)))
    for name, rate in (("belt", fps), ("half", fps / 2), ("triple", 3 * fps / LOAD)):
        faults_clip.write(folder / f"{name}.mp4", pictures, rate)
    facts = {"seed": seed, "scores": scores, "carried_fps": carried_fps, "fps": fps}
    kept.write_text(json.dumps(facts))
    return _workshop(folder, facts)


def _workshop(folder: Path, facts: dict[str, object]) -> Workshop:
    kinds = tuple(faults_clip.kinds_of(folder / "belt.mp4"))
    scores = {int(number): float(score) for number, score in dict(facts["scores"]).items()}  # type: ignore[call-overload]
    wrong = {number for number, kind in enumerate(kinds) if (scores[number] >= 0.5) is not (kind is Kind.BAD)}
    return Workshop(
        folder=folder,
        clip=folder / "belt.mp4",
        kinds=kinds,
        scores=scores,
        excused=frozenset(wrong),
        carried_fps=float(facts["carried_fps"]),  # type: ignore[arg-type]
        fps=float(facts["fps"]),  # type: ignore[arg-type]
    )


def _baseline(folder: Path, clip: Path) -> tuple[dict[int, float], float]:
    """Scores by number, and the frames a second that this machine carries with the cameras beside the model.

    Raises:
        RuntimeError: a frame got no verdict of the model.
    """
    camera = f'source = {{ kind = "file", path = "{clip}", pace = "fast" }}'
    daemon = Daemon(folder / "baseline", config_of(dict.fromkeys(CAMERAS, camera)), recipe_of())
    witness = Witness(daemon.verdicts, daemon.control)
    try:
        daemon.start()
        done = witness.until(lambda: len(witness.verdicts) == FRAMES * len(CAMERAS), START_S)
        verdicts = list(witness.verdicts)
        daemon.stop()
    finally:
        daemon.remove()
        witness.close()
    if not done or not all(seen.judged for seen in verdicts):
        raise RuntimeError(f"the baseline ended with {len(verdicts)} verdicts: see {daemon.folder / 'log'}")
    times = sorted(seen.at_s for seen in verdicts if seen.at_s is not None)
    scores = {seen.index: seen.score for seen in verdicts if seen.index is not None and seen.score is not None}
    return dict(sorted(scores.items())), (len(times) - 1) / (times[-1] - times[0])


def recipe_of(deadline_ms: float = DEADLINE_MS) -> str:
    return RECIPE.format(demo=DEMO, deadline_ms=deadline_ms)


def config_of(cameras: Mapping[str, str], more: str = "", worker: str = "") -> str:
    """The text of a configuration from the lines of each camera."""
    lines = [more, '[worker]\ndevice = "cpu"\nprecision = "fp32"\nthreads = 1', worker]
    return "\n".join(lines + [f'[cameras.{name}]\nrecipe = "part"\n{text}' for name, text in cameras.items()])


def playing(clip: Path, *, loop: bool = True, more: str = "", **settings: object) -> str:
    """The lines of a camera that plays a clip in real time."""
    extra = "".join(f", {key} = {json.dumps(value)}" for key, value in settings.items())
    source = f'source = {{ kind = "file", path = "{clip}", loop = {json.dumps(loop)}{extra} }}\n'
    return source + more
