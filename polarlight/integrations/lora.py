"""LoRA with peft: param groups that treat A and B as one product, or as two matrices.

    W = W0 + s B A,     A [r, in],   B [out, r],   B = 0 at first

    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    optimizer = SpectralOptimizer(lora_product_groups(model, lr=0.05))

`lora_product_groups` measures a step by the change of B A. Each factor takes the steepest step
under a bound on its part of d(B A) (`rules/lora_product.py`), and lr is the size of the weight's
step for every rank, alpha and size of the factors: the lr of Muon with the scale `RmsToRms` on the
whole weight. `lora_groups` maps each factor to its own polar factor: simpler, shardable, and
dependent on the factorization (B R, R^-1 A). `benchmarks/lora.py` compares both with AdamW
(`docs/log.md`).

Names such as `lora_A` decide, not roles.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from polarlight.routing.route import ParamGroup
from polarlight.rule import Rule
from polarlight.rules.adamw import AdamWRule
from polarlight.rules.lora_product import LoraProduct
from polarlight.rules.muon import muon
from polarlight.stages.scales import MatchRmsAdamW
from polarlight.view import Whole

_A, _B = ".lora_A.", ".lora_B."
_NOTHING = "the model has no trainable lora_A and lora_B matrices; call peft.get_peft_model first"


def lora_groups(
    model: nn.Module,
    *,
    lr: float | Tensor,
    b_ratio: float = 1.0,
    aux_lr: float | Tensor | None = None,
    weight_decay: float = 0.0,
    rule: Rule | None = None,
) -> list[ParamGroup]:
    """Return param groups in which each trainable factor is a matrix of its own.

    Args:
        model: Result of `peft.get_peft_model`.
        lr: Learning rate of the factors; an entry of an update is about 0.2 lr.
        b_ratio: Learning rate of B over that of A, > 0 (LoRA+ takes 16 with AdamW).
        aux_lr: AdamW's learning rate for other trainable parameters: saved heads, adapted
            embeddings, magnitudes of DoRA. None takes lr.
        weight_decay: Weight decay of the factors.
        rule: Rule of the factors; None takes Muon, scaled like AdamW.

    Raises:
        ValueError: If there is no trainable factor, or b_ratio is not positive.
    """
    if not b_ratio > 0:
        raise ValueError(f"b_ratio must be > 0, got {b_ratio}")
    rule = muon(scale=MatchRmsAdamW()) if rule is None else rule
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    factors = {
        "lora_a": [(n, p) for n, p in named if _A in n and p.ndim == 2],
        "lora_b": [(n, p) for n, p in named if _B in n and p.ndim == 2],
    }
    if not any(factors.values()):
        raise ValueError(_NOTHING)
    rates = {"lora_a": lr, "lora_b": lr * b_ratio}
    groups = [
        _group(role, found, rule=rule, lr=rates[role], weight_decay=weight_decay)
        for role, found in factors.items()
        if found
    ]
    taken = {name for found in factors.values() for name, _ in found}
    others = [(name, p) for name, p in named if name not in taken]
    if others:
        rate = lr if aux_lr is None else aux_lr
        groups.append(_group("other", others, rule=AdamWRule(), lr=rate, momentum=0.9))
    return groups


def lora_product_groups(
    model: nn.Module,
    *,
    lr: float,
    aux_lr: float | Tensor | None = None,
    weight_decay: float = 0.0,
    rule: LoraProduct | None = None,
) -> list[ParamGroup]:
    """Return param groups in which each pair of factors is one product B A.

    Args:
        model: Result of `peft.get_peft_model`.
        lr: RMS-to-RMS norm of a weight's step. Divided by the adapter's scaling s, as W moves by
            s d(B A).
        aux_lr: AdamW's learning rate for other trainable parameters: saved heads, adapted
            embeddings and convolutions, magnitudes of DoRA. None takes lr / 20.
        weight_decay: Weight decay of each factor.
        rule: None takes `LoraProduct()`.

    Returns:
        One group per pair, A before B, and one for the rest.

    Raises:
        ValueError: If there is no pair, or a pair has only one trainable factor.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pairs = _pairs({name: p for name, p in named.items() if p.ndim == 2})
    groups = [
        _group(
            "lora_pair",
            [(name, named[name]) for name in pair],
            rule=rule or LoraProduct(),
            lr=lr / _scaling(model, pair[0]),
            weight_decay=weight_decay,
        )
        for pair in pairs
    ]
    taken = {name for pair in pairs for name in pair}
    others = [(name, p) for name, p in named.items() if name not in taken]
    if others:
        rate = lr / 20 if aux_lr is None else aux_lr
        groups.append(_group("other", others, rule=AdamWRule(), lr=rate, momentum=0.9))
    return groups


def _pairs(matrices: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the names of A and B of every pair; raise ValueError for a factor alone."""
    pairs = [(name, name.replace(_A, _B)) for name in matrices if _A in name]
    alone = [name for name in matrices if _B in name and name.replace(_B, _A) not in matrices]
    alone += [a for a, b in pairs if b not in matrices]
    if alone:
        raise ValueError(
            f"only one factor of a pair is trainable: {', '.join(alone)}; a product needs both. "
            "Train both, or use lora_groups"
        )
    if not pairs:
        raise ValueError(_NOTHING)
    return pairs


def _scaling(model: nn.Module, name: str) -> float:
    """Return the adapter's factor on B A, 1 if its module has none."""
    module, _, adapter = name.partition(_A)
    known = getattr(model.get_submodule(module), "scaling", {})
    return float(known.get(adapter.partition(".")[0], 1.0))


def _group(role: str, named: Iterable[tuple[str, Tensor]], **entries: object) -> ParamGroup:
    """Build one param group from named parameters."""
    names, params = zip(*named, strict=True)
    reasons = dict.fromkeys(names, f"{role} of an adapted layer")
    return {
        "params": list(params),
        "param_names": list(names),
        "reasons": reasons,
        "role": role,
        "view": Whole(),
        **entries,
    }
