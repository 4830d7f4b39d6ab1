"""Whole models in one call: which rule each kind of layer gets, dense or mixture of experts.

    optimizer = SpectralOptimizer(symmetric_stack(model, lr=4e-3))

All rules are RMS-matched: entries of every update are about as large as AdamW's, 0.2 lr, so that
one learning rate serves all of them and rules can be compared. Fan-in and fan-out come from the
views that routing infers, never from the storage order; every parameter is in exactly one group.

    role                  muon_with_adamw   aurora_mlp   symmetric_stack
    query, key, value, o  Muon              Muon         Muon per head
    gate, up              Muon              Aurora       row-normalised, then polar
    down                  Muon              Muon         column-normalised, then polar
    experts               as the MLP, each expert by itself
    other hidden          Muon              Muon         Muon
    embedding, tied       AdamW             AdamW        RowNorm
    untied head           AdamW             AdamW        RowNorm, centred
    softmax router        AdamW             AdamW        RowNorm or left polar, centred
    sigmoid router        AdamW             AdamW        RowNorm
    everything else       AdamW             AdamW        AdamW

Source: symmetric stack: the symmetry-compatible principle (2026), arXiv 2605.18106; Aurora on the
tall matrices of the MLP: Tilde Research, "Aurora" (2026), arXiv 2606.27715.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from polarlight.leaderboard import record
from polarlight.linalg.one_sided import GramSide, OneSidedPolar
from polarlight.lookup import Option, arguments_checked, check_groups, option_named
from polarlight.routing.keys import Key
from polarlight.routing.left_over import route_and_warn
from polarlight.routing.roles import Assignment, Part, Role
from polarlight.routing.route import Overrides, ParamGroup, Route
from polarlight.rule import UpdateRule
from polarlight.rules.adamw import AdamWRule
from polarlight.rules.aurora import aurora
from polarlight.rules.hybrid import row_then_polar
from polarlight.rules.muon import muon
from polarlight.rules.one_sided import one_sided
from polarlight.rules.row_norm import row_norm
from polarlight.stages.centre import centred
from polarlight.stages.orientation import Columns, oriented
from polarlight.stages.scales import MatchRmsAdamW
from polarlight.view import MatrixView

__all__ = [
    "MlpRule",
    "RouterRule",
    "aurora_mlp",
    "muon_with_adamw",
    "record",
    "symmetric_stack",
    "with_head_rate",
]

Model = nn.Module | Iterable[tuple[str, Tensor]]
LearningRate = float | Tensor


class MlpRule(Option):
    """Rule of `symmetric_stack` for MLPs and experts; all three commute with neuron swaps."""

    HYBRID = "hybrid"
    MUON = "muon"
    AURORA = "aurora"


class RouterRule(Option):
    """Rule of `symmetric_stack` for softmax routers; both are centred."""

    ROW_NORM = "row_norm"
    LEFT_POLAR = "left_polar"


def muon_with_adamw(
    model: Model,
    *,
    lr: LearningRate,
    aux_lr: LearningRate | None = None,
    weight_decay: float = 0.0,
    overrides: Overrides | None = None,
) -> list[ParamGroup]:
    """Muon on hidden matrices and experts, AdamW on the rest, at one update size.

    Args:
        model: A module, or its named parameters (then names and shapes decide).
        lr: Learning rate; an entry of any update is about 0.2 lr.
        aux_lr: AdamW's own; None takes lr.
        weight_decay: Of hidden matrices; the rest does not decay.
        overrides: Exceptions, by role or by pattern on names; see `polarlight.routing.Overrides`.

    Warns:
        UserWarning: If AdamW gets everything, or what may be matrices (kernels, raw parameters).

    Raises:
        ValueError: If the model has no parameters or one of them does not fit its view.
    """
    hidden = Route(rule=_muon(), lr=lr, weight_decay=weight_decay)
    table = _completed({role: hidden for role in _HIDDEN}, Role, _adamw(lr, aux_lr))
    return route_and_warn(model, table, overrides, stacklevel=2)


def aurora_mlp(
    model: Model,
    *,
    lr: LearningRate,
    aux_lr: LearningRate | None = None,
    weight_decay: float = 0.0,
    overrides: Overrides | None = None,
) -> list[ParamGroup]:
    """Aurora on gate and up projections (experts' too), Muon on other hidden matrices, AdamW else.

    Arguments and errors: `muon_with_adamw`.
    """
    hidden = Route(rule=_muon(), lr=lr, weight_decay=weight_decay)
    rising = replace(hidden, rule=aurora(scale=MatchRmsAdamW()))
    table = _completed({key: rising for key in _UP_PROJ}, _HIDDEN, hidden)
    table = _completed(table, Role, _adamw(lr, aux_lr))
    return route_and_warn(model, table, overrides, stacklevel=2)


def symmetric_stack(
    model: Model,
    *,
    lr: LearningRate,
    embedding_lr: LearningRate | None = None,
    head_lr: LearningRate | None = None,
    router_lr: LearningRate | None = None,
    aux_lr: LearningRate | None = None,
    weight_decay: float = 0.0,
    mlp: MlpRule | str = MlpRule.HYBRID,
    router: RouterRule | str = RouterRule.ROW_NORM,
    overrides: Overrides | None = None,
) -> list[ParamGroup]:
    """The layerwise stack in which every kind of matrix has the rule that fits its symmetries.

    Heads are centred only where they are their own: a tied matrix is an embedding as well, and what
    its rows share is not for nothing. Nor is it in a router with sigmoid scores, or in one whose
    scores are unknown. Where the number of heads is unknown, attention is taken whole.

    Args:
        model: A module, or its named parameters (then names and shapes decide).
        lr: Learning rate; an entry of any update is about 0.2 lr.
        embedding_lr: Of token embeddings, tied ones included; None takes lr, as for the next three.
        head_lr: Of an untied head.
        router_lr: Of routers.
        aux_lr: AdamW's.
        weight_decay: Of hidden matrices; the rest does not decay.
        mlp: Row- and column-aware hybrids, or Muon, or Aurora on gate and up beside Muon.
        router: Centred RowNorm or centred left polar factor for softmax routers.
        overrides: As for `muon_with_adamw`; so is the warning.

    Raises:
        ValueError: If the model has no parameters, one of them does not fit its view, or an option
            is unknown.
    """
    rising, falling = _mlp_rules(option_named(mlp, MlpRule, "mlp"))
    hidden = Route(rule=_muon(), lr=lr, weight_decay=weight_decay)
    table: dict[Key, Route] = {Role.ATTENTION: replace(hidden, view=_heads_where_known)}
    table |= {key: replace(hidden, rule=rising) for key in _UP_PROJ}
    table |= {key: replace(hidden, rule=falling) for key in _DOWN_PROJ}
    adamw = _adamw(lr, aux_lr)
    table |= _ends(lr, embedding_lr, head_lr, adamw)
    table |= _routers(option_named(router, RouterRule, "router"), _or(router_lr, lr))
    table = _completed(_completed(table, _HIDDEN, hidden), Role, adamw)
    return route_and_warn(model, table, overrides, stacklevel=2)


@arguments_checked
def with_head_rate(groups: Iterable[ParamGroup], factor: float) -> list[ParamGroup]:
    """The same groups, the learning rate of an untied head multiplied by a factor.

    For AdamW on the head of a model `w` times as wide the factor is 1 / w.

    Args:
        groups: Of a routed model; each with its role, the head's with a learning rate.
        factor: > 0.

    Raises:
        ValueError: If the factor is not positive.
        TypeError: If `groups` are none, as an optimizer.
    """
    if not factor > 0:
        raise ValueError(f"factor must be > 0, got {factor}")
    return [
        {**group, "lr": group["lr"] * factor} if group["role"] == Role.HEAD else group
        for group in check_groups("with_head_rate", groups)
    ]


_HIDDEN = frozenset({Role.ATTENTION, Role.GATE_UP, Role.DOWN, Role.EXPERT, Role.HIDDEN})
_UP_PROJ: tuple[Key, ...] = (
    Role.GATE_UP,
    *((Role.EXPERT, part) for part in (Part.GATE, Part.UP, Part.GATE_UP)),
)
_DOWN_PROJ: tuple[Key, ...] = (Role.DOWN, (Role.EXPERT, Part.DOWN))


def _muon() -> UpdateRule:
    return muon(scale=MatchRmsAdamW())


def _mlp_rules(kind: MlpRule) -> tuple[UpdateRule, UpdateRule]:
    """For gate and up, whose rows are neurons, and for down, whose columns are."""
    if kind is MlpRule.HYBRID:
        return row_then_polar(), oriented(row_then_polar(), Columns())
    return (aurora(scale=MatchRmsAdamW()) if kind is MlpRule.AURORA else _muon()), _muon()


def _ends(
    lr: LearningRate,
    embedding_lr: LearningRate | None,
    head_lr: LearningRate | None,
    adamw: Route,
) -> dict[Key, Route]:
    """Embeddings, where positions are no tokens, and the head."""
    tokens = Route(rule=row_norm(), lr=_or(embedding_lr, lr), weight_decay=0.0)
    return {
        (Role.EMBEDDING, Part.POSITION): adamw,
        Role.EMBEDDING: tokens,
        Role.TIED: tokens,
        Role.HEAD: Route(rule=centred(row_norm()), lr=_or(head_lr, lr), weight_decay=0.0),
    }


def _routers(kind: RouterRule, lr: LearningRate) -> dict[Key, Route]:
    left = one_sided(OneSidedPolar(GramSide.LEFT))
    softmax = centred(left if kind is RouterRule.LEFT_POLAR else row_norm())
    other = Route(rule=row_norm(), lr=lr, weight_decay=0.0)
    return {(Role.ROUTER, Part.SOFTMAX): replace(other, rule=softmax), Role.ROUTER: other}


def _heads_where_known(assignment: Assignment) -> MatrixView:
    return assignment.view if assignment.heads is None else assignment.heads


def _adamw(lr: LearningRate, aux_lr: LearningRate | None) -> Route:
    return Route(rule=AdamWRule(), lr=_or(aux_lr, lr), momentum=0.9, weight_decay=0.0)


def _completed(table: dict[Key, Route], roles: Iterable[Role], rest: Route) -> dict[Key, Route]:
    """The entries, and after them `rest` for those of the roles that have none."""
    return table | {role: rest for role in roles if role not in table}


def _or(value: LearningRate | None, otherwise: LearningRate) -> LearningRate:
    return otherwise if value is None else value
