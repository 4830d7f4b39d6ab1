"""Owners, bytes and memory of a step on 512 to 4,096 processes, planned from shapes.

    python -m benchmarks.plans_at_scale
    python -m benchmarks.plans_at_scale --models deepseek-v3 --layouts 4096 "copies 16 x 64"

Plans are made of shapes alone: no process, no weights. Hidden matrices in bfloat16 under
`aurora_mlp`; embeddings, heads and norms are elementwise and move nothing. A number is FSDP: it
cuts every parameter's first dimension among all processes (a stack of experts into whole experts).
"copies 16 x 64" is HSDP with 16 copies of 64 shards, "experts 64 x 32" cuts stacks of experts among
64 processes, their rows among 32, and everything else among all. "shared" counts matrices that
processes of a node compute together. "busiest" is over the mean load, of which bytes are a part,
"bound" what no assignment of whole matrices and of parts of shared ones falls below, and "of one"
the busiest load over that of a plan in which every matrix has one owner.
"bucket" is the most that any process sends, receives or passes on in one exchange of one bucket.
Messages and "peak" (messages and assembled matrices) are those of the processes with most load,
bytes or partners. "s" is CPU time of one process until its first step is planned. Writes a JSON
file, after every plan, and a picture; a second run goes on where the first one stopped, `--again`
starts anew.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.progress import track
from rich.table import Table

import polarlight as pl
from polarlight.execution.sharded.forecast import LayoutOf, forecast, summary
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.options import Options
from polarlight.execution.sharded.plan import ShardedPlan
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.execution.sharded.traffic import traffic
from polarlight.lab.report.style import figure, styles, tidy

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def dense(layers: int, width: int, keys: int, neurons: int) -> Shapes:
    """Names and shapes of a Llama; `keys` are the rows of k and v."""
    for i in range(layers):
        at = f"model.layers.{i}"
        yield from attention(at, width, width, keys)
        yield from mlp(f"{at}.mlp", width, neurons)


def attention(at: str, width: int, queries: int, keys: int) -> Shapes:
    yield f"{at}.self_attn.q_proj.weight", (queries, width)
    yield f"{at}.self_attn.k_proj.weight", (keys, width)
    yield f"{at}.self_attn.v_proj.weight", (keys, width)
    yield f"{at}.self_attn.o_proj.weight", (width, queries)


def mlp(at: str, width: int, neurons: int) -> Shapes:
    yield f"{at}.gate_proj.weight", (neurons, width)
    yield f"{at}.up_proj.weight", (neurons, width)
    yield f"{at}.down_proj.weight", (width, neurons)


def experts(at: str, count: int, width: int, neurons: int) -> Shapes:
    yield f"{at}.mlp.experts.gate_up_proj", (count, 2 * neurons, width)
    yield f"{at}.mlp.experts.down_proj", (count, width, neurons)


def qwen3_30b_a3b() -> Shapes:
    for i in range(48):
        at = f"model.layers.{i}"
        yield from attention(at, 2048, 4096, 512)
        yield from experts(at, 128, 2048, 768)


def deepseek_v3() -> Shapes:
    for i in range(61):
        at = f"model.layers.{i}"
        yield f"{at}.self_attn.q_a_proj.weight", (1536, 7168)
        yield f"{at}.self_attn.q_b_proj.weight", (24576, 1536)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (576, 7168)
        yield f"{at}.self_attn.kv_b_proj.weight", (32768, 512)
        yield f"{at}.self_attn.o_proj.weight", (7168, 16384)
        if i < 3:
            yield from mlp(f"{at}.mlp", 7168, 18432)
        else:
            yield from experts(at, 256, 7168, 2048)
            yield from mlp(f"{at}.mlp.shared_experts", 7168, 2048)


def kimi_like() -> Shapes:
    """61 layers with 384 experts of 2048 x 7168."""
    for i in range(61):
        at = f"model.layers.{i}"
        yield f"{at}.self_attn.q_a_proj.weight", (1536, 7168)
        yield f"{at}.self_attn.q_b_proj.weight", (12288, 1536)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (576, 7168)
        yield f"{at}.self_attn.kv_b_proj.weight", (16384, 512)
        yield f"{at}.self_attn.o_proj.weight", (7168, 8192)
        if i < 1:
            yield from mlp(f"{at}.mlp", 7168, 18432)
        else:
            yield from experts(at, 384, 7168, 2048)
            yield from mlp(f"{at}.mlp.shared_experts", 7168, 2048)


MODELS = {
    "dense-1.1b": lambda: dense(16, 2048, 2048, 8192),
    "llama-3-8b": lambda: dense(32, 4096, 1024, 14336),
    "qwen3-30b-a3b": qwen3_30b_a3b,
    "deepseek-v3": deepseek_v3,
    "kimi-like": kimi_like,
}

LAYOUTS = {
    "llama-3-8b": ("8", "64", "512", "1024", "4096", "copies 16 x 64", "copies 128 x 8"),
    "qwen3-30b-a3b": ("512", "1024", "copies 8 x 64"),
    "deepseek-v3": ("1024", "4096"),
    "kimi-like": ("experts 64 x 32",),
}
"""FSDP on so many processes; HSDP as copies x shards; expert parallel x FSDP."""


def layout_on(layout: str) -> LayoutOf:
    """The layout of each parameter."""
    kind, sizes = layout.split(" ", 1) if " " in layout else ("", layout)
    mesh = tuple(map(int, sizes.split(" x ")))

    def lay(name: str, p: torch.Tensor) -> Layout:
        shape = tuple(p.shape)
        if kind == "copies":
            return Layout(shape, mesh, (None, Split(0)))
        if kind == "experts" and p.ndim == 3:
            return Layout(shape, mesh, (Split(0), Split(1)))
        return Layout(shape, (math.prod(mesh),), (Split(0),))

    return lay


def plans_of(shapes: Shapes, layout: str, options: Options | None = None) -> list[ShardedPlan]:
    """The plans for all hidden matrices of a model, one per mesh."""
    meta = torch.device("meta")
    named = [(n, torch.empty(s, device=meta, dtype=torch.bfloat16)) for n, s in shapes]
    return forecast(pl.recipes.aurora_mlp(named, lr=0.02), layout_on(layout), options)


Held = dict[tuple[int, ...], list[tuple[float, float]]]
"""Flops, and the price of moving it, of each matrix that some processes hold, by these."""


def by_holders(plans: list[ShardedPlan]) -> tuple[list[float], Held]:
    """Load of each matrix that costs every owner the same, and the others by their holders."""
    alone: list[float] = []
    held: Held = {}
    for plan in plans:
        for kind, cost, moved in zip(plan.kinds, plan.costs, plan.transfer_costs, strict=True):
            if kind.whole_holders:
                held.setdefault(kind.whole_holders, []).append((cost, moved))
            else:  # on all processes, or whole on none
                alone.append(cost if kind.whole_holders is None else cost + moved)
    return alone, held


def moving_over_computing(plans: list[ShardedPlan]) -> float:
    """The price of moving all matrices that some processes hold whole, over that of computing."""
    pairs = [pair for kinds in by_holders(plans)[1].values() for pair in kinds]
    return sum(moved for _, moved in pairs) / (sum(flops for flops, _ in pairs) or 1.0)


def least_busiest(plans: list[ShardedPlan]) -> float:
    """A load, in flops, that the busiest process has under any assignment of matrices to owners.

    It has the costliest matrix, or more: a matrix costs its flops, and its bytes too for an owner
    that does not hold it in full. Were matrices divisible, holders would keep as many as the bound
    allows, the most bytes per flop first, and all others would move at their price.
    """
    alone, held = by_holders(plans)
    for kinds in held.values():
        kinds.sort(key=lambda pair: -pair[1] / pair[0])

    def fits(load: float) -> bool:
        """True if processes with this load each have room for everything."""
        total = sum(alone)
        for holders, kinds in held.items():
            room = load * len(holders)
            for flops, moved in kinds:
                kept = min(flops, room)
                room -= kept
                total += kept + (flops - kept) * (1 + moved / flops)
        return total <= load * plans[-1].size

    low = max([*alone, *(flops for kinds in held.values() for flops, _ in kinds)])
    high = low + sum(plans[-1].loads)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def measure(model: str, layout: str) -> dict[str, Any]:
    """The plans in numbers, and the CPU seconds that a process takes to plan its first step."""
    start = time.process_time()
    plans = plans_of(MODELS[model](), layout)
    loads = plans[-1].loads  # of all plans
    busiest = loads.index(max(loads))
    for plan in plans:
        ProcessSchedule(plan, busiest)
    seconds = time.process_time() - start
    total = list(zip(*map(traffic, plans), strict=True))  # by process
    summaries = [summary(plan) for plan in plans]
    mean = sum(loads) / len(loads)
    one = plans_of(MODELS[model](), layout, Options(node_size=1))[-1].loads
    return {
        "model": model,
        "layout": layout,
        "processes": plans[-1].size,
        "matrices": sum(s.matrices for s in summaries),
        "kinds": sum(len(set(plan.kinds)) for plan in plans),
        "local": sum(s.local for s in summaries),
        "rowwise": sum(len(s.rowwise) for s in summaries),
        "shared": sum(len(plan.shared) for plan in plans),
        "sharers": max(s.sharers for s in summaries),
        "shared_sums": max(s.shared_sums for s in summaries),
        "of_one_owner": max(loads) / max(one),
        "work_of_one_owner": sum(loads) / sum(one),
        "balance_of_one_owner": max(one) / (sum(one) / len(one)),
        "balance": max(loads) / mean,
        "bound": least_busiest(plans) / mean,
        "moving_over_computing": moving_over_computing(plans),
        "sent": max(sum(t.sent for t in own) for own in total),
        "received": max(sum(t.received for t in own) for own in total),
        "all_gather": sum(s.all_gather for s in summaries),
        "peers": max(len(set().union(*(t.peers for t in own))) for own in total),
        "messages": sum(s.messages for s in summaries),
        "buckets": max(s.buckets for s in summaries),
        "largest_bucket": max(s.at_once for s in summaries),
        "bucket_bytes": plans[0].options.bucket_bytes,
        "peak_memory": max(s.peak_memory for s in summaries),
        "plan_seconds": seconds,
    }


def kept(path: Path, cases: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The records of these cases that a file has."""
    records = json.loads(path.read_text()) if path.exists() else []
    return [r for r in records if (r["model"], r["layout"]) in cases]


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Bars: balance, bytes and peak memory, peers, largest bucket of each plan."""
    drawn, panels = figure(10, panels=4, sharex=True)
    names = [f"{r['model']}, {r['layout']}" for r in records]
    looks = styles(dict.fromkeys(r["model"] for r in records))
    colours = [looks[r["model"]].colour for r in records]
    place = range(len(records))
    panels[0].bar(place, [r["balance"] for r in records], color=colours)
    panels[0].plot(place, [r["bound"] for r in records], "k_")
    panels[0].plot(place, [r["balance_of_one_owner"] for r in records], "kx", ms=4)
    panels[1].bar(place, [r["sent"] / 1e9 for r in records], color=colours)
    panels[1].plot(place, [r["peak_memory"] / 1e9 for r in records], "k_")
    panels[2].bar(place, [r["peers"] for r in records], color=colours)
    panels[2].axhline(128, color="#999999", lw=0.8)
    title = "busiest over mean load; -: least possible; x: one owner per matrix"
    tidy(panels[0], title, "", "ratio")
    tidy(panels[1], "sent per step by the busiest; -: peak of messages and matrices", "", "GB")
    tidy(panels[2], "others that a process exchanges messages with", "", "processes")
    panels[3].bar(place, [r["largest_bucket"] / r["bucket_bytes"] for r in records], color=colours)
    panels[3].plot(place, [r["plan_seconds"] for r in records], "k_")
    panels[3].axhline(2, color="#999999", lw=0.8)
    tidy(panels[3], "largest bucket over bucket_bytes; -: CPU seconds to plan", "", "ratio, s")
    panels[3].set_xticks(place, names, rotation=40, ha="right", fontsize=7)
    FigureCanvasAgg(drawn).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(LAYOUTS))
    parser.add_argument("--layouts", nargs="+", help="such as 512, 'copies 16 x 64'")
    parser.add_argument("--again", action="store_true", help="replace what the file has")
    parser.add_argument("--out", type=Path, default=Path("runs/plans-at-scale"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if Console().is_terminal else 160)
    cases = [
        (model, layout)
        for model in options.models
        for layout in options.layouts or LAYOUTS.get(model, ("512",))
    ]
    path = options.out / "plans.json"
    records = [] if options.again else kept(path, cases)
    done = {(r["model"], r["layout"]) for r in records}
    for case in track([c for c in cases if c not in done], "planning", console=console):
        records.append(measure(*case))
        records.sort(key=lambda r: cases.index((r["model"], r["layout"])))
        path.write_text(json.dumps(records, indent=1))
    table = Table("model", "layout", "matrices", "local", "staying", "shared", "busiest", "bound")
    table.add_column("of one", justify="right")
    for column in ("GB sent", "GB received", "peers", "messages", "GB bucket", "GB peak", "s"):
        table.add_column(column, justify="right")
    for r in records:
        sizes = [f"{r[key] / 1e9:.3f}" for key in ("largest_bucket", "peak_memory")]
        table.add_row(
            r["model"],
            r["layout"],
            f"{r['matrices']:,}",
            f"{r['local']:,}",
            str(r["rowwise"]),
            str(r["shared"]),
            f"{r['balance']:.2f}",
            f"{r['bound']:.2f}",
            f"{r['of_one_owner']:.2f}",
            f"{r['sent'] / 1e9:.3f}",
            f"{r['received'] / 1e9:.3f}",
            str(r["peers"]),
            str(r["messages"]),
            *sizes,
            f"{r['plan_seconds']:.1f}",
        )
    console.print(table)
    draw(records, options.out / "plans.png")


if __name__ == "__main__":
    main()
