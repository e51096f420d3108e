"""What `inspectd check` looks at. Each look gives findings, and one that fails does not keep the others from theirs."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from inspectd.detect.build import build_detector
from inspectd.detect.weights import find
from inspectd.errors import ConfigError, InspectdError
from inspectd.inspection import Inspector, inspection_error
from inspectd.quality import Look
from inspectd.quality import look as look_at
from inspectd.recipe import Recipe, load_recipe
from inspectd.records import PixelsU8
from inspectd.settings import Settings
from inspectd.source_settings import GenicamSource, Source, V4l2Source
from inspectd.sources.grabbing import grab
from inspectd.sources.open import probe
from inspectd.sources.presence import presence_error
from inspectd.stages.state import segment_prefix
from inspectd.stages.station_rules import stations_error
from inspectd.transport.memory import held_bytes
from inspectd.transport.pipes import require_short_paths
from inspectd.transport.sockets import SOCKET_PATH_BYTES

MOST_GRABS = 6
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the table. `detail` is what was found, or in one line what is wrong and what is allowed."""

    what: str
    subject: str
    right: bool
    detail: str
    warns: bool = False
    """Right as it stands, and yet something to think of."""

    def as_dict(self) -> dict[str, str | bool]:
        """For `--json`."""
        return asdict(self)


def look(settings: Settings) -> Iterator[Finding]:
    """Yields findings on everything that the daemon will need."""
    pid = running_pid(settings.state_dir)
    yield _try("state", str(settings.state_dir), lambda: _state_dir(settings.state_dir))
    if pid is not None:
        yield Finding(what="daemon", subject=str(settings.state_dir), right=True, detail=f"running with pid {pid}")
    yield _try("sockets", str(settings.sockets_dir), lambda: _sockets_dir(settings))
    yield from _endpoints(settings, pid)
    frames: dict[str, PixelsU8] = {}
    yield from _cameras(settings, pid, frames)
    yield from _unknown_lags(settings)
    if _all_known(settings):
        yield _try("memory", str(SHARED_MEMORY), lambda: _shared_memory(settings))
    yield from _stations(settings)
    for recipe_name in sorted({camera.recipe for camera in settings.cameras.values()}):
        yield from _recipe(settings, recipe_name, frames)


def _all_known(settings: Settings) -> bool:
    """Whether the size of every camera's frames is known; of a camera that is off it is."""
    with suppress(ConfigError):
        return all(probe(camera.source) for camera in settings.cameras.values())
    return False


