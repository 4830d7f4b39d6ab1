"""Destinations of a probe's records: a file, TensorBoard, Weights & Biases, trackio.

    optimizer.observe(NeuronMonitor(JsonLines(Path("neurons.jsonl")), every=50))

A sink is called with a step and records by name. Sinks of other services import the services'
clients on use.
"""

from polarlight.diagnostics.sinks.files import JsonLines, TensorBoard, read_json_lines
from polarlight.diagnostics.sinks.records import flat, several
from polarlight.diagnostics.sinks.runs import RunLog, trackio, wandb

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
