"""Meaning of a learning rate in each library, with translation in both directions.

    update = lr * scale(fan_out, fan_in) * (polar factor),    rms = lr * scale / sqrt(max(m, n))

The polar factor of a full-rank m x n matrix has Frobenius norm sqrt(min(m, n)), so its entries have
root mean square 1 / sqrt(max(m, n)). Two settings are the same training run when the root mean
square of an entry's change per step, *the update RMS*, is the same, and the decay lr * weight_decay
per step too: a learning rate that is multiplied needs a weight decay that is divided.

Momentum is an average of gradients (EMA) or their decaying sum (heavy ball), 1 / (1 - beta) times
as large. A polar factor does not depend on it. It matters where magnitude survives (PolarGrad,
plain SGD), and for the momentum buffer of a checkpoint.

Newton-Schulz with few steps returns singular values near 1, not 1: Jordan's five steps give 0.68 to
1.14, the same in every library that runs them. The formulas here are those of the exact factor.

Sources: `torch.optim.Muon` 2.13; KellerJordan/Muon; MoonshotAI/Moonlight and arXiv 2502.16982;
microsoft/dion; NVIDIA-NeMo/Emerging-Optimizers; zichongli5/NorMuon and arXiv 2510.05491;
optax.contrib.muon; tilde-research/aurora-release; timlautk/polargrad. Each read in 2026.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from polarlight.lookup import Option, arguments_checked, check_fraction, look_up
from polarlight.rule import Momentum, Scale
from polarlight.stages.host_momentum import OnHost
from polarlight.stages.int8_momentum import InInt8
from polarlight.stages.momentum import EMA, HeavyBall, InBfloat16
from polarlight.stages.scales import MatchRmsAdamW, Original, RmsToRms, Unscaled

ADAMW_RMS = 0.2
"""Root mean square of AdamW's direction that Moonlight measured (0.2 to 0.4) and matched."""


ADAMW = "adamw"
"""Convention of AdamW, whose updates are not polar factors but have a matched RMS."""


class UpdateSize(Option):
    """Quantity that sets the size of an update before the scale."""

    POLAR = "polar"
    NUCLEAR = "nuclear"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """Rule by which one library turns a learning rate into an update.

    Attributes:
        name: Name for `--from` and `--to`.
        where: The class and the option that select it.
        scale: Factor from (fan_out, fan_in) on the polar factor.
        momentum: Accumulation of gradients.
        size: Quantity that sets the update's size. Only conventions of equal size translate.
        method: The class of polarlight that has the same rule.
    """

    name: str
    where: str
    scale: Scale
    momentum: Momentum
    size: UpdateSize = UpdateSize.POLAR
    method: str = "Muon"

    @property
    def here(self) -> str:
        """Call of the polarlight class with the same rule and the same meaning of lr."""
        default = "scale=Original()" if self.size is UpdateSize.POLAR else "scale=Unscaled()"
        scale = f"scale={self.scale!r}"
        return f"{self.method}({'' if scale == default else scale})"


_EMA, _EMA_AHEAD = EMA(nesterov=False), EMA(nesterov=True)
_SUM, _SUM_AHEAD = HeavyBall(nesterov=False), HeavyBall(nesterov=True)


def _named(
    name: str,
    where: str,
    scale: Scale,
    momentum: Momentum,
    size: UpdateSize = UpdateSize.POLAR,
    method: str = "Muon",
) -> Convention:
    """Build a convention from positional arguments."""
    return Convention(
        name=name, where=where, scale=scale, momentum=momentum, size=size, method=method
    )


_ALL = (
    _named("polarlight", "polarlight.Muon, Aurora, NorMuon, ...", Original(), _EMA_AHEAD),
    _named(
        "polarlight-rms",
        "the same with scale=MatchRmsAdamW(); recipes; MuonEq",
        MatchRmsAdamW(),
        _EMA_AHEAD,
    ),
    _named("polarlight-rms-to-rms", "the same with scale=RmsToRms()", RmsToRms(), _EMA_AHEAD),
    _named("torch", "torch.optim.Muon, its default", Original(), _EMA_AHEAD),
    _named(
        "torch-match-rms",
        "torch.optim.Muon(adjust_lr_fn='match_rms_adamw')",
        MatchRmsAdamW(),
        _EMA_AHEAD,
    ),
    _named(
        "torch-spectral-unclamped",
        "torch.optim.Muon(adjust_lr_fn='spectral_unclamped'), from torch 2.14 on",
        RmsToRms(),
        _EMA_AHEAD,
    ),
    _named("keller", "KellerJordan/Muon since 2025", Original(), _EMA_AHEAD),
    _named("keller-2024", "its code of 2024: momentum is a sum", Original(), _SUM_AHEAD),
    _named("moonlight", "MoonshotAI/Moonlight", MatchRmsAdamW(), _SUM_AHEAD),
    _named("dion-spectral", "dion, adjust_lr='spectral_norm', its default", RmsToRms(), _SUM),
    _named("dion-rms", "dion, adjust_lr='rms_norm'", MatchRmsAdamW(), _SUM),
    _named("dion-none", "dion, adjust_lr=None", Unscaled(), _SUM),
    _named(
        "emerging-spectral",
        "Emerging-Optimizers, scale_mode='spectral', its default",
        MatchRmsAdamW(1.0),
        _EMA,
    ),
    _named("emerging-spectral-0.2", "the same with extra_scale_factor=0.2", MatchRmsAdamW(), _EMA),
    _named(
        "emerging-shape-scaling",
        "Emerging-Optimizers, scale_mode='shape_scaling'",
        Original(),
        _EMA,
    ),
    _named("emerging-unit-rms", "Emerging-Optimizers, 'unit_rms_norm'", RmsToRms(), _EMA),
    _named("normuon", "NorMuon's code", Original(), _EMA_AHEAD, method="NorMuon"),
    _named("normuon-paper", "its paper: rms 0.2 for every shape", MatchRmsAdamW(), _EMA),
    _named("optax", "optax.contrib.muon; kernels are [in, out]", Original(), _EMA_AHEAD),
    _named(
        "optax-consistent-rms",
        "optax.contrib.muon(consistent_rms=0.2)",
        MatchRmsAdamW(),
        _EMA_AHEAD,
    ),
    _named("aurora-release", "the Aurora release's eta", Original(), _EMA_AHEAD, method="Aurora"),
    _named(ADAMW, "AdamW, its direction taken to have rms 0.2", MatchRmsAdamW(ADAMW_RMS), _EMA),
    _named("polargrad", "polarlight.PolarGrad", Unscaled(), _EMA, UpdateSize.NUCLEAR, "PolarGrad"),
    _named(
        "polargrad-heavy-ball",
        "PolarGrad on a momentum that is a sum",
        Unscaled(),
        _SUM,
        UpdateSize.NUCLEAR,
        "PolarGrad",
    ),
    _named("sgd-ema", "SGD on an average of gradients", Unscaled(), _EMA, UpdateSize.GRADIENT),
    _named("sgd", "torch.optim.SGD(momentum=...)", Unscaled(), _SUM, UpdateSize.GRADIENT),
)

