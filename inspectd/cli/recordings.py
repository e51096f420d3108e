"""`inspectd replay` and `inspectd calibrate`: a recipe's model on recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inspectd.cli.options import ModelConfig, weights_dir, worker_settings
from inspectd.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from inspectd.calibration import Thresholds
    from inspectd.inspection import Inspector
    from inspectd.recipe import Calibration, Recipe
    from inspectd.records import PixelsU8

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's TOML file.")]
Presence = Annotated[
    bool,
    typer.Option("--presence", help="Of videos take one frame a part, when it is centred in the recipe's region."),
]
WeightsFolder = Annotated[Path | None, typer.Option("--weights-dir", metavar="DIR", help="Where weights lie.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionName = Annotated[str | None, typer.Option("--precision", help="auto, fp32, tf32, bf16, fp16 or int8.")]


def calibrate(
    recipe_file: RecipeFile,
    *,
    good: Annotated[list[Path], typer.Option("--good", metavar="PATH", help="Good parts: images, folders, videos.")],
    bad: Annotated[
        list[Path] | None, typer.Option("--bad", metavar="PATH", help="Bad parts: images, folders, videos.")
    ] = None,
    target_false_reject_rate: Annotated[
        float, typer.Option("--target-false-reject-rate", min=0.0001, max=0.5, help="Good parts that may fail.")
    ] = 0.01,
    presence: Presence = False,
    config: ModelConfig = None,
    weights: WeightsFolder = None,
    device: Device = None,
    precision: PrecisionName = None,
) -> None:
    """Measures the thresholds of a recipe and writes them beside it, together with the hash of the very model."""
    from rich.console import Console

    from inspectd.calibration import calibrate as measure
    from inspectd.calibration import write_calibration
    from inspectd.recipe import load_recipe

    recipe = load_recipe(recipe_file, require_thresholds=False)
    if recipe.decision.threshold is not None:
        raise ConfigError(f"{recipe.path}: decision.threshold: stands here; delete it to have it measured")
    inspector = _inspector(recipe, config, weights, device, precision)
    good_parts, bad_parts = (_parts(paths, recipe, presence=presence) for paths in (good, bad or []))
    with Console(stderr=True).status("measuring") as status:
        calibration, found = measure(
            inspector,
            good_parts,
            bad_parts,
            target_false_reject_rate,
            progress=lambda done: status.update(f"measuring: {done} parts"),
        )
    path = write_calibration(recipe, calibration)
    _show(found, calibration, target_false_reject_rate)
    typer.echo(f"written to {path}")


def replay(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Videos, or folders of images.")],
    *,
    recipe_file: Annotated[Path, typer.Option("--recipe", metavar="FILE", help="The recipe's TOML file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for what is written.")],
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="DIR", help="Compare with an earlier replay's folder.")
    ] = None,
    presence: Presence = False,
    every_nth: Annotated[int, typer.Option("--every-nth", min=1, help="Only every n-th frame.")] = 1,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Write annotated pictures.")] = True,
    config: ModelConfig = None,
    weights: WeightsFolder = None,
    device: Device = None,
    precision: PrecisionName = None,
) -> None:
    """Inspects recordings: verdicts, masks, annotated pictures and a report. Exits 1 if any verdict flips."""
    from rich.console import Console
    from rich.markdown import Markdown

    from inspectd.evaluation.replay import replay as run_replay
    from inspectd.evaluation.report import markdown
    from inspectd.recipe import load_recipe
    from inspectd.settings import TriggerSettings

    if presence and every_nth != 1:
        raise typer.BadParameter("give --presence or --every-nth, not both")
    trigger = TriggerSettings(kind="presence") if presence else TriggerSettings(every_nth=every_nth)
    inspector = _inspector(load_recipe(recipe_file), config, weights, device, precision)
    flipped = False
    for path, folder, before in _places(paths, out, baseline):
        with _bar(path) as progress:
            done = run_replay(
                inspector, path, folder, trigger=trigger, baseline=before, pictures=pictures, progress=progress
            )
        Console().print(Markdown(markdown(done.summary, done.comparison)))
        typer.echo(f"written to {done.out_dir}")
        flipped = flipped or done.flipped
    if flipped:
        raise typer.Exit(ExitCode.FOUND_WRONG)


def _places(paths: list[Path], out: Path, baseline: Path | None) -> Iterator[tuple[Path, Path, Path | None]]:
    """Each recording with its folder and that of its baseline: `out` itself for one, a folder each for several."""
    from inspectd.evaluation.replay import camera_of

    names = [camera_of(path) for path in paths]
    if len(paths) == 1:
        yield paths[0], out, baseline
    elif len(set(names)) < len(names):
        raise typer.BadParameter("several recordings have the same name; replay them one by one")
    else:
        for path, name in zip(paths, names, strict=True):
            yield path, out / name, None if baseline is None else baseline / name


@contextmanager
def _bar(path: Path) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error; what it gives takes the frames read and how many there are."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(path.name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _inspector(
    recipe: Recipe, config: Path | None, weights: Path | None, device: str | None, precision: str | None
) -> Inspector:
    """The recipe's model as the daemon would build it."""
    from inspectd.detect.build import build_detector
    from inspectd.inspection import Inspector
    from inspectd.settings import load_settings

    settings = None if config is None else load_settings(config)
    worker = worker_settings(settings, device, precision)
    detector = build_detector(
        recipe,
        weights_dir=weights_dir(weights, settings),
        device=worker.device,
        precision=worker.precision,
        threads=worker.threads,
    )
    return Inspector(recipe, detector)


def _parts(paths: list[Path], recipe: Recipe, *, presence: bool) -> Iterator[tuple[PixelsU8, ...]]:
    from inspectd.evaluation.recordings import parts_of

    for path in paths:
        for frames in parts_of(path, recipe, presence=presence):
            yield tuple(frame.pixels_bgr for frame in frames)


def _show(found: Thresholds, calibration: Calibration, target: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", show_header=False)
    table.add_row("good parts", str(found.good))
    table.add_row("bad parts", str(found.bad))
    table.add_row("threshold", f"{found.threshold:.6f}")
    table.add_row("pixel threshold", f"{found.pixel_threshold:.6f}")
    table.add_row("false rejects among the good", f"{found.false_reject_rate:.2%} (target for new ones {target:.2%})")
    if found.escape_rate is not None and found.escape_bound is not None and found.auroc is not None:
        table.add_row("escapes among the bad", f"{found.escape_rate:.2%} (up to {found.escape_bound:.2%} at 95 %)")
        table.add_row("image AUROC", f"{found.auroc:.4f}")
    for key, limit in (calibration.quality.stated if calibration.quality is not None else {}).items():
        table.add_row(f"quality.{key}, learnt", f"{limit:g}")
    Console().print(table)
