"""LoRA with peft: the factors A and B as two matrices, each with a polar factor of its own.

    W = W0 + s B A,     A [r, in],   B [out, r],   B = 0 at first

    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    optimizer = SpectralOptimizer(lora_groups(model, lr=4e-3))

The choice: A and B are treated separately, not as the product B A. For the product, the steepest
step of B under a bound on |dB A| is polar(G (A A')^-1/2) (A A')^-1/2: it needs the other factor's
weights, which no rule sees, and B' B is singular at the start. In return the two forms of one
product, (B R, R^-1 A), do not train alike. Measured on a small model (`benchmarks/lora.py`, numbers
in `docs/log.md`): best of a sweep, 1.143 nats per byte against AdamW's 1.089. AdamW is the advice
for LoRA; this is for those who compare.

Both factors have rank r at most and full-rank momenta from the second step on (that of A is zero
in the first, as B is). The scale matches AdamW's update size, so that its learning rates are a
place to start. Roles are not used: in an adapted layer a name such as `lora_A` says more.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from polarlight.routing import ParamGroup
from polarlight.rule import Rule
from polarlight.rules.adamw import AdamWRule
from polarlight.rules.muon import muon
from polarlight.stages.scales import MatchRmsAdamW
from polarlight.view import Whole

_A, _B = ".lora_A.", ".lora_B."


def lora_groups(
    model: nn.Module,
    *,
    lr: float | Tensor,
    b_ratio: float = 1.0,
    aux_lr: float | Tensor | None = None,
    weight_decay: float = 0.0,
    rule: Rule | None = None,
) -> list[ParamGroup]:
    """Groups of a peft model's trainable parameters; frozen ones are left out.

    Args:
        model: What `peft.get_peft_model` returned.
        lr: Learning rate of the factors; an entry of an update is about 0.2 lr.
        b_ratio: How much larger the one of B is, > 0 (LoRA+ takes 16 with AdamW).
        aux_lr: AdamW's, for other trainable parameters: heads that are saved, adapted embeddings,
            magnitudes of DoRA. None takes lr.
        weight_decay: Of the factors.
        rule: Rule of the factors; None takes Muon, scaled like AdamW.

    Raises:
        ValueError: If no trainable factor is there, or b_ratio is not positive.
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
        raise ValueError(
            "the model has no trainable lora_A and lora_B matrices; call peft.get_peft_model first"
        )
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


def _group(role: str, named: Iterable[tuple[str, Tensor]], **entries: object) -> ParamGroup:
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
