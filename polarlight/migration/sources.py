"""Formats of each library's optimizer state, and functions that read them.

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

from collections.abc import Callable, Mapping, Sequence
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
    """Format of one library's optimizer state.

    Attributes:
        name: Name for `--from`.
        about: Class that writes the format.
        fits: Predicate of a group and the state of one of its parameters.
        read: Function from these to the carried state.
        convention: Function from a group to the convention of its learning rate.
    """

    name: str
    about: str
    fits: Callable[[Group, State], bool]
    read: Callable[[Group, State], Carried]
    convention: Callable[[Group], str]


_NORMALISED = 0.02


def _torch_muon(group: Group, state: State) -> Carried:
    """Read the state of torch.optim.Muon or NorMuon's matrices."""
    M = state["momentum_buffer"]
    # torch 2.13 writes the normalised matrix into such a buffer: pytorch issue 190597.
    exposed = not group.get("nesterov", True) and M.dtype is torch.bfloat16
    if exposed and abs(float(M.float().norm()) - 1) < _NORMALISED:
        return Carried(reason="torch.optim.Muon had overwritten its bfloat16 momentum")
    return Carried(momentum=M, row_second_moment=state.get("second_momentum_buffer"))


def _adamw(group: Group, state: State) -> Carried:
    """Read the state of torch.optim.AdamW."""
    return Carried(
        momentum=state["exp_avg"],
        second_moment=state["exp_avg_sq"],
        step=int(state["step"]),
        beta1=float(group["betas"][0]),
        beta2=float(group["betas"][1]),
    )


def _keller(group: Group, state: State) -> Carried:
    """Read the state of KellerJordan/Muon: Muon or AdamW by the group's `use_muon`."""
    return _torch_muon(group, state) if group.get("use_muon", True) else _adamw(group, state)


def _moonlight(group: Group, state: State) -> Carried:
    """Read the state of Moonlight's Muon or of the AdamW inside it."""
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
    """Read the state of dion's Muon, NorMuon or AdamW; other algorithms carry nothing."""
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
    """Return the convention's name for the value of a group's option; empty if unknown."""
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


def read_entry(group: Group, state: State, source: str | None = None) -> Carried:
    """Read the state of one parameter.

    Raises:
        ValueError: If the format is not known, or not the one that `source` names.
    """
    if not any(isinstance(value, Tensor) for value in state.values()):
        return Carried(reason="no state: it never had a gradient")
    return fitting_source(group, state, source).read(group, state)


def fitting_source(group: Group, state: State, source: str | None = None) -> Source:
    """Return the first format that fits a group and the state of one of its parameters.

    Raises:
        ValueError: If the format is not known, or not the one that `source` names.
    """
    candidates = _ALL if source is None else (look_up(source, SOURCES, "source"),)
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
    """Read the state of every parameter of a saved optimizer, by name.

    Args:
        state_dict: Result of the other optimizer's `state_dict()`.
        names: Names of its parameters, in the order in which the optimizer was given them, group
            after group. None takes `param_names` of the groups, which torch writes where the
            optimizer was built from `named_parameters()`.
        source: Name of the format; None detects it.

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
    """Read momenta that a bare loop keeps in a list, as the Aurora release does.

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
    """Return the given names, or the groups' `param_names`; raise ValueError without either."""
    count = sum(len(group["params"]) for group in groups)
    if names is not None:
        _check_count(names, count)
        return names
    if not all("param_names" in group for group in groups):
        raise ValueError(
            "the state dict has no param_names. Give the names of its parameters in the order in "
            "which the optimizer was given them, group after group; or, in a script that "
            "has both optimizers, use polarlight.migration.carry_over, which needs no names"
        )
    return [name for group in groups for name in group["param_names"]]


def _check_count(names: Sequence[str], count: int) -> None:
    """Raise ValueError unless there are `count` names, all different."""
    if len(names) != count:
        raise ValueError(f"there are {count} parameters and {len(names)} names")
    if len(set(names)) != len(names):
        raise ValueError("names must differ, one occurs twice")
