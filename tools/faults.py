#!/usr/bin/env python3
"""Injects faults into the real daemon, on real video, and counts what a line would have seen.

    tools/faults.py --short                  # each fault three times, below five minutes
    tools/faults.py --hours 8                # each fault again and again, the soak in the end
    tools/faults.py --only soak --minutes 30

Four cameras play a clip each of whose frames spells its number and whether its part is good or bad; a subscriber that
knows nothing but the contract compares. One row a fault; exit 1 if anything is missing, double, silently passed, or
otherwise not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the tree that this stands in, whatever is installed

import faults_deaths
import faults_disk
import faults_load
import faults_media
import faults_model
import faults_peers
from faults_line import Broken, Stock
from faults_trial import Skipped, Trial, half
from faults_workshop import Workshop, prepare
from rich.console import Console
from rich.table import Table

Row = Callable[[Trial], None]
ROWS: dict[str, tuple[str, Row]] = {
    "kill-capture": ("SIGKILL capture, half load", faults_deaths.kill_capture),
    "kill-worker": ("SIGKILL worker", faults_deaths.kill_worker),
    "kill-publisher": ("SIGKILL publisher", faults_deaths.kill_publisher),
    "kill-supervisor": ("SIGKILL supervisor", faults_deaths.kill_supervisor),
    "stop": ("SIGSTOP of any child", faults_deaths.stop_children),
    "steps": ("capture killed between steps of acceptance", faults_deaths.between_steps),
    "standing": ("publisher killed, line stands still", faults_deaths.standing_line),
    "overrun": ("ring overrun under a stopped reader", faults_model.overrun),
    "damaged": ("file cut, bits flipped, size, format", faults_media.damaged),
    "frozen": ("frozen camera", faults_media.frozen),
    "triple": ("three times the load", faults_load.triple),
    "crawl": ("worker slowed to a crawl", faults_load.crawl),
    "stopped-subscriber": ("subscriber stopped", faults_peers.stopped_subscriber),
    "visits": ("subscribers come and go", faults_peers.visits),
    "fuzz": ("fuzzed messages, every socket", faults_peers.fuzz),
    "small-shm": ("/dev/shm too small", faults_disk.small_shm),
    "full-disk": ("disk full", faults_disk.full_disk),
    "read-only-start": ("state folder read-only at start", faults_disk.read_only_start),
    "read-only": ("disk turns read-only", faults_disk.read_only_disk),
    "hung-reads": ("a camera's disk hangs (D state)", faults_disk.hung_reads),
    "fsync": ("fsync stall", faults_disk.stall),
    "clock": ("clock ± 1 h", faults_model.clock),
    "nan": ("NaN from the model", faults_model.nan),
    "memory": ("out of memory in the model", faults_model.memory),
    "soak": ("soak", faults_load.soak),
}
COLUMNS = (
    *("fault", "times", "detected s\np50 / max", "back s\np50 / max", "expected", "missing", "double", "late"),
    *("after\noutage", "silently\npassed", "MB, fds, shm MB\nbefore→after", "remarks"),
)
BUGS = ("nan_is_pass", "dropped_ticket", "no_second_check", "double_publish")
SHARING = (
    *("kill-capture", "clock", "overrun"),
    *("kill-worker", "stop", "nan", "kill-supervisor"),
    *("kill-publisher", "steps", "crawl", "memory", "stopped-subscriber", "visits", "fuzz", "soak"),
    *("full-disk", "read-only", "fsync"),
    *("triple", "damaged"),
)
"""The rows in the order in which they are run: those that share a daemon follow each other (see `Stock`)."""
IDLE = (("hung-reads", "small-shm"), ("frozen", "standing", "read-only-start"))
"""Rows that mostly wait and leave the cores to others: these two groups are run side by side."""
SHORT_TIMES = 3
LONG_TIMES_AN_HOUR = 20


def main() -> int:
    arguments = parsed()
    if arguments.list:
        for name, (title, row) in ROWS.items():
            print(f"{name:16} {title}: {(row.__doc__ or '').strip().splitlines()[0]}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = arguments.workshop or Path(scratch)
        started_s = time.monotonic()
        workshop = prepare(folder, arguments.seed)
        tell(workshop, time.monotonic() - started_s)
        if arguments.prepare:
            return 0
        trials = run_all(arguments.only or list(ROWS), workshop, arguments)
    show(trials, time.monotonic() - started_s)
    if arguments.json:
        arguments.json.write_text(json.dumps(facts_of(trials, workshop, arguments), indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(trials))
    return 0 if all(trial.clean for trial in trials) else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help=f"each fault {SHORT_TIMES} times (the default)")
    parser.add_argument("--hours", type=float, help="the long form: as many injections as fit about so long")
    parser.add_argument("--only", type=_rows, metavar="ROW,…", help="these rows alone; see --list")
    parser.add_argument("--times", type=int, help="injections of each fault; of messages and visits too")
    parser.add_argument("--minutes", type=float, help="of the soak")
    parser.add_argument("--seed", type=int, default=1, help="of the clip and of the moments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything found, for machines")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table, for a page")
    parser.add_argument("--list", action="store_true", help="the rows")
    parser.add_argument("--workshop", type=Path, metavar="DIR", help="keep clip and baseline there for the next run")
    parser.add_argument("--prepare", action="store_true", help="make clip and baseline, inject nothing")
    parser.add_argument("--bug", choices=BUGS, nargs="+", default=[], help="seed bugs: the harness must turn red")
    return parser.parse_args()


def _rows(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return names


def run_all(names: Sequence[str], workshop: Workshop, arguments: argparse.Namespace) -> list[Trial]:
    """Rows that load the machine one after the other, then the others; told in the order of the table."""
    trials = run_in_turn([name for name in SHARING if name in names], workshop, arguments)
    with ThreadPoolExecutor(len(IDLE)) as pool:
        chosen = [[name for name in group if name in names] for group in IDLE]
        for found in pool.map(lambda group: run_in_turn(group, workshop, arguments), chosen):
            trials |= found
    return [trials[name] for name in ROWS if name in trials]


def run_in_turn(names: Sequence[str], workshop: Workshop, arguments: argparse.Namespace) -> dict[str, Trial]:
    """Rows one after the other, of which those that can share a daemon."""
    stock = Stock()
    try:
        trials = {name: run(name, workshop, stock, arguments) for name in names}
        stock.close()
    finally:
        stock.drop()
    return trials


def run(name: str, workshop: Workshop, stock: Stock, arguments: argparse.Namespace) -> Trial:
    """One row, from its first injection to its last; what goes wrong is noted, and the next row goes on."""
    times = arguments.times or (round(LONG_TIMES_AN_HOUR * arguments.hours) if arguments.hours else SHORT_TIMES)
    trial = Trial(
        name=name,
        rng=random.Random(f"{arguments.seed} {name}"),
        times=max(1, times),
        asked=arguments.times,
        long=bool(arguments.hours),
        minutes=arguments.minutes,
        workshop=workshop,
        bug=",".join(arguments.bug),
        stock=stock,
        say=lambda text: print(f"  {name}: {text}", file=sys.stderr, flush=True),
    )
    started_s = time.monotonic()
    try:
        ROWS[name][1](trial)
    except Skipped as skipped:
        trial.skipped = str(skipped)
    except Broken as broken:
        trial.broken.append(str(broken))
    except Exception as error:  # noqa: BLE001 - the other rows are still worth their hours
        trial.broken.append(f"the harness itself: {error!r}")
    trial.took_s = time.monotonic() - started_s
    outcome = f"skipped: {trial.skipped}" if trial.skipped else "ok" if trial.clean else "NOT OK"
    trial.say(f"{outcome}, {trial.injected} injected, {trial.took_s:.0f} s")
    for each in (*trial.broken, *trial.tally.silent[:5], *trial.tally.contradictions[:5]):
        trial.say(f"  {each}")
    return trial


def tell(workshop: Workshop, took_s: float) -> None:
    good, bad = workshop.margin
    share = sum(kind == "bad" for kind in workshop.kinds) / len(workshop.kinds)
    print(
        f"baseline: {len(workshop.kinds)} frames, {share:.0%} bad; good ones score up to {good:.3f}, bad ones from "
        f"{bad:.3f}; {len(workshop.excused)} misjudged without a fault and excused; this machine carries "
        f"{workshop.carried_fps:.1f} frames a second, 4 cameras give {4 * workshop.fps:.1f} ({took_s:.0f} s)",
        file=sys.stderr,
        flush=True,
    )


def show(trials: Sequence[Trial], took_s: float) -> None:
    table = Table(title=f"Faults: {sum(t.injected for t in trials)} injected in {took_s:.0f} s", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("fault", "remarks") else "right")
    for trial in trials:
        table.add_row(*cells(trial), style=None if trial.clean else "red")
    console = Console(width=None if sys.stdout.isatty() else 190)
    console.print(table)
    bad = [trial.name for trial in trials if not trial.clean]
    console.print(f"NOT OK: {', '.join(bad)}" if bad else "nothing missing, double or silently passed")


def markdown(trials: Sequence[Trial]) -> str:
    """The same table for a page."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, trials)]
    return "".join(f"| {' | '.join(cell.replace(chr(10), ' ') for cell in line)} |\n" for line in lines)


