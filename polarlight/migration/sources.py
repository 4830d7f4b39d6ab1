"""How each library keeps its optimizer's state, and how to read it.

    polarlight     groups carry rule and view; momentum_buffer in the rule's own unit
    torch-muon     momentum_buffer, an average
    keller         the same; groups with use_muon=False have exp_avg, exp_avg_sq, step
    moonlight      momentum_buffer, a sum; use_muon and AdamW's moment1, moment2 beside it in the
                   state; KellerJordan/Muon of 2024 is alike
    dion           momentum, a sum; groups carry algorithm, mu, beta1 and AdamW's step; variance
    normuon        as keller, and second_momentum_buffer, one number per row
    torch-adamw    exp_avg, exp_avg_sq, step
    aurora-release a list of averages in the order of model.parameters(), kept by the caller

Each was read from its library's code in 2026; the tests build it anew, or run the real one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarlight.lookup import look_up
from polarlight.migration.carried import Carried
from polarlight.migration.own import is_own, own_convention, read_own

Group = Mapping[str, Any]
State = Mapping[str, Any]
Entry = tuple[Group, State]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One library's format.

    Attributes:
        name: What `--from` takes.
        about: The class that writes it.
        fits: Whether a group and a state of one of its parameters are of this format.
        read: What they carry.
        convention: Name of what the group's learning rate means, as in `conventions.py`.
    """

    name: str
    about: str
    fits: Callable[[Group, State], bool]
    read: Callable[[Group, State], Carried]
    convention: Callable[[Group], str]


_NORMALISED = 0.02


def _torch_muon(group: Group, state: State) -> Carried:
    M = state["momentum_buffer"]
    # torch 2.13 writes the normalised matrix into such a buffer: pytorch issue 190597.
    exposed = not group.get("nesterov", True) and M.dtype is torch.bfloat16
    if exposed and abs(float(M.float().norm()) - 1) < _NORMALISED:
        return Carried(reason="torch.optim.Muon had overwritten its bfloat16 momentum")
    return Carried(momentum=M, row_second_moment=state.get("second_momentum_buffer"))


def _adamw(group: Group, state: State) -> Carried:
    return Carried(
        momentum=state["exp_avg"],
        second_moment=state["exp_avg_sq"],
        step=int(state["step"]),
        beta1=float(group["betas"][0]),
        beta2=float(group["betas"][1]),
    )


def _keller(group: Group, state: State) -> Carried:
    return _torch_muon(group, state) if group.get("use_muon", True) else _adamw(group, state)


def _moonlight(group: Group, state: State) -> Carried:
    if state.get("use_muon", "momentum_buffer" in state):
        return Carried(momentum=state["momentum_buffer"] * (1 - group["momentum"]))
    return Carried(
        momentum=state["moment1"],
        second_moment=state["moment2"],
        step=int(state["step"]),
        beta1=float(group["adamw_betas"][0]),
        beta2=float(group["adamw_betas"][1]),
    )


def _dion(group: Group, state: State) -> Carried:
    kind = group["algorithm"]
    if kind == "adamw":
        return Carried(
            momentum=state["momentum"],
            second_moment=state["variance"],
            step=int(group["step"]),
            beta1=float(group["beta1"]),
            beta2=float(group["beta2"]),
        )
    if kind not in ("muon", "normuon"):
        return Carried(
            reason=f"dion's algorithm {kind!r} keeps no momentum that a polar rule takes"
        )
    rows = state.get("variance_neuron")
    return Carried(momentum=state["momentum"] * (1 - group["mu"]), row_second_moment=rows)


_TORCH = {
    None: "torch",
    "original": "torch",
    "match_rms_adamw": "torch-match-rms",
    "spectral_unclamped": "torch-spectral-unclamped",
}
_DION = {None: "dion-none", "spectral_norm": "dion-spectral", "rms_norm": "dion-rms"}
_DION_ELEMENTWISE = {"adamw": "adamw"}


def _by_option(group: Group, option: str, names: Mapping[Any, str]) -> str:
    return names.get(group.get(option), "")


