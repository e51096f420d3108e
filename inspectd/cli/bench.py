"""`inspectd bench`: throughput and latency on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE…]", help="Frames to score; default: noise.")
    ] = None,
    *,
    backbone: Annotated[str, typer.Option(help="A CLIP backbone as open_clip names it.")] = "ViT-B-16-plus-240",
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="An open_clip model config instead.")] = None,
    scales: Annotated[str, typer.Option(help="Window sides in patches, separated by commas.")] = "2,3",
    precision: Annotated[str, typer.Option(help="Precisions, separated by commas.")] = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant runs, in turn with the others.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threshold: Annotated[float | None, typer.Option(help="Where decisions flip; default: the median score.")] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the findings as JSON.")] = None,
    profile: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a trace that a browser opens.")] = None,
) -> None:
    """The detector on random weights: time by variant, share of the machine's limit, drift, memory."""
    from rich.console import Console

    from inspectd.bench import ModelPlan, bench_model, show, write_json

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
    with Console(stderr=True).status("measuring") as status:
        found = bench_model(plan, progress=status.update)
    show(found, Console())
    if out is not None:
        write_json(found, out)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{option} {text!r}: expected whole numbers from 1, separated by commas")
    return numbers