def cells(trial: Trial) -> list[str]:
    title = ROWS[trial.name][0]
    if trial.skipped:
        return [title, "-", *[""] * 9, f"skipped: {trial.skipped}"]
    found = trial.tally
    counts = (found.expected, found.missing, found.double, found.late, found.after_outage, len(found.silent))
    remarks = [f"BROKEN: {each}" for each in (*trial.broken, *found.contradictions[:3])]
    remarks += [f"target missed: {each}" for each in trial.missed] + trial.notes
    return [
        title,
        str(trial.injected),
        _times(trial.detected_s),
        _times(trial.recovered_s),
        *map(str, counts),
        _footprints(trial),
        "; ".join(remarks),
    ]


def _times(values: Sequence[float]) -> str:
    return f"{half(values):.2f} / {max(values):.2f}" if values else "-"


def _footprints(trial: Trial) -> str:
    before, after = trial.before, trial.after
    if before is None or after is None:
        return "-"
    pairs = (
        (before.memory_mb, after.memory_mb),
        (before.descriptors, after.descriptors),
        (before.shm_mb, after.shm_mb),
    )
    return ", ".join(f"{a:.0f}→{b:.0f}" for a, b in pairs)


def facts_of(trials: Sequence[Trial], workshop: Workshop, arguments: argparse.Namespace) -> dict[str, object]:
    good, bad = workshop.margin
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    baseline = {"carried_fps": workshop.carried_fps, "fps_a_camera": workshop.fps, "excused": sorted(workshop.excused)}
    margin = {"highest_good": good, "lowest_bad": bad}
    rows = [trial.facts() for trial in trials]
    return {"seed": arguments.seed, "machine": machine, "baseline": baseline | margin, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
