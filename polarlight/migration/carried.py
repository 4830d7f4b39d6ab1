"""Carried state: one parameter's momentum and moments from another optimizer, in one unit.

Momentum is kept as an EMA of gradients; a heavy ball's sum is multiplied by 1 - beta when read.
AdamW's first moment is kept as it is; a spectral rule that takes it divides it by 1 - beta1^step,
as AdamW does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

FORMAT = "polarlight carried state"
VERSION = 2
_READ = (1, 2)

_TENSORS = ("momentum", "second_moment", "row_second_moment")
_PLAIN = ("step", "beta1", "beta2", "rule", "view", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """State of one parameter from another optimizer, or the reason why there is none.

    Attributes:
        momentum: EMA of gradients, in the parameter's shape; None if there is none.
        second_moment: AdamW's, in the parameter's shape.
        row_second_moment: NorMuon's, [..., m, 1].
        step: AdamW's count of steps.
        beta1: AdamW's first decay rate; 0 where the momentum is not AdamW's.
        beta2: AdamW's second decay rate; None where it is not known: moments are copied as they
            are.
        buffers: Other buffers of a polarlight rule, by name.
        rule: Fingerprint of the polarlight rule that wrote it; empty for other libraries.
        view: Fingerprint of the view.
        reason: Reason why nothing is carried; empty if something is.
    """

    momentum: Tensor | None = None
    second_moment: Tensor | None = None
    row_second_moment: Tensor | None = None
    step: int = 0
    beta1: float = 0.0
    beta2: float | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    rule: str = ""
    view: str = ""
    reason: str = ""

    def mean(self) -> Tensor | None:
        """Return the momentum, divided by 1 - beta1^step if it is AdamW's first moment."""
        if self.momentum is None or not self.step or not self.beta1:
            return self.momentum
        return self.momentum / (1 - self.beta1**self.step)

    def to_record(self) -> dict[str, Any]:
        """Return tensors, numbers and text alone, which `weights_only=True` loads."""
        tensors = {key: getattr(self, key) for key in _TENSORS}
        plain = {key: getattr(self, key) for key in _PLAIN}
        kept = {key: value for key, value in tensors.items() if value is not None}
        return kept | plain | {"buffers": dict(self.buffers)}


def to_file(carried: Mapping[str, Carried]) -> dict[str, Any]:
    """Return the content of a file of `polarlight convert`: one record per parameter name."""
    records = {name: one.to_record() for name, one in carried.items()}
    return {"format": FORMAT, "version": VERSION, "parameters": records}


def from_file(content: object) -> dict[str, Carried]:
    """Read the content that `to_file` returned.

    Raises:
        ValueError: If it is not of `polarlight convert`, or of another version.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("not a file of `polarlight convert`; convert the checkpoint first")
    if content["version"] not in _READ:
        raise ValueError(
            f"the file has format version {content['version']}, this polarlight reads {_READ}"
        )
    return {name: Carried(**record) for name, record in content["parameters"].items()}
