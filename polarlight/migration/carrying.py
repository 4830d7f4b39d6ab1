"""Fill an optimizer's state from another optimizer, in the same process or from a file.

    carry_over([their_muon, their_adamw], ours)            # parameters are the same objects
    load_carried(ours, from_file(torch.load("converted.pt")))    # parameters have the same names

Only buffers that the new rule keeps are copied. The report lists buffers that start from zero, with
the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from polarlight.linalg.rest import SIZES
from polarlight.lookup import check_optimizer
from polarlight.migration.carried import Carried
from polarlight.migration.conventions import momentum_factor
from polarlight.migration.own import fitting_buffers
from polarlight.migration.sources import read_entry
from polarlight.optimizer.fingerprint import config_of
from polarlight.optimizer.param_groups import named_params
from polarlight.optimizer.spectral import SpectralOptimizer
from polarlight.routing.roles.wrappers import plain_name
from polarlight.rule import MOMENTUM, UpdateRule
from polarlight.stages.momentum import EMA


@dataclass(frozen=True, slots=True)
class Line:
    """Outcome of carrying state over to one parameter.

    Attributes:
        name: The parameter.
        carried: Names of the buffers that were filled.
        fresh: Names of the buffers that start from zero.
        reason: Reason for these; empty if there are none.
    """

    name: str
    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Outcome of carrying state over to all parameters; `str` gives a summary.

    Attributes:
        lines: One per parameter of the new optimizer.
        left_behind: Parameters of the old optimizer that the new one does not have.
    """

    lines: tuple[Line, ...]
    left_behind: tuple[str, ...] = ()

    def __str__(self) -> str:
        full = sum(bool(line.carried) and not line.fresh for line in self.lines)
        kinds: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[str]] = {}
        for line in self.lines:
            kinds.setdefault((line.carried, line.fresh, line.reason), []).append(line.name)
        said = [f"{full} of {len(self.lines)} parameters keep all of their state"]
        for (carried, fresh, reason), names in kinds.items():
            what = [f"{', '.join(carried)} carried"] if carried else []
            what += [f"{', '.join(fresh)} from zero ({reason})"] if fresh else []
            said.append(f"  {len(names):4} x {'; '.join(what)}: {names[0]}{_more(names)}")
        if self.left_behind:
            first = f"{self.left_behind[0]}{_more(self.left_behind)}"
            said.append(f"  {len(self.left_behind):4} x dropped, not in the new optimizer: {first}")
        return "\n".join(said)


def carry_over(old: Optimizer | Iterable[Optimizer], new: SpectralOptimizer) -> Report:
    """Fill the state of `new` from optimizers that hold the same parameter objects.

    Build `new` on the same model, call this once in mid-training, and continue with `new`. Learning
    rates do not change: `translate_lr` gives equivalent ones.

    Args:
        old: One optimizer or several, such as a Muon and an AdamW; their state is copied. A
            polarlight optimizer too: after a replaced head, or for another rule, betas or view.
        new: The optimizer to fill.

    Raises:
        ValueError: If an optimizer's format is not known, or none of its parameters is in `new`.
    """
    check_optimizer("carry_over", new)
    entries: dict[int, Carried] = {}
    places: list[tuple[str, Tensor]] = []
    for optimizer in [old] if isinstance(old, Optimizer) else old:
        check_optimizer("carry_over", optimizer)
        for name, p, group in named_params(optimizer):
            entries[id(p)] = read_entry(group, optimizer.state.get(p, {}))
            places.append((name, p))
    found = {name: entries[id(p)] for name, p, _ in named_params(new) if id(p) in entries}
    if not found:
        raise ValueError(
            "the optimizers have no parameter in common: build the new one on the same model "
            "object, or load by name with load_carried"
        )
    here = {id(p) for _, p, _ in named_params(new)}
    left_behind = tuple(name for name, p in places if id(p) not in here)
    return _fill(new, found, "not in the old optimizers", left_behind)


def load_carried(new: SpectralOptimizer, carried: Mapping[str, Carried]) -> Report:
    """Fill the state of `new` by parameter name.

    Words that wrappers add to names count on neither side: `_orig_mod.` of `torch.compile`,
    `module.` of DataParallel and others.

    Args:
        new: An optimizer built from a module or from named parameters.
        carried: Result of `read_state_dict` or `from_file`; merge several by `|`.

    Raises:
        ValueError: If no name is known to `new`, or a shape differs; the message lists them.
    """
    check_optimizer("load_carried", new)
    names = {name for name, _, _ in named_params(new)}
    carried = _under_names(carried, names)
    if not names & carried.keys():
        theirs, ours = (", ".join(sorted(keys)[:3]) for keys in (carried.keys(), names))
        raise ValueError(f"no name in common. Carried: {theirs}, ...; the optimizer's: {ours}, ...")
    unknown = sorted(carried.keys() - names)
    if unknown and not all(carried[name].rule for name in unknown):
        raise ValueError(
            f"the optimizer has no parameter {', '.join(unknown[:5])}{_more(unknown[4:])}; "
            "leave these out to load the rest"
        )
    return _fill(new, carried, "not in the file", tuple(unknown))


