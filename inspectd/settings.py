"""`inspectd.toml`: what the daemon is told about this machine. Read once, checked wholly, one line per mistake.

Every setting can be overridden by an environment variable: `INSPECTD_` and the path of the key joined by `__`, such as
`INSPECTD_CAMERAS__CAM1__RECIPE=bottle`. Relative paths are relative to the file they stand in.
"""

from __future__ import annotations

import json
import os
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from inspectd.errors import ConfigError
from inspectd.records import TriggerKind
from inspectd.source_settings import (
    DropSource,
    FileSource,
    FolderSource,
    GenicamSource,
    MjpegSource,
    RtspSource,
    Source,
)
from inspectd.toml import Strict, mistaken_key, one_line, read_toml, unknown_key

CAMERA_NAME = r"[a-z0-9_-]{1,32}"
CameraName = Annotated[str, Field(pattern=rf"^{CAMERA_NAME}$")]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    bracketed = re.fullmatch(r"\[(.+:.*)\]", host)
    try:
        return IPv6Address(bracketed[1]).is_loopback if bracketed else IPv4Address(host).is_loopback
    except ValueError:
        return False


def _place(address: str) -> str:
    """One way to write an endpoint, for all ways that mean the same."""
    if address.startswith("ipc://"):
        return os.path.normpath(address.removeprefix("ipc://"))
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return f"{ip_address('127.0.0.1' if host == 'localhost' else host.strip('[]'))}:{int(port)}"


