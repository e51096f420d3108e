"""inspectd's detector against anomalib's WinCLIP: same weights, same pixels, one run. See tools/compare_anomalib.

anomalib brings its windows into sequence-first order before the transformer; since open_clip 2.26.1 the transformer is
batch-first, so that its windows attend to each other and collapse. `straighten` takes that back, or the comparison
would be with a model that nobody means. Random weights see no difference between anything, so both get the same pair of
text directions, chosen so that scores spread (`spreading_text`); the text of the prompts themselves is compared before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from inspectd.detect.architecture import Architecture, read_architecture
from inspectd.detect.build import choose_device, choose_precision
from inspectd.detect.checkpoint import Checkpoint
from inspectd.detect.clip import TextTower, VisionTower
from inspectd.detect.cost import gflop_per_frame
from inspectd.detect.gemm import Precision, prepacks
from inspectd.detect.identity import Facts
from inspectd.detect.measure import matrix_rate, spreading_text, versions
from inspectd.detect.options import WinclipConfig
from inspectd.detect.preprocess import Resize, prepare, upsample_map
from inspectd.detect.prompts import ANOMALIB_TEMPLATES, compose
from inspectd.detect.text import TextAverage, embed_prompts, open_clip
from inspectd.detect.winclip import Detector
from inspectd.errors import ConfigError

BACKBONE = "ViT-B-16-plus-240"
CPU = torch.device("cpu")
PROFILE = WinclipConfig(text_average=TextAverage.RAW, resize=Resize.FLOAT, least_score=0.0)
SHOTS = 4


class Straightened(nn.Module):
    """A batch-first transformer that can be told to take sequence-first tokens."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sequence_first = False

    def forward(self, x: Tensor, **keywords: object) -> Tensor:
        """`(L, N, D)` while `sequence_first`, else `(N, L, D)`; the same comes back."""
        if not self.sequence_first:
            return self.inner(x, **keywords)
        return self.inner(x.transpose(0, 1), **keywords).transpose(0, 1)


def straighten(model: nn.Module) -> None:
    """Neutralises anomalib's permute."""
    transformer = Straightened(model.clip.visual.transformer)
    model.clip.visual.transformer = transformer
    embed = model._get_window_embeddings  # noqa: SLF001

    def straight(*arguments: Tensor) -> Tensor:
        transformer.sequence_first = True
        try:
            return embed(*arguments)
        finally:
            transformer.sequence_first = False

    model._get_window_embeddings = straight  # noqa: SLF001


def anomalib_model() -> nn.Module:
    """anomalib's model on random weights, the same at each call."""
    open_clip()
    from anomalib.models.image.winclip import torch_model  # noqa: PLC0415 - after the schemas that open_clip needs

    torch_model.PRETRAINED = None
    torch.manual_seed(0)
    return torch_model.WinClipModel().eval()


@dataclass(frozen=True)
class Ours:
    """inspectd on the weights of anomalib's model."""

    architecture: Architecture
    checkpoint: Checkpoint
    device: torch.device

    def detector(self, precision: Precision, text: Tensor) -> Detector:
        """A detector in the profile `anomalib`."""
        tower = VisionTower(self.checkpoint, self.architecture.vision, device=self.device, precision=precision)
        facts = Facts(
            detector="winclip",
            backbone=BACKBONE,
            weights_sha256="random",
            precision=precision,
            architecture={},
            config={},
            prompts={},
            view={},
        )
        return Detector(tower, text, PROFILE, facts=facts)

    def text(self) -> Tensor:
        """The two text embeddings, as the profile `anomalib` makes them."""
        tower = TextTower(self.checkpoint, self.architecture.text, device=self.device)
        prompts = compose(["bottle"], templates=ANOMALIB_TEMPLATES)
        return embed_prompts(tower, prompts, TextAverage.RAW, lambda: None)


def read_crops(paths: list[Path], size_px: int) -> list[np.ndarray]:
    """Images squashed to the model's size, so that both sides see the same pixels; noise where none is given."""
    if not paths:
        random = np.random.default_rng(0)
        return [random.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8) for _ in range(SHOTS + 1)]
    read = [cv2.imread(str(path)) for path in paths]
    return [cv2.resize(one, (size_px, size_px), interpolation=cv2.INTER_AREA)[..., ::-1].copy() for one in read]


