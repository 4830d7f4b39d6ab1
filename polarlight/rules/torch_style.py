"""Base of the torch-style classes: a rule on hidden matrices, AdamW on the rest."""

from typing import Unpack

from torch import Tensor

from polarlight.optimizer import NonFinite, SpectralOptimizer
from polarlight.rule import UpdateRule
from polarlight.rules.shared_arguments import Shared, check_adamw, check_names, check_view
from polarlight.rules.with_adamw import with_adamw


class WithAdamW(SpectralOptimizer):
    """A rule on hidden matrices, AdamW on the rest: what the torch-style classes construct.

    Args:
        params: A module or `model.named_parameters()`: hidden matrices get the rule; embeddings,
            heads, norms and biases get AdamW. Names alone tell less than the model. Or matrices
            alone, or param groups.
        lr: Learning rate of the matrices.
        weight_decay: Decoupled weight decay of the matrices.
        momentum: Decay of the momentum, in [0, 1).
        rule: Rule of the matrices.
        **shared: See `Shared`.

    Warns:
        UserWarning: If no parameter gets the rule, AdamW gets what may be matrices, or by names
            alone the rule gets what may be embeddings.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a number is out of range, a bare tensor is no matrix, an override matches
            nothing, or a view is given that no group uses.

    Examples:
        >>> import torch, polarlight
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> rule = polarlight.rules.row_then_polar()
        >>> optimizer = polarlight.rules.WithAdamW(model, lr=4e-3, rule=rule)
        >>> model(torch.ones(2, 8)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: object,
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        *,
        rule: UpdateRule,
        **shared: Unpack[Shared],
    ) -> None:
        check_names(type(self), shared)
        view = shared.get("view")
        betas = shared.get("aux_betas", (0.9, 0.95))
        adamw = shared.get("aux_lr"), betas, shared.get("aux_weight_decay")
        check_adamw(*adamw, prefix="aux_")
        groups = with_adamw(
            params,
            lr=adamw[0],
            betas=betas,
            weight_decay=adamw[2],
            beside=(rule.scale, lr, weight_decay),
            overrides=shared.get("overrides"),
            stacklevel=2 if type(self) is WithAdamW else 3,  # over the constructor of the class
        )
        check_view(view, groups)
        super().__init__(
            groups,
            lr,
            weight_decay,
            momentum,
            rule=rule,
            view=view,
            maximize=shared.get("maximize", False),
            executor=shared.get("executor"),
            nonfinite=shared.get("nonfinite", NonFinite.SKIP),
        )
