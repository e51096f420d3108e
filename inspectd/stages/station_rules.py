"""How stations are configured, and what follows from that. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from inspectd.recipe import Recipe
from inspectd.records import CameraState, RecipeInfo
from inspectd.settings import Settings
from inspectd.source_settings import DropSource, FileSource, FolderSource

NS_PER_MS = 1e6
SEEN_NS = 50_000_000
"""A part is accepted so soon after its capture, at the latest."""
_RECORDINGS = (FileSource, FolderSource, DropSource)


class Match(StrEnum):
    """How the rows of a station's cameras meet."""

    TRIGGER = "trigger"
    PART_ID = "part_id"
    TIME = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class StationRule:
    """A station as it is configured; the tuples go with its cameras."""

    name: str
    cameras: tuple[str, ...]
    match: Match
    window_ns: int
    offsets_ns: tuple[int, ...]
    deadlines_ns: tuple[int, ...]
    simulated: bool

    @property
    def settle_ns(self) -> int:
        """So long after a part's time nothing can come any more that is too near to it."""
        return max(self.offsets_ns) + 2 * self.window_ns + SEEN_NS if self.match is Match.TIME else 0


def stations_of(settings: Settings, recipes: Mapping[str, Recipe]) -> dict[str, StationRule]:
    """The rules of the configured stations, by name."""
    return {
        name: StationRule(
            name=name,
            cameras=tuple(station.cameras),
            match=Match(station.match),
            window_ns=round((station.window_ms or 0.0) * NS_PER_MS),
            offsets_ns=tuple(round(station.offsets_ms.get(each, 0.0) * NS_PER_MS) for each in station.cameras),
            deadlines_ns=tuple(round(recipes[each].deadline_ms * NS_PER_MS) for each in station.cameras),
            simulated=any(isinstance(settings.cameras[each].source, _RECORDINGS) for each in station.cameras),
        )
        for name, station in settings.stations.items()
    }


def stations_error(settings: Settings, recipes: Mapping[str, Recipe]) -> str | None:
    """Why the stations cannot keep their cameras' deadlines, in one line; None where they can."""
    for name, rule in stations_of(settings, recipes).items():
        needed_ms = (rule.window_ns + SEEN_NS) / NS_PER_MS + settings.publisher.publish_reserve_ms
        for camera in rule.cameras:
            if rule.match is Match.TIME and recipes[camera].deadline_ms <= needed_ms:
                return (
                    f"stations.{name}.window_ms: {rule.window_ns / NS_PER_MS:g} needs deadline_ms above {needed_ms:g}; "
                    f"{recipes[camera].path} has {recipes[camera].deadline_ms:g}"
                )
    return None


def recipe_of(rule: StationRule, recipes: Mapping[str, Recipe]) -> RecipeInfo:
    """What stands for the recipes of a station's cameras: its own name, and a hash over theirs."""
    told = "\n".join(f"{camera} {recipes[camera].sha256}" for camera in rule.cameras)
    return RecipeInfo(name=rule.name, sha256=hashlib.sha256(told.encode()).hexdigest())


def state_of(states: Iterable[CameraState]) -> CameraState:
    """A station's state: it is as its least ready camera is, and ended when all of them are."""
    present = set(states)
    order = (CameraState.STARTING, CameraState.LOST, CameraState.PAUSED, CameraState.READY, CameraState.ENDED)
    return next(state for state in order if state in present)
