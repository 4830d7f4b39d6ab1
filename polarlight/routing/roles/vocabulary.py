"""`Role`, `Part`, and the decision on a parameter."""

from dataclasses import dataclass

from torch import Tensor

from polarlight.lookup import Option
from polarlight.view import MatrixView, Whole


class Role(Option):
    """Function of a parameter in its network."""

    HIDDEN = "hidden"
    GATE_UP = "gate_up"
    DOWN = "down"
    ATTENTION = "attention"
    EMBEDDING = "embedding"
    HEAD = "head"
    TIED = "tied"
    ROUTER = "router"
    EXPERT = "expert"
    CONV = "conv"
    VECTOR = "vector"


MATRIX_ROLES = frozenset({Role.HIDDEN, Role.GATE_UP, Role.DOWN, Role.ATTENTION, Role.EXPERT})
"""Roles whose parameters are hidden matrices, the ones that a spectral rule is for."""


class Part(Option):
    """Kind of a parameter within its role; NONE if unknown or if there is one kind only.

    QKV stands for several of query, key and value in one parameter, LATENT for the low-rank inner
    projections of multi-head latent attention. A router is SOFTMAX or SIGMOID by how it scores;
    NONE if that could not be seen.
    """

    NONE = ""
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OUTPUT = "output"
    QKV = "qkv"
    LATENT = "latent"
    GATE = "gate"
    UP = "up"
    GATE_UP = "gate_up"
    DOWN = "down"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    TOKEN = "token"
    POSITION = "position"
    DEPTHWISE = "depthwise"
    PATCH = "patch"


@dataclass(frozen=True, slots=True)
class Assignment:
    """Role of one parameter, its view as matrices, and the reason.

    Attributes:
        name: The parameter's first name in the model.
        parameter: The tensor.
        role: What it does.
        reason: Where that is known from.
        view: Its matrices: one per projection, fused ones apart wherever their seams are known.
        part: Which projection, which kind of router, ...
        heads: A view with one matrix per attention head; equal to `view` for projections without
            heads, None where the number of heads is unknown or the parameter is no attention.
        block: Of an MLP's matrix, the name of the smallest module that holds the other ones too.
        known: False if it may be a matrix, and neither module, place, config nor name tells.
    """

    name: str
    parameter: Tensor
    role: Role
    reason: str
    view: MatrixView = Whole()
    part: Part = Part.NONE
    heads: MatrixView | None = None
    known: bool = True
    block: str = ""


@dataclass(frozen=True, slots=True)
class RoleDecision:
    """Role, view and reason, before they are assigned; views are those of (fan_out, fan_in)."""

    role: Role
    reason: str
    view: MatrixView = Whole()
    part: Part = Part.NONE
    heads: MatrixView | None = None
    known: bool = True
