"""The command: all parts in turn, each in its share of the time."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks import gpu_report
from benchmarks.command_line import recorded_command
from benchmarks.gpu_report.agreement import compiled, contracts, fsdp, graphs
from benchmarks.gpu_report.report import Report
from benchmarks.gpu_report.times import draw, quack, steps
from benchmarks.gpu_report.training import training
from benchmarks.optimizer_step import commit
from polarlight.lab.train.environment import hardware, versions

OUT = Path(__file__).parents[1] / "results" / "gpu_report"
PARTS = {
    "contracts": (contracts, 0.1),
    "graphs": (graphs, 0.03),
    "compiled": (compiled, 0.12),
    "steps": (steps, 0.2),
    "quack": (quack, 0.03),
    "fsdp": (fsdp, 0.02),
    "training": (training, 1.0),
}
"""Functions of the parts, and the share of all time that each may take; the last takes the rest."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=gpu_report.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts")
    parser.add_argument("--skip", default="", help="parts to leave out: " + ", ".join(PARTS))
    parser.add_argument("--data", type=Path, help="folder with FineWeb shards, for full-size runs")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --tiny tries the script")
    skipped = options.skip.split(",") if options.skip else []
    if unknown := [name for name in skipped if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    seconds = 60 * options.minutes
    report = Report(device, options.tiny, options.data, time.monotonic() + seconds)
    given = sys.argv[1:] if arguments is None else arguments
    about = {
        "command": recorded_command("benchmarks.gpu_report", given),
        "commit": commit(),
        **versions(),
        **hardware(device),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (part, share) in PARTS.items():
        if name not in skipped:
            report.run(name, part, share * seconds)
            result = {"about": about, "parts": report.parts}
            (options.out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(report, options.out / "steps.png")


if __name__ == "__main__":
    main()
