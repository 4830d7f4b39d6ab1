"""False alarms of `RuleCheck` over real runs, and what it finds of eight faults made on purpose.

    python -m benchmarks.rule_check                  # minutes; an interrupted one goes on
    python -m benchmarks.rule_check --fresh          # forgets what is there
    python -m benchmarks.rule_check --seed 1         # other weights and data, in a file of its own

Each run trains a model for 16 steps under one rule, engine and dtype, with every second step
sampled; a line that says BROKEN is a false alarm. Each fault breaks an executor in one way for
three steps of one rule; it counts as found if a parameter that it touched is said to be broken.
Results are kept in benchmarks/results/rule_check/torch-VERSION.json. Runs with a Hugging Face Llama
need transformers and are left out without it.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import polarlight as pl
from benchmarks.faults import FAULTS, Faulty
from polarlight.diagnostics.rule_check import RuleCheck
from polarlight.lab.train.environment import hardware, versions
from polarlight.lab.train.model import GPT
from polarlight.lab.train.model_config import Architecture, ModelConfig
from polarlight.rules.aurora_release import BalancedPolar

FOLDER = Path(__file__).parent / "results" / "rule_check"
STEPS, EVERY, FAULT_STEPS = 16, 2, 3
LENGTH, BATCH, WIDTH, HEADS = 32, 8, 64, 4
LR, AUX_LR = 0.01, 3e-3


def text():
    """Sources of torch as bytes."""
    files = sorted(Path(torch.__file__).parent.glob("*.py"))
    return torch.tensor(list(b"".join(file.read_bytes() for file in files)[:400_000]))


class Classifier(nn.Module):
    """Predict the byte after the last four, by an MLP with one matrix that is tall and one wide."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 16)
        self.up_proj = nn.Linear(64, 256)
        self.down_proj = nn.Linear(256, 64)
        self.lm_head = nn.Linear(64, 256, bias=False)

    def forward(self, tokens, targets):
        x = self.embedding(tokens.unfold(1, 4, 4)).flatten(2)
        x = self.down_proj(nn.functional.relu(self.up_proj(x)))
        wanted = targets[:, 3::4].flatten()
        return nn.functional.cross_entropy(self.lm_head(x).flatten(0, 1).float(), wanted)


