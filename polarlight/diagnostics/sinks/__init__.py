"""Where the records of a probe can go: a file, TensorBoard, Weights & Biases, trackio.

    optimizer.observe(NeuronMonitor(JsonLines(Path("neurons.jsonl")), every=50))

A sink is called with a step and records by name. Those of other projects go through their own
clients, which are imported on use.
"""

from polarlight.diagnostics.sinks.flat import flat
from polarlight.diagnostics.sinks.jsonl import JsonLines, read_json_lines
from polarlight.diagnostics.sinks.run import RunLog
from polarlight.diagnostics.sinks.several import several
from polarlight.diagnostics.sinks.tensorboard import TensorBoard
from polarlight.diagnostics.sinks.trackio import trackio
from polarlight.diagnostics.sinks.wandb import wandb

__all__ = [
    "JsonLines",
    "RunLog",
    "TensorBoard",
    "flat",
    "read_json_lines",
    "several",
    "trackio",
    "wandb",
]
