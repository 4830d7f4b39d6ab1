"""torch's `ZeroRedundancyOptimizer` with state dicts that any polarlight optimizer loads.

    groups = polarlight.recipes.muon_with_adamw(model, lr=0.02)
    optimizer = ZeroRedundancy(groups, optimizer_class=polarlight.SpectralOptimizer)

torch's class divides whole parameters among processes that hold copies of a model. It saves param
groups with rules and views as objects, which `torch.load(..., weights_only=True)` reads only where
polarlight is imported and has the same names of classes. This one saves them as text, as
`SpectralOptimizer` does, and restores its own objects on load.
"""

from typing import Any

from torch.distributed.optim import ZeroRedundancyOptimizer

from polarlight.optimizer.fingerprint import fingerprint
from polarlight.optimizer.param_groups import STRUCTURE
from polarlight.optimizer.state_dict import replace_fingerprints


class ZeroRedundancy(ZeroRedundancyOptimizer):
    """`torch.distributed.optim.ZeroRedundancyOptimizer` around a `SpectralOptimizer`.

    Arguments and use are those of torch's class. Call `consolidate_state_dict` on every process
    before `state_dict`.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the consolidated state; rules and views are text."""
        saved = super().state_dict()
        texts = [
            group | {key: fingerprint(group[key]) for key in STRUCTURE}
            for group in saved["param_groups"]
        ]
        return saved | {"param_groups": texts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` of this class, or of a `SpectralOptimizer`, returned.

        Raises:
            ValueError: If groups, rules or views differ.
        """
        super().load_state_dict(replace_fingerprints(state_dict, self.param_groups))
        self.optim.load_state_dict(self.optim.state_dict())  # torch left scalars on the host
