"""Everything that is to be known from a GPU, in one command of at most ten minutes.

    make gpu-report                                     # on the machine's first GPU
    python -m benchmarks.gpu_report --minutes 5 --skip training
    python -m benchmarks.gpu_report --device cpu --tiny  # tries the script, in a minute

Parts, in this order; each is tried by itself, and a failure is recorded with its message:

    contracts   every rule in float32, bfloat16 and float16: agreement with the CPU, host syncs
    graphs      a step captured in a CUDA graph, replayed, against an eager one
    compiled    a compiled step: graphs that it needs under a scheduler, agreement with eager
    steps       time of a step beside torch (eager and compiled), fused AdamW, peers, the forecast
    quack       symmetric products of quack-kernels against plain ones, by side and batch
    fsdp        a step on a module sharded by FSDP2 over one process
    training    track 3 with Muon, then with Aurora, for the time that is left: loss and tokens/s

Writes `report.json` and `steps.png`. A part that the rest of the time cannot hold is left out.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn

import polarlight as pl
from benchmarks.command_line import recorded_command
from benchmarks.gpu_forecast import MODELS, OPTIMIZERS
from benchmarks.launches import parameters_of, peer
from benchmarks.optimizer_step import commit
from polarlight import NonFinite
from polarlight.lab.report.style import figure, tidy
from polarlight.lab.train.environment import hardware, versions
from polarlight.rule import HOST_COUNTER, UpdateRule

OUT = Path(__file__).parent / "results" / "gpu_report"
SHAPES = [(96, 32), (96, 32), (32, 96), (48, 48), (8, 2)]
TINY = {"tiny": [(64, 32)] * 4 + [(32, 32)] * 4}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Report:
    """Settings and results that all parts of the report share.

    Attributes:
        device: Where steps run.
        tiny: Small shapes and few repeats.
        data: Folder with FineWeb shards for the training part, or None.
        until: `time.monotonic()` at which the report must be done.
        parts: Results by name.
    """

    device: torch.device
    tiny: bool
    data: Path | None
    until: float
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def run(self, name: str, part: Callable[["Report"], Any]) -> None:
        """Run a part if there is time, and keep its result or its failure."""
        start = time.monotonic()
        if self.left <= 0:
            self.parts[name] = {"left_out": "no time left"}
            return
        result = tried(part, self)
        self.parts[name] = {"seconds": round(time.monotonic() - start, 1), "result": result}
        print(name, json.dumps(result)[:400], flush=True)


def tried(function: Callable[..., Any], *args: Any) -> Any:
    """Return the function's result, or what failed in it."""
    try:
        return function(*args)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return {"failed": f"{type(error).__name__}: {error}"[:400], "where": place}


