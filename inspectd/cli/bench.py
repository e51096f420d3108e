"""`inspectd bench`: throughput and latency on this machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from inspectd.cli.options import ModelConfig, weights_dir, worker_settings

BACKBONE = "ViT-B-16-plus-240"
DEMO_CONFIG = Path(__file__).parents[1] / "demo" / "model.json"

app = typer.Typer(
    help="Throughput and latency on this machine, as tables and JSON.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _top() -> None:
    pass


@app.command()
def model(
    *,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A frame or a folder of frames, as often as needed: drift on them."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The demo model, one round: seconds.")] = False,
    backbone: Annotated[str, typer.Option(help="A CLIP backbone as open_clip names it.")] = BACKBONE,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="An open_clip model config instead.")] = None,
    scales: Annotated[str, typer.Option(help="Window sides in patches, separated by commas.")] = "2,3",
    precision: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant runs, in turn with the others.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threshold: Annotated[float | None, typer.Option(help="Where decisions flip; default: amid the scores.")] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the findings as JSON.")] = None,
    profile: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a trace that a browser opens.")] = None,
) -> None:
    """The detector on random weights: time by variant, share of the machine's limit, drift, memory."""
    from rich.console import Console

    from inspectd.bench.findings import ModelPlan
    from inspectd.bench.model import bench_model
    from inspectd.bench.show import model_findings, show_model, write_json

    plan = ModelPlan(
        backbone=backbone,
        config=config,
        scales=_numbers("--scales", scales),
        device=device,
        threads=threads,
        precisions=tuple(precision.split(",")),
        batches=_numbers("--batch", batch),
        rounds=rounds,
        images=tuple(images or ()),
        threshold=threshold,
        trace=profile,
    )
    if quick:
        plan = replace(plan, config=config or DEMO_CONFIG, rounds=1, banks=(1, 4), frame_size_wh_px=(640, 360))
    with Console(stderr=True).status("measuring") as status:
        found = bench_model(plan, progress=status.update)
    show_model(found, Console())
    if out is not None:
        write_json(model_findings(found), out)


@app.command()
def drift(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Frames: images, folders of images, videos.")],
    *,
    recipe_file: Annotated[Path, typer.Option("--recipe", metavar="FILE", help="The recipe's TOML file.")],
    precision: Annotated[
        str | None, typer.Option(help="Precisions, separated by commas; default: all that the device has.")
    ] = None,
    config: ModelConfig = None,
    weights: Annotated[Path | None, typer.Option("--weights-dir", metavar="DIR", help="Where weights lie.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the findings as JSON.")] = None,
) -> None:
    """A recipe on your own frames in fp32 and in other precisions: how scores move, which decisions flip."""
    from rich.console import Console

    from inspectd.bench.recipe_drift import DriftPlan, bench_drift
    from inspectd.bench.show import show_drifts, write_json
    from inspectd.recipe import load_recipe
    from inspectd.settings import load_settings

    settings = None if config is None else load_settings(config)
    worker = worker_settings(settings, device, None)
    plan = DriftPlan(
        recipe=load_recipe(recipe_file),
        paths=tuple(paths),
        weights_dir=weights_dir(weights, settings),
        precisions=() if precision is None else tuple(precision.split(",")),
        device=worker.device,
        threads=worker.threads,
    )
    with Console(stderr=True).status("measuring") as status:
        found = bench_drift(plan, progress=status.update)
    show_drifts(found, Console())
    if out is not None:
        write_json(asdict(found), out)


@app.command()
def pipeline(
    *,
    load: Annotated[str, typer.Option(help="Cameras x frames/s, separated by commas.")] = "1x10,4x10,4x25",
    seconds: Annotated[float, typer.Option(min=0.5, help="So long each load runs.")] = 20.0,
    idle: Annotated[float, typer.Option(min=0.5, help="Seconds without frames before.")] = 5.0,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of a frame, in pixels.")] = "1920x1080",
    failing: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of frames with regions.")] = 0.02,
    together: Annotated[bool, typer.Option("--together", help="All cameras expose at the same moments.")] = False,
    model: Annotated[
        bool, typer.Option("--model", help="Run a model on random weights, not maps that are ready.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="With --model: a CLIP backbone as open_clip names it.")] = BACKBONE,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="With --model: an open_clip config.")] = None,
    device: Annotated[str, typer.Option(help="With --model: auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="With --model: auto, fp32, tf32, bf16, fp16 or int8.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two small cameras for a second.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the journal is written: its disk is measured too.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the findings as JSON.")] = None,
) -> None:
    """The whole daemon around a detector that takes no time: added latency, CPU, commits, skips."""
    from rich.console import Console

    from inspectd.bench.pipeline import PipelinePlan, bench_pipeline, parse_loads, parse_size
    from inspectd.bench.rig import RandomModel
    from inspectd.bench.show import show_pipeline, write_json

    chosen = RandomModel(backbone=backbone, config=config, device=device, precision=precision)
    plan = PipelinePlan(
        loads=parse_loads(load),
        seconds=seconds,
        idle_s=idle,
        size_wh_px=parse_size(size),
        failing=failing,
        together=together,
        model=chosen if model else None,
        threads=threads,
        state_dir=state_dir,
    )
    if quick:
        plan = replace(plan, loads=parse_loads("2x20"), seconds=1.0, idle_s=0.5, size_wh_px=(320, 240))
    with Console(stderr=True).status("measuring") as status:
        found = bench_pipeline(plan, progress=status.update)
    show_pipeline(found, Console())
    if out is not None:
        write_json({"flows": found}, out)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{option} {text!r}: expected whole numbers from 1, separated by commas")
    return numbers