_ALL = (
    Source(
        name="polarlight",
        about="every optimizer of polarlight",
        fits=lambda group, state: is_own(group),
        read=read_own,
        convention=own_convention,
    ),
    Source(
        name="dion",
        about="dion.Muon, dion.NorMuon and the AdamW inside them",
        fits=lambda group, state: "algorithm" in group,
        read=_dion,
        convention=lambda group: (
            _by_option(group, "algorithm", _DION_ELEMENTWISE)
            or _by_option(group, "adjust_lr", _DION)
        ),
    ),
    Source(
        name="moonlight",
        about="Moonlight's Muon, and KellerJordan/Muon of 2024",
        fits=lambda group, state: "adamw_betas" in group,
        read=_moonlight,
        convention=lambda group: "moonlight" if "wd" in group else "keller-2024",
    ),
    Source(
        name="normuon",
        about="NorMuon, NorMuonWithAuxAdam",
        fits=lambda group, state: "second_momentum_buffer" in state,
        read=_keller,
        convention=lambda group: "normuon",
    ),
    Source(
        name="torch-muon",
        about="torch.optim.Muon",
        fits=lambda group, state: "ns_coefficients" in group and "adamw_betas" not in group,
        read=_torch_muon,
        convention=lambda group: _by_option(group, "adjust_lr_fn", _TORCH),
    ),
    Source(
        name="torch-adamw",
        about="torch.optim.AdamW and Adam",
        fits=lambda group, state: "betas" in group and "use_muon" not in group,
        read=_adamw,
        convention=lambda group: "adamw",
    ),
    Source(
        name="keller",
        about="KellerJordan/Muon since 2025: Muon, MuonWithAuxAdam and their single-device forms",
        fits=lambda group, state: "use_muon" in group or "momentum_buffer" in state,
        read=_keller,
        convention=lambda group: "keller" if group.get("use_muon", True) else "adamw",
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in _ALL}
"""The formats by name; without a name the first that fits is taken."""


def source_of(name: str) -> Source:
    """The format of this name.

    Raises:
        ValueError: If there is none; the message lists the known ones and the nearest.
    """
    return look_up(name, SOURCES, "source")


def read_entry(group: Group, state: State, source: str | None = None) -> Carried:
    """What one parameter carries.

    Raises:
        ValueError: If the format is not known, or not the one that `source` names.
    """
    if not any(isinstance(value, Tensor) for value in state.values()):
        return Carried(reason="it had no state: it never had a gradient")
    return fitting_source(group, state, source).read(group, state)


def fitting_source(group: Group, state: State, source: str | None = None) -> Source:
    """The format of a group and of the state of one of its parameters.

    Raises:
        ValueError: If the format is not known, or not the one that `source` names.
    """
    candidates = _ALL if source is None else (source_of(source),)
    for candidate in candidates:
        if candidate.fits(group, state):
            return candidate
    what = f"not of the form {source!r}" if source else "of no form that is known"
    raise ValueError(
        f"a group with {sorted(set(group) - {'params'})} and a state with {sorted(state)} are "
        f"{what}. Known: {', '.join(SOURCES)}"
    )


def read_state_dict(
    state_dict: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    source: str | None = None,
) -> dict[str, Carried]:
    """What every parameter of a saved optimizer carries, by name.

    Args:
        state_dict: What the other optimizer's `state_dict()` returned.
        names: Names of its parameters, in the order in which the optimizer was given them, group
            after group. None takes `param_names` of the groups, which torch writes where the
            optimizer was built from `named_parameters()`.
        source: Name of the format; None finds out.

    Raises:
        ValueError: If names are missing, too few or too many, or the format is not known.
    """
    groups = state_dict["param_groups"]
    known = _names(groups, names)
    places = [(group, place) for group in groups for place in group["params"]]
    states = state_dict["state"]
    return {
        name: read_entry(group, states.get(place, {}), source)
        for name, (group, place) in zip(known, places, strict=True)
    }


def read_momenta(
    momenta: Sequence[Tensor], names: Sequence[str], *, beta: float | None = None
) -> dict[str, Carried]:
    """What a bare loop carries that keeps its momenta in a list, as the Aurora release's does.

    Args:
        momenta: The buffers, in the order of `names`.
        names: `[name for name, _ in model.named_parameters()]`, where they were made from
            `model.parameters()`.
        beta: None if the buffers are averages (the release's are), the decay rate if they are sums.

    Raises:
        ValueError: If there are not as many names as buffers.
    """
    _check_count(names, len(momenta))
    factor = 1.0 if beta is None else 1 - beta
    return {name: Carried(momentum=M * factor) for name, M in zip(names, momenta, strict=True)}


def _names(groups: Sequence[Group], names: Sequence[str] | None) -> Sequence[str]:
    count = sum(len(group["params"]) for group in groups)
    if names is not None:
        _check_count(names, count)
        return names
    if not all("param_names" in group for group in groups):
        raise ValueError(
            "the state dict does not say what its parameters are called. Give their names in the "
            "order in which the optimizer was given them, group after group; or, in a script that "
            "has both optimizers, use polarlight.migration.carry_over, which needs no names"
        )
    return list(_flat(groups))


def _flat(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        yield from group["param_names"]


def _check_count(names: Sequence[str], count: int) -> None:
    if len(names) != count:
        raise ValueError(f"there are {count} parameters and {len(names)} names")
    if len(set(names)) != len(names):
        raise ValueError("a name occurs twice")