def measurable(names: list[str], device: torch.device, console: Console) -> list[Precision]:
    """The precisions that this device has instructions for; says of the others why not."""
    found = []
    for name in names:
        try:
            precision = choose_precision(name, device)
        except ConfigError as error:
            console.print(f"{name}: not measured: {error}")
            continue
        if device == CPU and precision is Precision.BF16 and not prepacks(torch.bfloat16):
            console.print("bf16: not measured: this processor has no AVX-512, so it would be emulated")
        else:
            found.append(precision)
    return found


def spread(model: nn.Module, detector: Detector, crops: list[np.ndarray]) -> Tensor:
    """Text under which scores spread, for both sides: those of random weights are all a half."""
    features = detector.features(prepare(crops, detector.shape, Resize.FLOAT, detector.device))
    text = spreading_text([features.image, *features.windows], PROFILE.temperature)
    model._text_embeddings = text.clone()  # noqa: SLF001
    return text


def their_stages(model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """anomalib's stages of the queries, which follow the references in `pixels`; the model ends zero-shot."""
    image, windows, patches = model.encode_image(pixels[SHOTS:])
    found = {"image embedding": image, "patch embeddings": patches}
    found |= {f"window embeddings {scale}": rows for scale, rows in zip((2, 3), windows, strict=True)}
    for shots in (0, SHOTS):
        if shots:
            text = model.text_embeddings
            model.setup(reference_images=pixels[:shots])
            model._text_embeddings = text  # noqa: SLF001 - `setup` has taken the prompts' again
        said = model(pixels[SHOTS:])
        found |= {f"map, {shots}-shot": said.anomaly_map, f"score, {shots}-shot": said.pred_score}
    model.k_shot = 0
    return {stage: value.cpu() for stage, value in found.items()}


def our_stages(detector: Detector, crops: list[np.ndarray]) -> dict[str, Tensor]:
    """The same of inspectd's detector."""
    features = detector.features(prepare(crops[SHOTS:], detector.shape, Resize.FLOAT, detector.device))
    found = {"image embedding": features.image, "patch embeddings": features.patches}
    for scale, rows in zip((2, 3), features.windows, strict=True):
        found[f"window embeddings {scale}"] = rows.view(len(crops) - SHOTS, -1, rows.shape[-1])
    for shots in (0, SHOTS):
        detector.enroll(crops[:shots])
        scored = detector.score(crops[SHOTS:])
        maps = np.stack([upsample_map(one.map, detector.input_size_hw_px) for one in scored])
        found[f"map, {shots}-shot"] = torch.from_numpy(maps)
        found[f"score, {shots}-shot"] = torch.tensor([one.score for one in scored])
    detector.enroll([])
    return {stage: value.cpu() for stage, value in found.items()}


def in_turn(steps: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Times of each step in seconds; all run once unmeasured, then in turn, so that load falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if turn:
                times[name].append(clock() - start)
    return times


def compare(arguments: argparse.Namespace, console: Console) -> None:
    """Builds both sides, prints differences, then times."""
    device = arguments.device
    names = arguments.precision or ("fp32,bf16,int8" if device == CPU else "fp32,tf32,bf16,fp16")
    precisions = measurable(names.split(","), device, console)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with console.status("building both on the same random weights"):
        model = anomalib_model()
        state = {name: tensor.contiguous() for name, tensor in model.clip.state_dict().items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "random.safetensors")
            save_file(state, path)
            ours = Ours(read_architecture(BACKBONE), Checkpoint(path), device)
            text = ours.text()
            exact = ours.detector(Precision.FP32, text)
            straighten(model.to(device))
            model.setup("bottle")
            crops = read_crops(arguments.images, exact.input_size_px)
            prompts = nn.functional.normalize(model.text_embeddings, dim=-1) - text
            pair = spread(model, exact, crops)
            detectors = {str(one): ours.detector(one, pair) for one in precisions}
    with console.status("anomalib's stages"):
        pixels = prepare(crops, ours.architecture.vision, Resize.FLOAT, device)
        theirs = their_stages(model, pixels)
    for name, detector in detectors.items():
        with console.status(f"inspectd's stages in {name}"):
            mine = our_stages(detector, crops)
        differences = {stage: mine[stage] - value for stage, value in theirs.items()}
        show_differences(console, name, {"text of the prompts": prompts.cpu()} | differences, theirs)
    show_drift(console, detectors, crops)
    show_times(console, model, detectors, crops, arguments)


def show_differences(console: Console, precision: str, found: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """One line a stage, with the span of anomalib's values, without which a difference says little."""
    table = Table(
        "stage",
        "largest difference",
        "values from",
        "to",
        title=f"inspectd {precision} against anomalib 2.7 (straightened)",
    )
    for stage, difference in found.items():
        value = theirs.get(stage)
        span = ("", "") if value is None else (f"{float(value.min()):.3f}", f"{float(value.max()):.3f}")
        table.add_row(stage, f"{float(difference.abs().max()):.1e}", *span)
    console.print(table)


def show_drift(console: Console, detectors: dict[str, Detector], crops: list[np.ndarray]) -> None:
    """How far the scores of the queries move from fp32, and how many change sides of their median."""
    scores = {
        name: np.array([one.score for one in detector.score(crops[SHOTS:])]) for name, detector in detectors.items()
    }
    exact = scores.pop("fp32", None)
    if exact is None:
        return
    threshold = float(np.median(exact))
    for name, moved in scores.items():
        flipped = int(((moved >= threshold) != (exact >= threshold)).sum())
        console.print(
            f"{name} against fp32 on {len(exact)} frames, random weights, scores from {exact.min():.3f} to "
            f"{exact.max():.3f}: they move by at most {np.abs(moved - exact).max():.1e}; {flipped} decisions flip at "
            f"{threshold:.3f}"
        )


def show_times(
    console: Console,
    model: nn.Module,
    detectors: dict[str, Detector],
    crops: list[np.ndarray],
    arguments: argparse.Namespace,
) -> None:
    """A batch, zero-shot: medians of interleaved rounds by frame, and the share of the machine's own matrix rate.

    inspectd's time holds what brings pixels to a device and scores back; anomalib's pixels lie there.
    """
    clock = process_time if arguments.cpu_time else perf_counter
    given = [crops[at % len(crops)] for at in range(arguments.batch)]
    first = next(iter(detectors.values()))
    pixels = prepare(given, first.shape, Resize.FLOAT, first.device)
    probes = {name: matrix_rate(Precision(name), first.device) for name in detectors}
    limits: dict[str, list[float]] = {name: [] for name in probes}

    def theirs_run() -> Tensor:
        return model(pixels).pred_score.cpu()  # waits for a GPU

    steps: dict[str, Callable[[], object]] = {"anomalib": theirs_run}
    for name, detector in detectors.items():
        detector.rehearse(given)
        steps[name] = lambda detector=detector: detector.score(given)
        steps[f"limit {name}"] = lambda name=name: limits[name].append(probes[name](clock))
    times = in_turn(steps, arguments.rounds, clock)
    theirs = statistics.median(times["anomalib"]) / arguments.batch
    table = Table(f"zero-shot, batch {arguments.batch}", "ms a frame", "times anomalib", "of the machine's rate")
    table.add_row("anomalib", f"{theirs * 1e3:.1f}", "1.00", "")
    for name, detector in detectors.items():
        mine = statistics.median(times[name]) / arguments.batch
        rate = gflop_per_frame(detector.shape, PROFILE.scales) / mine
        share = rate / statistics.median(limits[name][1:])
        table.add_row(f"inspectd {name}", f"{mine * 1e3:.1f}", f"{theirs / mine:.2f}", f"{share:.0%}")
    console.print(table)
    load = os.getloadavg()[0]
    console.print(
        f"{versions(first.device)}, {torch.get_num_threads()} threads, {arguments.rounds} interleaved rounds, "
        f"{'CPU' if arguments.cpu_time else 'wall'} time, load average {load:.1f}"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help=f"at least {SHOTS + 1}: the first {SHOTS} are references")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time, for busy machines; with --threads 1")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, for both sides")
    parser.add_argument("--batch", type=int, default=1, help="frames a batch in the times, for both sides")
    parser.add_argument("--precision", help="default: fp32,bf16,int8 on a CPU, fp32,tf32,bf16,fp16 on a GPU")
    arguments = parser.parse_args()
    if arguments.images and len(arguments.images) <= SHOTS:
        parser.error(f"give at least {SHOTS + 1} images, or none")
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time needs --threads 1: the CPU time of several threads is no frame's time")
    try:
        arguments.device = choose_device(arguments.device)
    except ConfigError as error:
        parser.error(str(error))
    if arguments.batch < 1:
        parser.error("--batch: give at least 1")
    if arguments.cpu_time and arguments.device != CPU:
        parser.error("--cpu-time: a GPU's work takes none")
    with torch.inference_mode():
        compare(arguments, Console())


if __name__ == "__main__":
    main()
