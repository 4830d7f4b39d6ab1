"""State of polarlight's own optimizers: buffers that another rule, view or betas can use.

Momentum has the parameter's shape under every view and is carried to every rule that has one. A
buffer is carried if the new rule has the slot that keeps it, with equal fields as far as they
change the buffer's meaning. AdamW's moments keep their bias corrections.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polarlight.linalg.matrices import at_least_float32
from polarlight.linalg.rest import SIZES
from polarlight.linalg.slot import Stage
from polarlight.migration.carried import Carried
from polarlight.optimizer.fingerprint import (
    Config,
    completed_fields,
    config_of,
    differences,
    fingerprint,
    read_fingerprint,
)
from polarlight.registry import fields_of, registration_named, registration_of
from polarlight.rule import MOMENTUM, UpdateRule
from polarlight.stages.int8_momentum import SCALES, InInt8

ADAMW = "adamw"
_COUNTERS = ("momentum_draws", "weight_draws")
"""Counters of stochastic rounding; any value is valid."""

_PROBES = tuple(map(torch.Size, ((3, 2), (2, 3), (2, 2))))
"""A tall, a wide and a square shape: a slot's buffers may depend on it."""

_SCALES = {
    "Original": "polarlight",
    "MatchRmsAdamW": "polarlight-rms",
    "RmsToRms": "polarlight-rms-to-rms",
}


def is_own(group: Mapping[str, Any]) -> bool:
    """Return whether a param group is one of polarlight's, live or saved."""
    return "rule" in group and "view" in group


def read_own(group: Mapping[str, Any], state: Mapping[str, Any]) -> Carried:
    """Return what a parameter under a polarlight optimizer carries."""
    rule, view = read_fingerprint(group["rule"]), read_fingerprint(group["view"])
    one = Carried(rule=json.dumps(rule), view=json.dumps(view))
    if rule["method"] == ADAMW and "fields" in rule:
        if not {"exp_avg", "exp_avg_sq", "step"} <= state.keys():
            return replace(one, reason="its state is not AdamW's: it was never stepped")
        return replace(
            one,
            momentum=state["exp_avg"],
            second_moment=state["exp_avg_sq"],
            step=int(state["step"]),
            beta1=float(group["momentum"]),
            beta2=float(completed_fields(rule)["beta2"]),
        )
    buffers = {key: x for key, x in state.items() if isinstance(x, Tensor)}
    if "slots" not in rule:
        return replace(one, buffers=buffers)
    M = buffers.pop(MOMENTUM, None)
    kept_as = rule["slots"].get("momentum")
    if M is not None and isinstance(kept_as, dict) and kept_as["method"] == "InInt8":
        fields = completed_fields(kept_as)
        codes = InInt8(block=fields["block"], power=fields["power"])
        M = codes.dequantize(M, buffers.pop(SCALES))
    if M is not None and keeps_a_sum(rule["slots"].get("momentum")):
        M = at_least_float32(M) * (1 - group["momentum"])
    return replace(one, momentum=M, buffers=buffers)


def own_convention(group: Mapping[str, Any]) -> str:
    """Return the convention of a group's learning rate; empty if it has no name."""
    rule = read_fingerprint(group["rule"])
    if "slots" not in rule:
        return ADAMW if rule["method"] == ADAMW else ""
    scale = rule["slots"].get("scale")
    known = isinstance(scale, dict) and not scale["fields"]  # no plain function, no other numbers
    return _SCALES.get(scale["method"], "") if known else ""


def keeps_a_sum(momentum: object) -> bool:
    """Return whether the configuration of a momentum is that of a decaying sum."""
    if not isinstance(momentum, dict):
        return False
    return momentum["method"] == "HeavyBall" or keeps_a_sum(
        completed_fields(momentum).get("average")
    )


def fitting_buffers(one: Carried, group: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the buffers beside the momentum that a group's rule can use, and why not all."""
    now, was = config_of(group["rule"]), read_fingerprint(one.rule)
    counters = {key: one.buffers[key] for key in _COUNTERS if key in one.buffers}
    if "slots" not in now:
        same = all(found.harmless for found in differences(was, now))
        return (dict(one.buffers), "") if same else (counters, "another rule")
    if list(differences(read_fingerprint(one.view), config_of(group["view"]))):
        return counters, "another view"
    same = all(found.harmless for found in differences(was, now))
    names = (*_names_that_fit(was, group["rule"]), *((SIZES,) if same else ()))
    kept = {name: one.buffers[name] for name in names if name in one.buffers}
    return kept | counters, "" if same else "another rule"


def _names_that_fit(saved: Config, rule: UpdateRule) -> Iterator[str]:
    """Yield the buffer names of the stages that both the saved and the new rule have."""
    theirs = list(_stages_of(saved, ()))
    for slot in (rule.balance, rule.map, *rule.post):
        for stage, layout in _stages_in(slot, ()):
            config = config_of(stage)
            if any(
                there == layout and all(d.harmless for d in differences(other, config, "stage"))
                for other, there in theirs
            ):
                yield from dict.fromkeys(n for s in _PROBES for n in stage.buffer_shapes(s))


def _stages_in(slot: Any, layout: tuple[str, ...]) -> Iterator[tuple[Stage, tuple[str, ...]]]:
    """Yield a slot's stages that keep buffers, with the views that lay the matrix out."""
    known = registration_of(type(slot), stateful=isinstance(slot, Stage))
    if known.stateful and isinstance(slot, Stage):
        yield slot, layout
        return
    layout += tuple(fingerprint(getattr(slot, name)) for name in known.lays_out)
    for f in fields_of(type(slot)):
        yield from _stages_in(getattr(slot, f.name), layout)


def _stages_of(config: object, layout: tuple[str, ...]) -> Iterator[tuple[Config, tuple[str, ...]]]:
    """Yield the same from a saved configuration."""
    parts = config if isinstance(config, list) else []
    if isinstance(config, dict):
        known = None if "slots" in config else registration_named(config["method"])
        if known is not None and known.stateful:
            yield config, layout
            return
        content = completed_fields(config)
        layout += tuple(json.dumps(content[name]) for name in known.lays_out) if known else ()
        parts = list(content.values())
    for part in parts:
        yield from _stages_of(part, layout)