class Images(nn.Module):
    """Two convolutions and a classifier on patches of the same bytes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 32, 64)
        self.head = nn.Linear(64, 256)

    def forward(self, tokens, targets):
        x = (tokens.view(-1, 1, 4, LENGTH // 4).to(self.head.weight.dtype) - 64) / 64
        x = nn.functional.relu(self.second(nn.functional.relu(self.first(x)))).flatten(1)
        x = nn.functional.relu(self.hidden(x))
        return nn.functional.cross_entropy(self.head(x).float(), targets[:, -1])


class Llama(nn.Module):
    """A small Llama of transformers."""

    def __init__(self):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2}
        heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2}
        self.llama = LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes, **heads))

    def forward(self, tokens, targets):
        logits = self.llama(input_ids=tokens).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def gpt(architecture):
    return GPT(
        ModelConfig(
            vocab_size=256,
            width=WIDTH,
            layers=2,
            heads=HEADS,
            context=LENGTH,
            experts=4,
            architecture=architecture,
        )
    )


MODELS = {
    "lm": lambda: gpt(Architecture.DENSE),
    "experts": lambda: gpt(Architecture.MOE),
    "mlp": Classifier,
    "images": Images,
    "llama": Llama,
}


def beside_adamw(rule, heads=False):
    """Groups in which hidden matrices get the rule, attention by heads if asked."""

    def groups(model):
        found = []
        for group in pl.rules.with_adamw(model, lr=AUX_LR):
            some = {"rule": rule, "lr": LR} | group
            by_head = heads and group["role"] == "attention"
            found += _by_head(some) if by_head else [some]
        return found

    return groups


def _by_head(group):
    """The group in two: projections whose rows are heads, and those whose columns are."""
    named = list(zip(group["param_names"], group["params"], strict=True))
    rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    rest.pop("reasons", None)
    for dim in (-2, -1):
        some = [(name, p) for name, p in named if ("o_proj" in name) == (dim == -1)]
        yield rest | {"params": some, "view": pl.view.Heads(HEADS, dim=dim)}


def stack(model):
    return pl.recipes.symmetric_stack(
        model, lr=4e-3, embedding_lr=AUX_LR, head_lr=AUX_LR, aux_lr=AUX_LR
    )


def mlp_recipe(model):
    return pl.recipes.aurora_mlp(model, lr=4e-3, aux_lr=AUX_LR)


@dataclass(frozen=True)
class Run:
    """A model, how it is optimized, and in which dtype its weights are."""

    model: str
    name: str
    groups: Callable
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.model}, {self.name}, {str(self.dtype).removeprefix('torch.')}"


def engines():
    bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
    yield "AutoPolar bfloat16", pl.linalg.AutoPolar(dtype=bf16)
    yield "AutoPolar float32", pl.linalg.AutoPolar(dtype=f32)
    yield "Jordan bfloat16", pl.linalg.NewtonSchulz(pl.linalg.schedules.JORDAN, bf16)
    yield "Polar Express float32", pl.linalg.NewtonSchulz(pl.linalg.polar_express(5), f32)
    yield "Gram float16", pl.linalg.GramNewtonSchulz(dtype=f16)
    yield "Gram bfloat16", pl.linalg.GramNewtonSchulz(dtype=bf16)
    yield "QDWH", pl.linalg.QDWH()
    yield "Zolo-PD", pl.linalg.ZoloPD()
    yield "SVD", pl.linalg.ExactPolar()


def rules():
    yield "muon", pl.rules.muon()
    yield "aurora", pl.rules.aurora()
    yield "aurora, release", pl.rules.aurora(BalancedPolar())
    yield "aurora, paper", pl.rules.aurora(pl.rules.FeedbackPolar())
    yield "aurora, Riemannian", pl.rules.aurora(pl.rules.RiemannianPolar())
    yield "aurora, wide", pl.rules.aurora(side=pl.stages.Side.WIDE)
    yield "normuon", pl.rules.normuon()
    yield "unormuon", pl.rules.unormuon()
    yield "muoneq", pl.rules.muoneq()
    yield "muoneq, both", pl.rules.muoneq(pl.stages.EquilibrateBoth())
    yield "polargrad", pl.rules.polargrad()
    yield "row_then_polar", pl.rules.row_then_polar()
    yield "polar_then_row", pl.rules.polar_then_row()
    yield "one_sided", pl.rules.one_sided()
    yield "row_norm", pl.rules.row_norm()


FEW = ("muon", "aurora", "normuon", "muoneq", "polargrad", "row_norm")
"""Rules that are run on every model."""

BROKEN = (
    *("muon", "aurora", "normuon", "muoneq", "polargrad", "row_norm"),
    *("aurora, release", "aurora, paper", "row_then_polar", "polar_then_row"),
)
"""Rules that are broken on purpose."""


def others():
    """Rules of which little is promised."""
    yield "muoneq, both then rows", pl.rules.muoneq(pl.rules.rows_after(10))
    yield "polar_adamw", pl.rules.polar_adamw()
    yield "polargrad_polar_first", pl.rules.polargrad_polar_first()
    yield "freon", pl.rules.freon()
    yield "kaon", pl.rules.kaon()
    yield "shampoo", pl.rules.shampoo()
    yield "soap", pl.rules.soap()
    yield "kl_soap", pl.rules.kl_soap()


def runs() -> list[Run]:
    """Every run in which an alarm would be false."""
    found = [
        Run(model, name, beside_adamw(rule))
        for model in ("lm", "experts", "mlp")
        for name, rule in rules()
        if model == "lm" or name in FEW[: 3 if model == "mlp" else 4]
    ]
    found += [Run("lm", name, beside_adamw(rule)) for name, rule in others()]
    for name, polar in engines():
        found += [
            Run("lm", f"{rule.name}, {name}", beside_adamw(rule))
            for rule in (
                pl.rules.muon(polar=polar),
                pl.rules.aurora(replace(pl.rules.WarmPolar(), polar=polar)),
            )
        ]
    for model in ("lm", "experts"):
        found += [
            Run(model, name, beside_adamw(rule), torch.bfloat16)
            for name, rule in (("muon", pl.rules.muon()), ("aurora", pl.rules.aurora()))
        ]
    found.append(Run("lm", "muon by heads", beside_adamw(pl.rules.muon(), heads=True)))
    found.append(Run("lm", "normuon by heads", beside_adamw(pl.rules.normuon(), heads=True)))
    found += [Run("images", name, beside_adamw(rule)) for name, rule in [*rules()][:1]]
    for model in ("lm", "experts"):
        found += [Run(model, "symmetric stack", stack), Run(model, "aurora_mlp", mlp_recipe)]
    if _has_transformers():
        found += [Run("llama", name, beside_adamw(rule)) for name, rule in [*rules()][:4]]
    return found


def _has_transformers():
    return find_spec("transformers") is not None


def train(run: Run, data, steps: int, every: int, executor=None, seed: int = 0) -> RuleCheck:
    """Train a new model; return the check's results."""
    torch.manual_seed(seed)
    model = MODELS[run.model]().to(run.dtype)
    optimizer = pl.SpectralOptimizer(run.groups(model), executor=executor)
    check = RuleCheck(every)
    optimizer.observe(check)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH,), generator=generator)
        pieces = torch.stack([data[s : s + LENGTH + 1] for s in starts])
        model(pieces[:, :-1], pieces[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return check


def false_alarms(run: Run, data, steps: int = STEPS, every: int = EVERY, seed: int = 0) -> dict:
    """The alarms of a run without a fault, and how near each measure came to its limit."""
    check = train(run, data, steps, every, seed=seed)
    nearest: dict[str, float] = {}
    for verdict in check.verdicts():
        for promise, value in verdict.measures.items():
            if limit := verdict.limits[promise]:
                nearest[promise] = max(nearest.get(promise, 0.0), value / limit)
    alarms = {verdict.name: verdict.verdict for verdict in check.broken()}
    return {"alarms": alarms, "nearest": {k: round(x, 3) for k, x in nearest.items()}}


def detection(run: Run, fault: str, data, steps: int = FAULT_STEPS, seed: int = 0) -> dict:
    """The parameters that a fault touched, and those of them that are reported."""
    faulty = Faulty(FAULTS[fault])
    check = train(run, data, steps, 1, faulty, seed)
    broken = {verdict.name for verdict in check.broken()}
    return {
        "touched": len(faulty.touched),
        "reported": len(faulty.touched & broken),
        "unreported": sorted(faulty.touched - broken),
        "false": sorted(broken - faulty.touched),
    }


def faulty_runs() -> list[tuple[Run, str]]:
    """Rules under each fault, on a dense model by heads and on experts."""
    made = [
        Run(model, name, beside_adamw(rule, heads=model == "lm"))
        for model, names in (("lm", BROKEN), ("experts", BROKEN[:2]))
        for name, rule in rules()
        if name in names
    ]
    return [(run, fault) for run in made for fault in FAULTS]


class Results:
    """Results by name, in a file that is written after each."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.known = {"runs": {}, "faults": {}}
        if path.exists() and not fresh:
            self.known |= json.loads(path.read_text())

    def of(self, kind: str, name: str, make: Callable[[], dict]) -> dict:
        if name not in self.known[kind]:
            self.known[kind][name] = make()
            self.write()
        return self.known[kind][name]

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made_by = {"versions": versions(), "hardware": hardware(torch.device("cpu"))}
        self.path.write_text(json.dumps(made_by | self.known, indent=1) + "\n")


def fault_table(found: dict) -> Table:
    table = Table("fault", "runs", "reported", "parameters touched", "reported")
    for fault in FAULTS:
        some = [x for name, x in found.items() if name.endswith(f": {fault}") and x["touched"]]
        table.add_row(
            fault,
            str(len(some)),
            str(sum(x["reported"] > 0 for x in some)),
            str(sum(x["touched"] for x in some)),
            str(sum(x["reported"] for x in some)),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--fresh", action="store_true", help="forget what is there")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    options = parser.parse_args()
    console = Console(width=120)
    release = torch.__version__.split("+")[0]
    seed = options.seed
    name = f"torch-{release}-seed-{seed}" if seed else f"torch-{release}"
    results = Results(options.out / f"{name}.json", options.fresh)
    data = text()
    alarms = {}
    for run in track(runs(), description="false alarms", console=console):
        found = results.of("runs", str(run), lambda run=run: false_alarms(run, data, seed=seed))
        alarms |= {str(run): found["alarms"]} if found["alarms"] else {}
    faults = {}
    for run, fault in track(faulty_runs(), description="faults", console=console):
        name = f"{run}: {fault}"
        faults[name] = results.of(
            "faults", name, lambda run=run, fault=fault: detection(run, fault, data, seed=seed)
        )
    for name, lines in alarms.items():
        console.print(name, lines)
    console.print(f"torch {release}: {len(alarms)} of {len(runs())} runs with a false alarm")
    console.print(fault_table(faults))
    for name, found in faults.items():
        if found["touched"] and not found["reported"]:
            console.print(f"not found: {name}")


if __name__ == "__main__":
    main()
