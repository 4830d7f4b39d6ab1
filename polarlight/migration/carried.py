"""State that one parameter takes along from another optimizer, in one unit.

Momentum is kept as an average of gradients (EMA), so that a heavy ball's sum arrives multiplied by
1 - beta. AdamW's first moment starts from zero like any EMA and is kept as it is; where a spectral
rule takes it over, it is divided by 1 - beta1^step, as AdamW does itself.
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
    """The state of one parameter, or why there is none.

    Attributes:
        momentum: Average of gradients, in the parameter's shape; None if there is none to take.
        second_moment: AdamW's, in the parameter's shape.
        row_second_moment: NorMuon's, [..., m, 1].
        step: AdamW's count of steps.
        beta1: AdamW's first decay rate; 0 where the momentum is not AdamW's.
        beta2: AdamW's second decay rate; None where it is not known, and moments stay as they are.
        buffers: Other buffers of a polarlight rule, by name.
        rule: Fingerprint of the polarlight rule that it was kept under; empty for other libraries.
        view: Fingerprint of the view.
        reason: Why nothing is carried; empty if something is.
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
        """The momentum without the bias towards zero of AdamW's first steps."""
        if self.momentum is None or not self.step or not self.beta1:
            return self.momentum
        return self.momentum / (1 - self.beta1**self.step)

    def to_record(self) -> dict[str, Any]:
        """Tensors, numbers and text alone, which `weights_only=True` loads."""
        tensors = {key: getattr(self, key) for key in _TENSORS}
        plain = {key: getattr(self, key) for key in _PLAIN}
        kept = {key: value for key, value in tensors.items() if value is not None}
        return kept | plain | {"buffers": dict(self.buffers)}


def to_file(carried: Mapping[str, Carried]) -> dict[str, Any]:
    """What `polarlight convert` saves: a name's state each."""
    records = {name: one.to_record() for name, one in carried.items()}
    return {"format": FORMAT, "version": VERSION, "parameters": records}


def from_file(content: object) -> dict[str, Carried]:
    """The inverse of `to_file`.

    Raises:
        ValueError: If `polarlight convert` did not write it, or in another version.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("this is no file of `polarlight convert`; convert the checkpoint first")
    if content["version"] not in _READ:
        raise ValueError(
            f"the file has format version {content['version']}, this polarlight reads {_READ}"
        )
    return {name: Carried(**record) for name, record in content["parameters"].items()}
