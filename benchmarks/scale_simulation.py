"""Simulates n workers that make numbered parts: how efficient they are, and which size of a part to choose.

    python benchmarks/scale_simulation.py [--passages 100000000] [--repeats 5] [--measured scale.json]
        [--output scale_simulation.json] [--picture scale_simulation.svg]

A worker starts (loads its model), then takes one part after the other until none is left. A part takes a
fixed time and a time for each passage; some parts, chosen at random, are on a slow machine or meet a slow
disk. Workers fail at random; one that fails loses the part at work, and starts again. With a driver (Ray),
texts and vectors of all workers pass through one network; without (torchrun, SLURM), each writes for itself.
Efficiency is the time that one worker would need without any of this, divided by n times the time of n.

It is a plain discrete simulation: the only events are the ends of parts. The unit costs are those of
`scale.py` on this machine, or the assumptions below, which the report states.
"""

import heapq
import json
import random
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import arguments, write_report
from matplotlib.figure import Figure

from stzoo.training.history import COLOURS, LOOK

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = (1_024, 8_192, 65_536)
DRIVER = 0.125e9  # bytes per second of 1 Gbit/s


@dataclass(frozen=True)
class Costs:
    """What the simulation assumes.

    Attributes:
        start: Seconds until a worker is ready: imports, and the model.
        part: Seconds that a part costs besides its passages: claim, checksum, file.
        passage: Seconds per passage.
        slow_share: Share of the parts that are slow.
        slow_factor: Their time, in times the usual one.
        hours_to_failure: Mean hours until a worker fails.
        bytes_a_passage: Bytes of a text and its vector.
        network: Bytes per second through the driver; 0 without a driver.
    """

    start: float = 20.0
    part: float = 0.05
    passage: float = 1 / 2_500
    slow_share: float = 0.02
    slow_factor: float = 3.0
    hours_to_failure: float = 50.0
    bytes_a_passage: int = 500 + 768 * 2
    network: float = 0.0


def makespan(costs: Costs, passages: int, size: int, workers: int, seed: int) -> float:
    """The seconds until all parts are made."""
    draw = random.Random(seed)
    left = [min(size, passages - first) for first in range(0, passages, size)][::-1]
    free = [(costs.start, number) for number in range(workers)]  # when each worker takes its next part
    fails = [costs.start + draw.expovariate(1 / (3600 * costs.hours_to_failure)) for _ in range(workers)]
    network, end = 0.0, 0.0  # when the driver's network is free
    heapq.heapify(free)
    while left:
        now, worker = heapq.heappop(free)
        rows = left.pop()
        slow = costs.slow_factor if draw.random() < costs.slow_share else 1.0
        done = now + costs.part + slow * rows * costs.passage
        if costs.network:
            network = max(network, now) + rows * costs.bytes_a_passage / costs.network
            done = max(done, network)
        if fails[worker] < done:
            left.append(rows)  # of the part at work nothing is kept
            done = fails[worker] + costs.start
            fails[worker] = done + draw.expovariate(1 / (3600 * costs.hours_to_failure))
        else:
            end = max(end, done)
        heapq.heappush(free, (done, worker))
    return end


def efficiency(costs: Costs, passages: int, size: int, workers: int, repeats: int) -> float:
    """The mean efficiency of some runs."""
    ideal = passages * costs.passage
    return statistics.mean(
        ideal / (workers * makespan(costs, passages, size, workers, seed)) for seed in range(repeats)
    )


def curves(costs: Costs, passages: int, repeats: int) -> dict[str, dict[str, float]]:
    """Efficiency by size of a part and number of workers."""
    return {
        str(size): {
            str(workers): round(efficiency(costs, passages, size, workers, repeats), 4) for workers in WORKERS
        }
        for size in SIZES
    }


def against_real(measured: dict[str, Any]) -> dict[str, Any]:
    """What the simulation foretells of the runs of `scale.py`, and what they took."""
    costs = Costs(**measured["unit_costs"], slow_share=0.0, hours_to_failure=1e9)
    found = {}
    for name, seconds in measured["seconds"].items():
        way, _, workers = name.rpartition(" ")
        if way != "processes":
            continue
        shared = replace(costs, passage=costs.passage * max(1.0, int(workers) / measured["cores"]))
        foretold = makespan(shared, measured["texts"], measured["shard_rows"], int(workers), 0)
        found[name] = {
            "simulated": round(foretold, 1),
            "real": seconds,
            "ratio": round(foretold / seconds, 2),
        }
    return found


def draw(report: dict[str, Any]) -> Figure:
    """Efficiency against the number of workers, without a driver and with one."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (way, by_size) in zip(
        figure.subplots(1, 2, sharey=True), report["efficiency"].items(), strict=True
    ):
        for (size, by_workers), colour in zip(by_size.items(), COLOURS, strict=False):
            axes.plot(list(map(int, by_workers)), list(by_workers.values()), marker="o", color=colour,
                      label=f"{int(size):,} passages a part")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(f"workers, {way}")
        axes.set_ylim(0, 1.02)
        axes.grid(color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("efficiency")
    figure.axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle(f"{report['passages']:,} passages, simulated", x=0.01, ha="left")
    return figure


def main() -> None:
    """Runs the simulation."""
    parser = arguments(__doc__)
    parser.add_argument("--passages", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=5, help="runs to average")
    parser.add_argument("--measured", type=Path, help="report of scale.py, to compare with")
    parser.add_argument("--picture", type=Path, help="file for the picture, SVG or PNG")
    options = parser.parse_args()
    costs = Costs()
    report: dict[str, Any] = {
        "passages": options.passages,
        "costs": asdict(costs),
        "driver_bytes_a_second": DRIVER,
        "efficiency": {
            "each writing for itself": curves(costs, options.passages, options.repeats),
            "through one driver (1 Gbit/s)": curves(
                replace(costs, network=DRIVER), options.passages, options.repeats
            ),
        },
    }
    if options.measured:
        report["against_real"] = against_real(json.loads(options.measured.read_text()))
    if options.picture:
        with mpl.rc_context({**LOOK, "svg.hashsalt": "stzoo"}):
            draw(report).savefig(options.picture, metadata={"Date": None})
    write_report(report, options.output)


if __name__ == "__main__":
    main()