class Endpoints(Strict):
    """`[endpoints]`: where the outside meets the daemon (contract §2)."""

    verdicts: str = "tcp://127.0.0.1:5550"
    """XPUB: verdicts, heartbeats, events. `tcp://host:port` or `ipc:///absolute/path`."""
    control: str = "tcp://127.0.0.1:5551"
    """ROUTER: requests. `tcp://host:port` or `ipc:///absolute/path`."""
    metrics: str = "127.0.0.1:9550"
    """HTTP `host:port` of /metrics, /healthz and /readyz; empty for none."""

    @field_validator("verdicts", "control")
    @classmethod
    def _zeromq(cls, value: str) -> str:
        if re.fullmatch(r"ipc:///[^\0]+", value):
            return value
        match = re.fullmatch(r"tcp://(?P<host>.+):(?P<port>[0-9]+)", value)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise ValueError("expected tcp://HOST:PORT with a port from 1 to 65535, or ipc:///absolute/path")
        if not _is_loopback(match["host"]):
            raise ValueError("anything but loopback needs CURVE keys; use 127.0.0.1, [::1] or ipc:///absolute/path")
        return value

    @field_validator("metrics")
    @classmethod
    def _http(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (_is_loopback(host) and re.fullmatch(r"[0-9]+", port) and 0 < int(port) < 65536):
            raise ValueError(
                "expected 127.0.0.1:PORT or [::1]:PORT with a port from 1 to 65535, or an empty string for none"
            )
        return value

    @model_validator(mode="after")
    def _apart(self) -> Endpoints:
        taken: dict[str, str] = {}
        for key, address in {"verdicts": self.verdicts, "control": self.control, "metrics": self.metrics}.items():
            if address and (other := taken.setdefault(_place(address), key)) != key:
                raise ValueError(f"{other} and {key} have one address, {getattr(self, other)}; each needs its own")
        return self


class TriggerSettings(Strict):
    """`[cameras.NAME.trigger]`: which frames become verdicts (contract §4)."""

    kind: Literal["continuous", "presence", "external"] = "continuous"
    every_nth: int = Field(default=1, ge=1)
    """`continuous`: every n-th frame."""
    max_fps: float | None = Field(default=None, ge=1e-6)
    """`continuous`: at most so many inspections a second."""
    when_full: Literal["skip", "answer"] = "skip"
    """A frame that finds the ring full is skipped before acceptance, or accepted and answered `error/overload`."""
    zone_xywh_px: tuple[int, int, int, int] | None = None
    """`presence`: the zone that a part must enter and be centred in; default: the recipe's region."""
    min_part_share: float = Field(default=0.03, gt=0, lt=1)
    """`presence`: the smallest part, as a share of the zone's area."""
    contrast_levels: float = Field(default=18.0, gt=0, le=255)
    """`presence`: grey levels by which a part differs from the empty belt."""

    @model_validator(mode="after")
    def _kind_only(self) -> TriggerSettings:
        kind = TriggerKind(self.kind)
        if kind is not TriggerKind.CONTINUOUS and (self.every_nth != 1 or self.max_fps is not None):
            raise ValueError(f'every_nth and max_fps are for kind = "continuous", not "{kind}"')
        if kind is not TriggerKind.PRESENCE and self.zone_xywh_px is not None:
            raise ValueError(f'zone_xywh_px is for kind = "presence", not "{kind}"')
        return self


class Camera(Strict):
    """`[cameras.NAME]`: one camera, its recipe and its trigger."""

    source: Source
    recipe: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """The name of a file `NAME.toml` in `recipes_dir`."""
    trigger: TriggerSettings = TriggerSettings()
    frozen_tolerance_levels: int = Field(default=0, ge=0, le=64)
    """With `frozen_after_s`: a picture no pixel of which differs by more grey levels from the one that the freeze began
    with is the same. 0: equal to the bit; above the sensor's noise living pictures would be taken for frozen."""
    slots: int = Field(default=8, ge=2, le=256)
    """Frames that may wait in shared memory."""


class Station(Strict):
    """`[stations.NAME]`: several cameras look at one part; beside their own verdicts one for all of them goes out."""

    cameras: list[CameraName] = Field(min_length=2, max_length=8)
    match: Literal["trigger", "part_id", "time"]
    """How frames of one part are told: by the trigger that went to the station, by the part's own id, or by time."""
    window_ms: float | None = Field(default=None, gt=0, le=10_000)
    """`time`: frames of one part are apart by at most so much; parts follow each other at more than twice as much."""
    offsets_ms: dict[CameraName, Annotated[float, Field(ge=0, le=600_000)]] = Field(default_factory=dict)
    """`time`: how much later than at the first camera a part is at this one; default: 0."""

    @model_validator(mode="after")
    def _agree(self) -> Station:
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError("cameras: expected different ones")
        if (self.match == "time") != (self.window_ms is not None):
            raise ValueError('window_ms goes with match = "time", and only with it')
        strange = sorted(set(self.offsets_ms) - set(self.cameras))
        if strange or (self.offsets_ms and self.match != "time"):
            raise ValueError('offsets_ms: expected cameras of this station, with match = "time"')
        return self

    def error(self, cameras: dict[str, Camera]) -> str | None:
        """Why the station cannot be had with these cameras; None where it can."""
        unknown = [name for name in self.cameras if name not in cameras]
        if unknown:
            return f"cameras: no camera {unknown[0]!r}; there are {', '.join(cameras)}"
        wanted = "presence" if self.match == "time" else "external"
        for name in self.cameras:
            kind = cameras[name].trigger.kind
            if kind != wanted:
                return f'match: "{self.match}" needs trigger.kind = "{wanted}"; cameras.{name} has "{kind}"'
            if self.match == "time" and getattr(cameras[name].source, "pace", "realtime") == "fast":
                return f'match: "time" needs frames in real time; cameras.{name} has source.pace = "fast"'
        return None


class Worker(Strict):
    """`[worker]`: the process that runs the model."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = "auto"
    max_batch: int = Field(default=8, ge=1, le=256)
    max_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    """How long the oldest frame waits for others to fill the batch; what comes while the model runs fills it anyway."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """CPU threads of the model; default: all cores."""
    fused: bool = True
    """On a GPU: recorded passes and kernels of our own, each proved at start; false: torch's own launches."""


class JournalSettings(Strict):
    """`[journal]`: what is kept of every verdict."""

    strict_audit: bool = False
    """Verdicts that cannot be journaled become `error/internal` instead of going out with `journaled: false`."""
    keep_days: float = Field(default=90.0, gt=0, le=36_500)
    """Older verdicts are pruned."""
    spill_mb: float = Field(default=16.0, ge=1, le=1024)
    """Shared memory for what goes out before it is journaled, so that not even the publisher's death takes it away."""


class Evidence(Strict):
    """`[evidence]`: pictures of what was judged, in `evidence/SESSION/CAMERA/SEQ.jpg` in `state_dir`."""

    quota_mb: float = Field(default=0.0, ge=0, le=10_000_000)
    """Disk space that they may take; the oldest go first. 0 keeps none."""
    decisions: tuple[Literal["pass", "fail", "error"], ...] = ("fail", "error")
    """Which verdicts leave a picture; an error does where there was a frame to look at."""
    every_nth_pass: int | None = Field(default=None, ge=1)
    """Every n-th pass of a camera leaves one too."""
    format: Literal["jpeg", "png"] = "jpeg"
    heatmap: bool = False
    """Blend the anomaly map in; without it the picture is what the camera gave, cut to the recipe's region."""


class Publisher(Strict):
    """`[publisher]`: the process that answers."""

    publish_reserve_ms: float = Field(default=20.0, ge=1, le=1000)
    """A verdict that is not there so long before its deadline is answered `error`."""
    preview_fps: float = Field(default=2.0, gt=0, le=30)


class Weights(Strict):
    """`[weights]`: where model weights are found."""

    dir: Path | None = None
    """A folder with weights fetched by `inspectd weights fetch`; default: `weights` in `state_dir`."""


class Log(Strict):
    """`[log]`: the daemon's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Environment(EnvSettingsSource):
    """The `INSPECTD_…` variables; those whose names begin with `INSPECTD_TEST_` belong to tests."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """JSON as what it says; what is none as it is, to be refused as any other wrong value of that key."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value

    @staticmethod
    def paths() -> dict[str, list[str]]:
        """The variables, and the path of the key that each sets."""
        paths = {name: name.lower().removeprefix("inspectd_").split("__") for name in os.environ}
        return {
            name: path
            for name, path in paths.items()
            if name.lower().startswith("inspectd_") and not name.lower().startswith("inspectd_test_")
        }

    @staticmethod
    def origin(key: str, tables: dict[str, Any]) -> str | None:
        """The variable that a dotted key, or something in it, came by; None where it is of the file's tables."""
        wanted = key.split(".")
        for name, path in Environment.paths().items():
            inner = path[: len(wanted)] == wanted and not (len(path) > len(wanted) and _lies_in(tables, wanted))
            if inner or (wanted[: len(path)] == path and _lies_in(_json(os.environ[name]), wanted[len(path) :])):
                return name
        return None


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _lies_in(tables: Any, path: list[str]) -> bool:
    """Whether tables hold something at a path; what is no table holds all that may be asked for."""
    for key in path:
        if not isinstance(tables, dict):
            return True
        if key not in tables:
            return False
        tables = tables[key]
    return True


class Settings(BaseSettings):
    """The whole file. `load_settings` is the way in."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="INSPECTD_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )
    paths: ClassVar[tuple[str, ...]] = ("state_dir", "runtime_dir", "recipes_dir")

    state_dir: Path = Path("/var/lib/inspectd")
    """The journal, caches and evidence; one daemon at a time."""
    runtime_dir: Path | None = None
    """Sockets between the processes; default: `run` in `state_dir`. Keep it short (a socket path has 107 bytes)."""
    recipes_dir: Path = Path("recipes")
    endpoints: Endpoints = Endpoints()
    cameras: dict[CameraName, Camera] = Field(min_length=1, max_length=64)
    stations: dict[CameraName, Station] = Field(default={}, max_length=32)
    worker: Worker = Worker()
    publisher: Publisher = Publisher()
    journal: JournalSettings = JournalSettings()
    evidence: Evidence = Evidence()
    weights: Weights = Weights()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats the file; nothing else is read."""
        del env_settings, dotenv_settings, file_secret_settings
        return Environment(settings_cls), init_settings

    @model_validator(mode="after")
    def _stations_fit(self) -> Settings:
        taken: dict[str, str] = {}
        for name, station in self.stations.items():
            if name in self.cameras:
                raise ValueError(f"stations.{name}: a camera has that name; verdicts of both would have one topic")
            error = station.error(self.cameras)
            if error is not None:
                raise ValueError(f"stations.{name}.{error}")
            for camera in station.cameras:
                if taken.setdefault(camera, name) != name:
                    raise ValueError(f"stations.{name}.cameras: {camera} belongs to stations.{taken[camera]} already")
        return self

    @property
    def sockets_dir(self) -> Path:
        """Where the ipc sockets between the processes live."""
        return self.runtime_dir or self.state_dir / "run"

    @property
    def weights_dir(self) -> Path:
        """Where fetched weights lie."""
        return self.weights.dir or self.state_dir / "weights"

    @property
    def evidence_dir(self) -> Path:
        """Where pictures are kept."""
        return self.state_dir / "evidence"

    @property
    def cache_dir(self) -> Path:
        """Where text and reference embeddings are kept."""
        return self.state_dir / "cache"

    def recipe_path(self, camera: str) -> Path:
        """The recipe file of a camera."""
        return self.recipes_dir / f"{self.cameras[camera].recipe}.toml"


def load_settings(path: Path) -> Settings:
    """Reads and checks `inspectd.toml`.

    Raises:
        ConfigError: one line that names the file, the key and what is allowed.
    """
    base = path.resolve().parent
    tables = read_toml(path)
    for variable, (first, *_) in Environment.paths().items():
        if first not in Settings.model_fields:
            known = unknown_key(first, list(Settings.model_fields))
            raise ConfigError(f"{variable}: {known}; two underscores lead from a table to its key")
    for key in tables:
        if key.startswith("_"):  # pydantic-settings takes it for a keyword argument of its own
            raise ConfigError(f"{path}: {key}: {unknown_key(key, list(Settings.model_fields))}")
    try:
        settings = Settings(**tables)
    except ValidationError as error:
        origin = Environment.origin(mistaken_key(error), tables) or path
        raise ConfigError(f"{origin}: {one_line(error, Settings)}") from error
    return _anchored(settings, base)


def _anchored(settings: Settings, base: Path) -> Settings:
    """The same settings with every relative path made absolute from `base`."""

    def anchor(path: Path) -> Path:
        return Path(os.path.normpath(base / path.expanduser()))

    state_dir = anchor(settings.state_dir)

    def anchored(name: str, source: Source) -> Source:
        """Where a source has files."""
        match source:
            case FileSource() | FolderSource():
                return source.model_copy(update={"path": anchor(source.path)})
            case GenicamSource(producers=producers):
                return source.model_copy(update={"producers": tuple(anchor(each) for each in producers)})
            case DropSource(index=index):
                index = state_dir / "drop" / name if index is None else anchor(index)
                return source.model_copy(update={"path": anchor(source.path), "index": index})
            case RtspSource(password_file=Path() as file) | MjpegSource(password_file=Path() as file):
                return source.model_copy(update={"password_file": anchor(Path(os.path.expandvars(file)))})
            case _:
                return source

    cameras = {
        name: camera.model_copy(update={"source": anchored(name, camera.source)})
        for name, camera in settings.cameras.items()
    }
    update: dict[str, Any] = {"cameras": cameras}
    update |= {key: anchor(value) for key in Settings.paths if (value := getattr(settings, key)) is not None}
    if settings.weights.dir is not None:
        update["weights"] = settings.weights.model_copy(update={"dir": anchor(settings.weights.dir)})
    return settings.model_copy(update=update)
