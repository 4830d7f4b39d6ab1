"""Owners and bytes of a step on 8 to 4,096 processes, planned from shapes.

    python -m benchmarks.plans_at_scale
    python -m benchmarks.plans_at_scale --models deepseek-v3 --ranks 4096

Plans are made of shapes alone: no process, no weights. Hidden matrices in bfloat16 under
`aurora_mlp`; embeddings, heads and norms are elementwise and move nothing. FSDP cuts every
parameter's first dimension among all processes (a stack of experts into whole experts); HSDP does
so among 64 and has copies of that. "busiest" and "costliest" are over the mean load; "exchange" in
the JSON file is what plain all-to-alls to owners and back would send. Writes that file and a
picture.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.progress import track
from rich.table import Table

import polarlight as pl
from polarlight.execution.sharded.forecast import forecast, summary
from polarlight.execution.sharded.layouts import Layout, Split
from polarlight.execution.sharded.plan import Plan
from polarlight.execution.sharded.schedule import ProcessSchedule
from polarlight.lab.report.style import figure, legend, styles, tidy

Shapes = Iterator[tuple[str, tuple[int, ...]]]
SHARDS = 64
"""Processes that HSDP cuts a parameter among."""


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


MODELS = {
    "dense-1.1b": lambda: dense(16, 2048, 2048, 8192),
    "llama-3-8b": lambda: dense(32, 4096, 1024, 14336),
    "qwen3-30b-a3b": qwen3_30b_a3b,
    "deepseek-v3": deepseek_v3,
}


def plan_of(shapes: Shapes, processes: int, hybrid: bool) -> Plan:
    """The plan for all hidden matrices of a model."""
    meta = torch.device("meta")
    named = [(n, torch.empty(s, device=meta, dtype=torch.bfloat16)) for n, s in shapes]
    mesh = (processes // SHARDS, SHARDS) if hybrid else (processes,)
    splits = (None, Split(0)) if hybrid else (Split(0),)
    (plan,) = forecast(
        pl.recipes.aurora_mlp(named, lr=0.02), lambda name, p: Layout(tuple(p.shape), mesh, splits)
    )
    return plan


def measure(model: str, processes: int, hybrid: bool) -> dict[str, Any]:
    """The plan in numbers, and the seconds it took one process to be ready for its first step."""
    start = time.perf_counter()
    plan = plan_of(MODELS[model](), processes, hybrid)
    ProcessSchedule(plan, plan.loads.index(max(plan.loads)))
    seconds = time.perf_counter() - start
    costliest = max(plan.costs) * plan.size / sum(plan.costs)
    about = {"model": model, "processes": processes, "layout": "HSDP" if hybrid else "FSDP"}
    found = asdict(summary(plan))
    found["rowwise"] = len(found["rowwise"])
    return {**about, **found, "costliest_over_mean": costliest, "plan_seconds": seconds}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Balance and bytes over the number of processes, FSDP alone; dotted: gather everything."""
    drawn, (above, below) = figure(5.4, panels=2, sharex=True)
    looks = styles(dict.fromkeys(r["model"] for r in records))
    for model, look in looks.items():
        rows = [r for r in records if r["model"] == model and r["layout"] == "FSDP"]
        enough = [r for r in rows if r["costliest_over_mean"] <= 1]
        x = [r["processes"] for r in rows]
        line = {"color": look.colour, "lw": 1.4}
        above.plot(x, [r["balance"] for r in rows], **line)
        above.plot([r["processes"] for r in enough], [r["balance"] for r in enough], "o", **line)
        below.plot(x, [r["sent"] / 1e9 for r in rows], **line)
        below.plot(x, [r["all_gather"] / 1e9 for r in rows], ls="dotted", **line)
    above.axhline(1.1, color="#999999", lw=0.8)
    for ax in (above, below):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
    tidy(above, "busiest over mean load; dots: no matrix is above the mean", "", "ratio")
    tidy(
        below, "sent per step by the busiest; dotted: all gathered by all", "processes (FSDP)", "GB"
    )
    legend(drawn, looks)
    FigureCanvasAgg(drawn).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 32, 128, 512, 2048, 4096])
    parser.add_argument("--out", type=Path, default=Path("runs/plans-at-scale"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if Console().is_terminal else 160)
    cases = [
        (model, processes, hybrid)
        for model in options.models
        for processes in options.ranks
        for hybrid in (False, True)
        if not hybrid or (processes > SHARDS and processes % SHARDS == 0)
    ]
    records = [measure(*case) for case in track(cases, "planning", console=console)]
    table = Table("model", "processes", "matrices", "local", "staying", "busiest", "costliest")
    for column in ("GB sent", "GB received", "GB, gather all", "seconds"):
        table.add_column(column, justify="right")
    for r in records:
        sizes = (f"{r[key] / 1e9:.2f}" for key in ("sent", "received", "all_gather"))
        shape = f"{r['layout']} {' x '.join(map(str, r['mesh']))}"
        ratios = (f"{r['balance']:.2f}", f"{r['costliest_over_mean']:.2f}")
        seconds = f"{r['plan_seconds']:.1f}"
        table.add_row(
            r["model"],
            shape,
            f"{r['matrices']:,}",
            f"{r['local']:,}",
            str(r["rowwise"]),
            *ratios,
            *sizes,
            seconds,
        )
    console.print(table)
    (options.out / "plans.json").write_text(json.dumps(records, indent=1))
    draw(records, options.out / "plans.png")


if __name__ == "__main__":
    main()