def _under_names(carried: Mapping[str, Carried], names: set[str]) -> dict[str, Carried]:
    """Return carried states under the optimizer's names, which may have other wrappers' words.

    A name that both have stays; of others the plain names are compared, where they are unique.
    """
    ours, theirs = (_by_plain_name(x) for x in (names - carried.keys(), carried.keys() - names))
    renamed = {
        found[0]: ours[plain][0]
        for plain, found in theirs.items()
        if len(found) == len(ours.get(plain, ())) == 1
    }
    return {renamed.get(name, name): one for name, one in carried.items()}


def _by_plain_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names by their plain ones, without the words of wrappers."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain_name(name), []).append(name)
    return found


@torch.no_grad()
def _fill(
    new: SpectralOptimizer,
    carried: Mapping[str, Carried],
    missing: str,
    left_behind: tuple[str, ...],
) -> Report:
    """Fill every parameter's state; raise ValueError if shapes differ in a foreign optimizer."""
    places = named_params(new)
    carried = dict(carried)
    wrong = []
    for name, p, _ in places:
        one = carried.get(name)
        if one is None or one.momentum is None or one.momentum.shape == p.shape:
            continue
        shape = tuple(one.momentum.shape)
        wrong += [] if one.rule else [f"{name}: {shape}, not {tuple(p.shape)}"]
        carried[name] = Carried(reason=f"its shape was {shape}")
    if wrong:
        raise ValueError(f"shapes differ; are the names in the right order? {'; '.join(wrong)}")
    new.state_dict()  # every parameter has its state afterwards
    nothing = Carried(reason=missing)
    lines = [
        _fill_one(name, group, new.state.get(p, {}), carried.get(name, nothing))
        for name, p, group in places
    ]
    return Report(tuple(lines), left_behind)


def _fill_one(name: str, group: Mapping[str, Any], state: dict[str, Tensor], one: Carried) -> Line:
    """Fill one parameter's state in place and return what was filled."""
    spectral = isinstance(group["rule"], UpdateRule)
    values = _spectral(group, one) if spectral else _elementwise(group, one)
    fitting, why = fitting_buffers(one, group) if one.rule else ({}, "")
    values |= fitting
    filled = [
        key
        for key, value in values.items()
        if key in state and value is not None and state[key].shape == value.shape
    ]
    for key in [*filled]:
        if key == MOMENTUM and spectral:
            written = group["rule"].momentum.store(state, values[key])
            filled += [other for other in written if other not in filled]
        else:
            state[key].copy_(values[key])
    if "exp_avg_sq" in filled and one.beta2 is not None:
        numbers = one.beta1, float(group["momentum"])
        state.update(group["rule"].adapted_state(state, {"beta2": one.beta2}, numbers))
    fresh = tuple(key for key in state if key not in (*filled, SIZES))  # found in the next step
    reason = one.reason or why or ("no counterpart" if fresh else "")
    return Line(name, tuple(filled), fresh, reason if fresh else "")


def _spectral(group: Mapping[str, Any], one: Carried) -> dict[str, Any]:
    """Return buffers of a matrix rule: the momentum in the rule's unit, and NorMuon's rows."""
    mean = one.mean()
    if mean is not None:
        factor = momentum_factor(EMA(), group["rule"].momentum, group["momentum"])
        mean = mean if factor == 1 else mean * factor
    return {MOMENTUM: mean, "row_second_moment": one.row_second_moment}


def _elementwise(group: Mapping[str, Any], one: Carried) -> dict[str, Any]:
    """Return AdamW's buffers, or none unless both moments are there."""
    adamw = config_of(group["rule"])["method"] == "adamw"
    if not adamw or one.second_moment is None or one.momentum is None:
        return {}
    step = torch.tensor(float(one.step))
    return {"exp_avg": one.momentum, "exp_avg_sq": one.second_moment, "step": step}


def _more(names: Sequence[str]) -> str:
    """Return ` and N more` for all names but the first."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