def running_pid(state_dir: Path) -> str | None:
    """The pid of the daemon that holds the state folder, None where there is none."""
    try:
        with (state_dir / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(32).strip() or "unknown"
    except OSError:
        return None
    return None


def _try(what: str, subject: str, find_out: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, subject=subject, right=True, detail=find_out())
    except InspectdError as error:
        return Finding(what=what, subject=subject, right=False, detail=str(error))


# -- the machine ------------------------------------------------------------------------------------------------------


def _state_dir(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free_gb = shutil.disk_usage(existing).free / 1e9
    except OSError as error:
        raise ConfigError(f"state_dir {folder}: {existing} cannot be written: {error.strerror or error}") from error
    return f"writable, {free_gb:.1f} GB free" if existing == folder else f"will be made, {free_gb:.1f} GB free"


def _sockets_dir(settings: Settings) -> str:
    require_short_paths(settings.sockets_dir)
    return "short enough for socket paths"


def _shared_memory(settings: Settings) -> str:
    needed = sum(
        width * height * 3 * camera.slots
        for camera in settings.cameras.values()
        for width, height in [probe(camera.source).size_wh_px]
    )
    free = shutil.disk_usage(SHARED_MEMORY).free + held_bytes(segment_prefix(settings.state_dir))  # swept at the start
    if needed > free:
        raise ConfigError(
            f"{SHARED_MEMORY}: frames need {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; lower cameras.*.slots"
        )
    return f"{needed / 1e6:.0f} MB for frames, {free / 1e6:.0f} MB free"


def _endpoints(settings: Settings, pid: str | None) -> Iterator[Finding]:
    endpoints = settings.endpoints
    addresses = {"verdicts": endpoints.verdicts, "control": endpoints.control}
    if endpoints.metrics:
        addresses["metrics"] = f"tcp://{endpoints.metrics}"
    for name, address in addresses.items():
        yield _try("endpoint", f"{name} {address}", lambda a=address, n=name: _endpoint(n, a, pid))  # type: ignore[misc]


def _endpoint(name: str, address: str, pid: str | None) -> str:
    kind, _, place = address.partition("://")
    held = _ipc_is_held(Path(place)) if kind == "ipc" else _tcp_is_held(place)
    if not held:
        return "free"
    if pid is None:
        raise ConfigError(f"endpoints.{name}: {address} is held by another program; stop it or choose another")
    return f"held by the running inspectd (pid {pid})"


def _tcp_is_held(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probing:
            probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probing.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise ConfigError(f"tcp://{place}: cannot be bound: {error.strerror or error}") from error
    return False


def _ipc_is_held(path: Path) -> bool:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise ConfigError(f"ipc://{path}: a socket path has at most {SOCKET_PATH_BYTES} bytes")
    if not path.parent.is_dir():
        raise ConfigError(f"ipc://{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"ipc://{path}: the folder {path.parent} cannot be written")
    with socket.socket(socket.AF_UNIX) as probing:
        return probing.connect_ex(str(path)) == 0


# -- cameras ----------------------------------------------------------------------------------------------------------


def _cameras(settings: Settings, pid: str | None, frames: dict[str, PixelsU8]) -> Iterator[Finding]:
    """Takes a frame of every camera into `frames`, of several at a time."""
    with ThreadPoolExecutor(max_workers=MOST_GRABS) as pool:

        def find(name: str) -> Finding:
            return _try("camera", name, lambda: _camera(settings.cameras[name].source, name, pid, frames))

        yield from pool.map(find, settings.cameras)


def _camera(source: Source, name: str, pid: str | None, frames: dict[str, PixelsU8]) -> str:
    """Takes one frame of a camera; one that only one program may have is left to the running daemon."""
    if pid is not None and isinstance(source, V4l2Source | GenicamSource):
        return f"{source.kind}: held by the running inspectd (pid {pid})"
    grabbed = grab(source)
    if grabbed is None:
        return f"{source.kind}: no image yet"
    frames[name] = grabbed.pixels_bgr
    return f"{source.kind} {grabbed}"


def _unknown_lags(settings: Settings) -> Iterator[Finding]:
    """Warns of cameras whose triggers may get a frame that was exposed just before them."""
    for name, camera in settings.cameras.items():
        source = camera.source
        if camera.trigger.kind != "external" or getattr(source, "exposure_lag_ms", 0.0) is not None:
            continue
        counts, lag = "without RTCP a frame counts as exposed when it arrives", "how long frames are under way"
        if isinstance(source, V4l2Source):
            counts, lag = "a frame counts as exposed when its driver stamps it", "how long before that it is"
        elif isinstance(source, GenicamSource):
            counts, lag = "the quickest frame counts as exposed when it arrives", "how long readout and transfer take"
        detail = (
            f"cameras.{name}.source.exposure_lag_ms is not set: {counts}, and a trigger may get one exposed shortly "
            f"before it; set {lag}"
        )
        yield Finding(what="trigger", subject=name, right=True, detail=detail, warns=True)


# -- recipes ----------------------------------------------------------------------------------------------------------


def _recipe(settings: Settings, name: str, frames: dict[str, PixelsU8]) -> Iterator[Finding]:
    path = settings.recipes_dir / f"{name}.toml"
    loaded: list[Recipe] = []

    def load() -> str:
        loaded.append(load_recipe(path))
        for camera in (camera for camera in frames if _uses(settings, camera, name)):
            height, width = frames[camera].shape[:2]
            size = width, height
            error = inspection_error(loaded[0], size) or presence_error(settings, camera, loaded[0], size)
            if error is not None:
                raise ConfigError(error)
        return _thresholds(loaded[0])

    yield _try("recipe", name, load)
    if not loaded:
        return
    recipe = loaded[0]
    if (references := recipe.references) is not None:
        yield _try("references", name, lambda: f"{len(recipe.reference_paths)} images in {references.folder}")
    weights = _try("weights", name, lambda: _weights(settings, recipe))
    yield weights
    if weights.right:
        shown = [frames[camera] for camera in settings.cameras if _uses(settings, camera, name) and camera in frames]
        yield _try("model", name, lambda: _model(settings, recipe, shown))


def _stations(settings: Settings) -> Iterator[Finding]:
    """Whether the cameras' recipes leave the stations their time; one that cannot be read has a row of its own."""
    try:
        recipes = {name: load_recipe(settings.recipe_path(name)) for name in settings.cameras}
    except ConfigError:
        return
    if settings.stations:
        error = stations_error(settings, recipes)
        detail = error or "their cameras' deadlines leave them time"
        yield Finding(what="stations", subject=", ".join(settings.stations), right=error is None, detail=detail)


def _uses(settings: Settings, camera: str, recipe: str) -> bool:
    return settings.cameras[camera].recipe == recipe


def _thresholds(recipe: Recipe) -> str:
    objects = ", ".join(recipe.objects)
    figures = f"threshold {recipe.threshold:.4f}, pixel threshold {recipe.pixel_threshold:.4f}"
    if recipe.calibration is None:
        return f"{objects}: {figures}, stated"
    return f"{objects}: {figures}, measured on {recipe.calibration.good} good and {recipe.calibration.bad} bad"


def _weights(settings: Settings, recipe: Recipe) -> str:
    model = recipe.model
    found = find(model.backbone, model.pretrained, settings.weights_dir, file=model.weights, config=model.config)
    found.verify()
    return f"{found.architecture.name}, {found.path}, sha256 {found.sha256()[:12]}…"


def _model(settings: Settings, recipe: Recipe, shown: list[PixelsU8]) -> str:
    """Builds the model as the worker will, and inspects the first frame of each of its cameras."""
    worker = settings.worker
    cache_dir = settings.cache_dir if os.access(settings.state_dir, os.W_OK) else None
    detector = build_detector(
        recipe,
        weights_dir=settings.weights_dir,
        device=worker.device,
        precision=worker.precision,
        cache_dir=cache_dir,
        threads=worker.threads or os.cpu_count(),
    )
    inspector = Inspector(recipe, detector)
    recipe.require_model(inspector.identity.sha256)
    detail = f"{inspector.identity.detector} {inspector.identity.precision}, model {inspector.identity.sha256[:12]}…"
    for pixels_bgr in shown:
        inspector.inspect([pixels_bgr])  # warm
        started_s = time.monotonic()
        inspection = inspector.inspect([pixels_bgr])[0]
        taken_ms = (time.monotonic() - started_s) * 1000
        view = inspector.crop(pixels_bgr).view
        seen = look_at(view.box(pixels_bgr), view.roi)
        why = f" ({inspection.detail})" if inspection.detail else ""
        detail += f"; first frame {inspection.decision}{why} in {taken_ms:.0f} ms, {_light(seen)} in its region"
    return detail


def _light(seen: Look) -> str:
    """What `[quality]` of a recipe limits."""
    return f"brightness {seen.brightness:.0f}, clipped {seen.clipped_share:.1%}, sharpness {seen.sharpness:.0f}"
