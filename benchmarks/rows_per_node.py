"""A matrix computed by one owner, or by the processes of a node on its rows: counted, not timed.

    python -m benchmarks.rows_per_node

Where matrices are fewer than processes, most processes have nothing to compute. Alone, an owner
receives and sends all of a bfloat16 matrix. Shared by g processes, each receives and sends the
g-th part of the rows, computes on them and all-reduces sums over rows (`execution.cost`); work on
the Gram matrix is repeated by each. Both are in the unit of the plan: flops, with
`Options.flops_per_byte` for a byte across nodes, and a `--node`-th of that for a summed byte, as
NVLink is about nine times as fast as a network card. A wide matrix is shared by columns: counted
as its transpose, under Muon, which Aurora is there. Plans decide by these costs
(`execution/sharded/node_sharing.py`); `python -m benchmarks.plans_at_scale` shows what they share.
"""

import argparse

from rich.console import Console
from rich.table import Table

import polarlight as pl
from polarlight.execution.cost import cost, rowwise_cost
from polarlight.execution.sharded.options import Options

SHAPES = {
    "Llama-3-8B q, o": (4096, 4096),
    "Llama-3-8B k, v": (1024, 4096),
    "Llama-3-8B gate, up": (14336, 4096),
    "Llama-3-8B down": (4096, 14336),
    "Llama-3-70B gate, up": (28672, 8192),
    "DeepSeek-V3 expert": (2048, 7168),
    "DeepSeek-V3 o": (7168, 16384),
    "DeepSeek-V3 q_b": (24576, 1536),
    "DeepSeek-V3 kv_b": (32768, 512),
    "Llama-3-8B head": (128256, 4096),
}


def load(rule: pl.UpdateRule, m: int, n: int, processes: int, cheaper: float) -> float | None:
    """Cost of the busiest process if so many share a matrix; None if they cannot."""
    price, size = Options().flops_per_byte, 2 * m * n
    if processes == 1:
        return cost(rule, m, n) + 2 * price * size
    shared = rowwise_cost(rule, m, n, -(-m // processes))
    if shared is None:
        return None
    sums = 2 * 2 * shared.summed * (1 - 1 / processes)  # sent and received by a ring
    return shared.cost + price * (2 * size / processes + sums / cheaper)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--node", type=float, default=9.0, help="how much cheaper a node's bytes")
    parser.add_argument("--processes", type=int, default=8, help="of a node")
    options = parser.parse_args()
    table = Table("matrix", "shape", "rule", "alone", "of it bytes", "one node", "as equal links")
    price = Options().flops_per_byte
    for name, (m, n) in SHAPES.items():
        rules = {"muon": pl.rules.muon(), "aurora": pl.rules.aurora()} if m >= n else {}
        for rule_name, rule in (rules or {"muon": pl.rules.muon()}).items():
            tall = (max(m, n), min(m, n))
            alone = load(rule, *tall, 1, 1.0)
            assert alone is not None
            found = [load(rule, *tall, options.processes, x) for x in (options.node, 1.0)]
            table.add_row(
                name,
                f"{m:,} x {n:,}",
                rule_name,
                f"{alone:.2e}",
                f"{4 * price * m * n / alone:.0%}",
                *("-" if x is None else f"{x / alone:.2f}" for x in found),
            )
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    main()