def parameters(
    shapes: list[tuple[int, int]], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    """Return matrices with gradients, equal on all devices."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for m, n in shapes:
        W, G = (torch.randn(m, n, generator=generator) for _ in range(2))
        rows = (0.5 * torch.randn(m, 1, generator=generator)).exp()
        p = nn.Parameter((0.02 * W).to(device, dtype))
        p.grad = (G * rows).to(device, dtype)
        made.append(p)
    return made


def moved(params: list[nn.Parameter], start: list[Tensor]) -> list[Tensor]:
    return [p.detach().float().cpu() - s.float().cpu() for p, s in zip(params, start, strict=True)]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest relative Frobenius distance of two lists of matrices."""
    pairs = zip(ours, theirs, strict=True)
    return max(((x - y).norm() / y.norm().clamp_min(1e-30)).item() for x, y in pairs)


def contracts(report: Report) -> Any:
    """Every rule and dtype: relative distance of four steps from the CPU's, and host syncs."""
    return {
        name: {
            str(dtype).removeprefix("torch."): tried(contract, report, entry.make(), dtype)
            for dtype in DTYPES
        }
        for name, entry in pl.rules.REGISTERED.items()
        if report.left > 0
    }


def contract(report: Report, rule: UpdateRule, dtype: torch.dtype) -> Any:
    """Compare four steps with those on the CPU; the third one must not wait for the device."""
    results, syncs = [], []
    for device in (torch.device("cpu"), report.device):
        params = parameters(SHAPES, device, dtype)
        start = [p.detach().clone() for p in params]
        optimizer = pl.SpectralOptimizer(params, lr=0.02, rule=rule, weight_decay=0.1)
        for step in range(4):
            watched = device.type == "cuda" and step == 2
            if watched:
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.step()
            except RuntimeError as error:
                syncs.append(str(error)[:100])
                torch.cuda.set_sync_debug_mode("default")
                optimizer.step()
            finally:
                if watched:
                    torch.cuda.set_sync_debug_mode("default")
        results.append(moved(params, start))
    counts = HOST_COUNTER in rule.buffer_shapes(torch.Size(SHAPES[0]))
    return {"distance": distance(*reversed(results)), "syncs": syncs, "may_sync": counts}


def graphs(report: Report) -> Any:
    """Relative distance of a replayed step from an eager one."""
    return {name: tried(graph, report, name) for name in ("Muon", "NorMuon", "Aurora")}


def graph(report: Report, name: str) -> Any:
    """Capture a step after warming up, replay it under another learning rate, and compare."""
    if not report.on_cuda:
        return {"left_out": "CUDA graphs need a CUDA device"}
    pairs = []
    for _ in range(2):
        params = parameters(SHAPES, report.device)
        lr = torch.tensor(0.02, device=report.device)
        pairs.append((params, lr, getattr(pl, name)(params, lr=lr, weight_decay=0.1)))
    (eager, eager_lr, optimizer), (captured, captured_lr, other) = pairs
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
            other.step()
    torch.cuda.current_stream().wait_stream(stream)
    found = torch.cuda.CUDAGraph()
    with torch.cuda.graph(found):
        other.step()
    start = [p.detach().clone() for p in eager]
    for p, value in zip(captured, start, strict=True):
        p.data.copy_(value)
    for lr in (eager_lr, captured_lr):
        lr.fill_(0.01)
    optimizer.step()
    found.replay()
    report.synchronize()
    return {"distance": distance(moved(captured, start), moved(eager, start))}


def compiled(report: Report) -> Any:
    """Graphs of a compiled step whose learning rate changes, and its distance from eager."""
    from torch._dynamo.utils import counters

    found = {}
    for name in ("Muon", "Aurora"):
        counters.clear()
        results = []
        for wrap in (lambda step: step, torch.compile):
            params = parameters(SHAPES, report.device)
            start = [p.detach().clone() for p in params]
            lr = torch.tensor(0.02, device=report.device)
            optimizer = getattr(pl, name)(params, lr=lr)
            step = wrap(optimizer.step)
            for value in (0.02, 0.01, 0.005):
                lr.fill_(value)
                step()
            results.append(moved(params, start))
        unique = counters["stats"]["unique_graphs"]
        found[name] = {"graphs": unique, "distance": distance(*reversed(results))}
    return found


def makers(report: Report) -> dict[str, Callable[[Any], Any]]:
    """Return the optimizers of the step times; compiled ones step through `torch.compile`."""
    found = {label: entry.make for label, entry in OPTIMIZERS.items()}
    if not report.on_cuda:
        found = {label: found[label] for label in ("Muon", "Aurora")}
        return found | {"float32 AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3)}
    if find_spec("heavyball"):
        found["heavyball.Muon"] = peer("heavyball", "Muon")

    def unguarded(params: Any) -> Any:
        return pl.Aurora(params, lr=0.02, weight_decay=0.1, nonfinite=NonFinite.PROPAGATE)

    def in_one_graph(params: Any) -> Any:
        optimizer = torch.optim.Muon(params, lr=torch.tensor(0.02), weight_decay=0.1)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    return found | {"Aurora, no guard": unguarded, "torch.optim.Muon, compiled": in_one_graph}


def steps(report: Report) -> Any:
    """Medians of interleaved step times, with the time of the host, beside the forecast."""
    found = {}
    for model, shapes in (TINY if report.tiny else MODELS).items():
        if report.left > 0:
            found[model] = step_times(report, shapes)
    forecast = Path(__file__).parent / "results" / "gpu_forecast" / "forecast.json"
    forecasts = json.loads(forecast.read_text())["forecast"] if forecast.exists() else {}
    return {"measured": found, "forecast": {m: forecasts[m] for m in found if m in forecasts}}


def step_times(report: Report, shapes: list[tuple[int, int]]) -> dict[str, Any]:
    """Return milliseconds per step and of the host, and peak extra memory, by optimizer."""
    row: dict[str, Any] = {}
    optimizers = {}
    for label, make in makers(report).items():
        made = tried(lambda m: warmed_up(m(parameters(shapes, report.device))), make)
        if isinstance(made, dict):
            row[label] = made
        else:
            optimizers[label] = made
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in optimizers}
    for _ in range(2 if report.tiny else 9):
        for label, optimizer in optimizers.items():
            report.synchronize()
            start = time.perf_counter()
            optimizer.step()
            host = time.perf_counter() - start
            report.synchronize()
            times[label].append((time.perf_counter() - start, host))
    for label, seen in times.items():
        whole, host = zip(*seen, strict=True)
        row[label] = {
            "ms": 1e3 * statistics.median(whole),
            "host_ms": 1e3 * statistics.median(host),
            "least_ms": 1e3 * min(whole),
            "most_ms": 1e3 * max(whole),
        }
    return row


def warmed_up(optimizer: Any) -> Any:
    for _ in range(2):
        optimizer.step()
    return optimizer


def quack(report: Report) -> Any:
    """Ratio of a symmetric product's time by quack-kernels to a plain one's, by side and batch."""
    if not report.on_cuda or find_spec("quack") is None:
        return {"left_out": "needs a CUDA device and quack-kernels"}
    from polarlight.linalg.quack import symmetric_product

    found = {}
    for side in (512, 1024, 2048, 4096):
        for batch in (1, 8, 64):
            if side * side * batch > 2**28:
                continue
            A = torch.randn(batch, side, side, device=report.device, dtype=torch.bfloat16)
            ours = median_seconds(report, lambda A=A: symmetric_product(A, A.mT))
            plain = median_seconds(report, lambda A=A: A @ A.mT)
            flops = 2 * batch * side**3
            found[f"{batch} x {side}"] = {"flops": flops, "ratio": ours / plain, "plain_s": plain}
    return found


def median_seconds(report: Report, function: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats + 2):
        report.synchronize()
        start = time.perf_counter()
        function()
        report.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def fsdp(report: Report) -> Any:
    """Relative distance of a step on sharded parameters, one process, from a plain one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if report.on_cuda else "gloo"
        store = f"file://{folder}/store"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            plain = nn.Sequential(nn.Linear(32, 96), nn.Linear(96, 32)).to(report.device)
            sharded = copy.deepcopy(plain)
            fully_shard(sharded, mesh=init_device_mesh(report.device.type, (1,)))
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).to(report.device)
            results = []
            for model in (plain, sharded):
                start = [full(p).clone() for p in parameters_of(model)]
                optimizer = pl.Aurora(model, lr=0.02)
                for _ in range(2):
                    model(x).square().sum().backward()
                    optimizer.step()
                now = [full(p) for p in parameters_of(model)]
                results.append([(a - b).cpu() for a, b in zip(now, start, strict=True)])
            return {"backend": backend, "distance": distance(*reversed(results))}
        finally:
            dist.destroy_process_group()


def full(p: Tensor) -> Tensor:
    """Return a whole parameter, detached."""
    whole: Tensor = p.full_tensor() if hasattr(p, "full_tensor") else p
    return whole.detach()


class OutOfTimeError(Exception):
    """A run has used its time."""


def training(report: Report) -> Any:
    """Loss and tokens per second of track 3 with Muon and with Aurora in its slot."""
    from polarlight.lab.train.corpus import load_corpus
    from polarlight.lab.train.shards import GPT2_VOCAB_SIZE
    from polarlight.lab.train.track3.loop import Track3Run
    from polarlight.lab.train.track3.settings import PRESETS, RULES

    full_size = report.data is not None
    setting = PRESETS["record-36" if full_size else "small"]
    corpus = load_corpus(report.data, vocab_size=GPT2_VOCAB_SIZE if full_size else None)
    setting = replace(setting, validate_every=50)
    if report.tiny:
        setting = replace(setting, steps=2, horizon=None, validate_every=1, validation_tokens=2048)
    found, each = {}, report.left / 2
    for name in ("muon", "aurora-tall"):
        until, seen = time.monotonic() + each, []

        def tell(step: int, until: float = until, seen: list[Any] = seen) -> None:
            seen.append((step, time.monotonic()))
            if time.monotonic() > until:
                raise OutOfTimeError

        with tempfile.TemporaryDirectory() as folder:
            run = Track3Run(setting, RULES[name], corpus, Path(folder), report.device)
            losses = list(validation_losses(run.records(tell)))
        count, seconds = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
        rate = count * setting.tokens_per_step / seconds if seconds else None
        found[name] = {"losses": losses, "steps": seen[-1][0], "tokens_per_second": rate}
    return {"data": "FineWeb shards" if full_size else "embedded", "runs": found}


def validation_losses(records: Iterator[Any]) -> Iterator[tuple[int, float]]:
    """Yield step and validation loss until the run ends or its time is over."""
    try:
        for record in records:
            if record["kind"] == "validation":
                yield record["step"], record["loss"]
    except OutOfTimeError:
        return


def draw(report: Report, path: Path) -> None:
    """Bars of step times beside the forecast, where both exist."""
    times = report.parts.get("steps", {}).get("result", {}).get("measured", {})
    if not times:
        return
    fig, panels = figure(1.9 * len(times), len(times))
    for ax, (model, row) in zip(panels, times.items(), strict=True):
        bars = {label: x["ms"] for label, x in row.items() if "ms" in x}
        ax.barh(list(bars), list(bars.values()), color="#0072b2", height=0.6)
        tidy(ax, model, xlabel="ms per step")
    FigureCanvasAgg(fig).print_png(path)


PARTS = {
    "contracts": contracts,
    "graphs": graphs,
    "compiled": compiled,
    "steps": steps,
    "quack": quack,
    "fsdp": fsdp,
    "training": training,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    until = time.monotonic() + 60 * options.minutes
    report = Report(device, options.tiny, options.data, until)
    for name, part in PARTS.items():
        if name not in skipped:
            report.run(name, part)
    given = sys.argv[1:] if arguments is None else arguments
    about = {
        "command": recorded_command("benchmarks.gpu_report", given),
        "commit": commit(),
        **versions(),
        **hardware(device),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"about": about, "parts": report.parts}
    (options.out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(report, options.out / "steps.png")


if __name__ == "__main__":
    main()