CONVENTIONS: Mapping[str, Convention] = {convention.name: convention for convention in _ALL}
"""Every convention by its name."""


def convention_of(name: str | Convention) -> Convention:
    """Look up a convention by name; return a `Convention` as it is.

    Raises:
        ValueError: If there is none; the message lists the known ones and the nearest.
    """
    if isinstance(name, Convention):
        return name
    return look_up(name, CONVENTIONS, "convention")


@arguments_checked
def update_rms(lr: float, convention: str | Convention, shape: tuple[int, int]) -> float:
    """Return the RMS of an entry's change per step, without weight decay.

    Args:
        lr: Learning rate, at least 0.
        convention: Convention of lr, or its name.
        shape: (fan_out, fan_in) of the matrix; a full-rank momentum is assumed.

    Raises:
        ValueError: If a number is out of range, or the size of the convention's update depends on
            the gradients.
    """
    _check(lr, shape)
    kind = convention_of(convention)
    if kind.size is not UpdateSize.POLAR:
        raise ValueError(
            f"the updates of {kind.name!r} are as large as the gradients make them; "
            "measure them with an optimizer's probe"
        )
    return lr * kind.scale(*shape) / sqrt(max(shape))


@arguments_checked
def lr_for_rms(rms: float, convention: str | Convention, shape: tuple[int, int]) -> float:
    """Return the learning rate for an update RMS of `rms`; inverse of `update_rms`."""
    return rms / update_rms(1.0, convention, shape)


@arguments_checked
def translate_lr(
    lr: float,
    *,
    source: str | Convention,
    target: str | Convention,
    shape: tuple[int, int],
    beta: float = 0.95,
) -> float:
    """Return the lr under `target` with the update size that `lr` has under `source`.

    Divide the weight decay by the factor on lr to keep lr * weight_decay.

    Args:
        lr: Learning rate under `source`, at least 0.
        source: Convention of `lr`, or its name.
        target: Convention of the result, or its name.
        shape: (fan_out, fan_in) of the matrix. Where the ratio depends on it, matrices of different
            shapes need different learning rates: then keep the source's scale instead.
        beta: Decay of the momentum; used only between EMA and heavy ball where magnitude survives.

    Raises:
        ValueError: If a number is out of range, a name is unknown, or one of the updates is as
            large as the gradients make it and the other is not.
    """
    _check(lr, shape)
    here, there = convention_of(source), convention_of(target)
    if here.size is not there.size:
        raise ValueError(
            f"{here.name!r} has the size of the {_FOLLOWS[here.size]}, {there.name!r} that of the "
            f"{_FOLLOWS[there.size]}: no factor that holds for all gradients translates them"
        )
    ratio = here.scale(*shape) / there.scale(*shape)
    if here.size is not UpdateSize.POLAR:
        ratio *= momentum_factor(there.momentum, here.momentum, beta)
    return lr * ratio


def momentum_factor(source: Momentum, target: Momentum, beta: float) -> float:
    """Return the factor that turns a momentum buffer of `source` into one of `target`.

    Heavy ball to EMA is 1 - beta, the other way 1 / (1 - beta), equal kinds 1.

    Raises:
        ValueError: If beta is outside [0, 1).
    """
    check_fraction("beta", beta)
    return _length(target, beta) / _length(source, beta)


_FOLLOWS = {
    UpdateSize.POLAR: "polar factor",
    UpdateSize.NUCLEAR: "momentum's nuclear norm",
    UpdateSize.GRADIENT: "momentum",
}


def _length(momentum: object, beta: float) -> float:
    """Return the limit of the momentum under a constant gradient of 1."""
    if isinstance(momentum, InBfloat16 | InInt8 | OnHost):
        return _length(momentum.average, beta)
    return 1 / (1 - beta) if isinstance(momentum, HeavyBall) else 1.0


def _check(lr: float, shape: tuple[int, int]) -> None:
    """Raise ValueError if lr is negative or shape is not (fan_out, fan_in)."""
    if not lr >= 0:
        raise ValueError(f"lr must be >= 0, got {lr}")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be (fan_out, fan_in), both >= 1, got {tuple(shape)}")
