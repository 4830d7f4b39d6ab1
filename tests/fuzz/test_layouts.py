"""Any layout of groups, any combination of options: the same as every parameter on its own."""

from dataclasses import dataclass, replace
from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import polarlight
from polarlight import NonFinite, SpectralOptimizer
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.fuzz.test_gradients import FAST
from tests.matrices import gaussian

HEAVY = replace(polarlight.rules.muon(), momentum=polarlight.stages.HeavyBall())
RULES = {**SHIPPED, "adamw": AdamWRule(), "heavy_ball": HEAVY}
VIEWS = {
    (6, 4): [
        None,
        polarlight.view.Whole(),
        polarlight.view.Heads(2),
        polarlight.view.RowBlocks((4, 2)),
    ],
    (4, 6): [None, polarlight.view.Heads(2, dim=-1), polarlight.view.Transposed()],
    (3, 4, 2): [polarlight.view.Whole()],
}


@dataclass(frozen=True)
class Options:
    """Entries of a group, and the shape of its parameters."""

    name: str
    shape: tuple[int, ...]
    view: object
    lr: float
    weight_decay: float
    momentum: float
    maximize: bool
    tensor_lr: bool
    at_random: bool
    dtype: torch.dtype

    def group(self, params):
        numbers = {k: getattr(self, k) for k in ("weight_decay", "momentum", "maximize", "view")}
        lr = torch.tensor(self.lr) if self.tensor_lr else self.lr
        rule = {"rule": RULES[self.name], "stochastic_rounding": self.at_random}
        return {"params": params, "lr": lr} | numbers | rule


options = st.sampled_from(sorted(VIEWS)).flatmap(
    lambda shape: st.builds(
        Options,
        name=st.sampled_from(sorted(RULES)),
        shape=st.just(shape),
        view=st.sampled_from(VIEWS[shape]),
        lr=st.sampled_from([0.0, 0.01, 0.1]),
        weight_decay=st.sampled_from([0.0, 0.1]),
        momentum=st.sampled_from([0.0, 0.5, 0.95]),
        maximize=st.booleans(),
        tensor_lr=st.booleans(),
        at_random=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    )
)


def parameters(layout):
    """Three for each of the options."""
    return [
        [nn.Parameter(gaussian(*o.shape, seed=10 * i + j, dtype=o.dtype)) for j in range(3)]
        for i, o in enumerate(layout)
    ]


@FAST
@given(
    layout=st.lists(options, min_size=1, max_size=3),
    policy=st.sampled_from(list(NonFinite)),
    late=st.booleans(),
    without=st.sets(st.integers(0, 8), max_size=3),
)
def test_groups_are_their_parameters_on_their_own(layout, policy, late, without):
    together, apart = parameters(layout), parameters(layout)
    groups = [o.group(p) for o, p in zip(layout, together, strict=True)]
    start = groups[:1] if late else groups
    one = SpectralOptimizer(start, executor=polarlight.OneByOne(), nonfinite=policy)
    many = [
        SpectralOptimizer([o.group([p])], executor=polarlight.OneByOne(), nonfinite=policy)
        for o, some in zip(layout, apart, strict=True)
        for p in some
    ]
    for group in groups[len(start) :]:
        one.add_param_group(group)
    ours, theirs = list(chain(*together)), list(chain(*apart))
    for step in range(3):
        for place, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            G = gaussian(*p.shape, seed=100 * step + place, dtype=p.dtype)
            p.grad, q.grad = (None, None) if place in without else (G, G.clone())
        one.step()
        for optimizer in many:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p.detach(), q.detach())
        assert p.isfinite().all()


@FAST
@given(layout=st.lists(options, min_size=1, max_size=3), cut=st.integers(0, 3))
def test_a_saved_layout_resumes_bit_for_bit(layout, cut):
    """Whatever was combined, saved after `cut` of three steps."""
    straight, resumed = parameters(layout), parameters(layout)
    results = []
    for params in (straight, resumed):
        optimizer = SpectralOptimizer([o.group(p) for o, p in zip(layout, params, strict=True)])
        flat = list(chain(*params))
        for step in range(3):
            if params is resumed and step == cut:
                saved = optimizer.state_dict()
                groups = [o.group(p) for o, p in zip(layout, params, strict=True)]
                optimizer = SpectralOptimizer(groups)
                optimizer.load_state_dict(saved)
            for place, p in enumerate(flat):
                p.grad = gaussian(*p.shape, seed=100 * step + place, dtype=p.dtype)
            optimizer.step()
        results.append([p.detach() for p in flat])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
