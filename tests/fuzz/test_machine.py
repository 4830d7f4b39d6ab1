"""An optimizer that is stepped, saved, loaded, frozen and extended in any order, beside a model.

The model is NumPy in float64 from the references; it knows nothing of groups and state dicts.
"""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

import polarlight
from polarlight import SpectralOptimizer
from polarlight.rules import AdamWRule
from tests.fuzz.test_gradients import EXAMPLES, FAST
from tests.matrices import gaussian
from tests.reference import adamw, muon, normuon

EXACT = polarlight.linalg.ExactPolar(dtype=torch.float64)
METHODS = {
    "muon": (polarlight.rules.muon(polar=EXACT), muon.step, [(3, 2), (2, 3), (2, 2)]),
    "normuon": (polarlight.rules.normuon(polar=EXACT), normuon.step, [(4, 2), (2, 4)]),
    "adamw": (AdamWRule(), adamw.step, [(3,), (2, 2)]),
}
GAMMA = 0.8
NAN = float("nan")


class Twin:
    """One parameter, and what it should be."""

    def __init__(self, shape, seed, reference):
        self.parameter = nn.Parameter(gaussian(*shape, seed=seed))
        self.weight = self.parameter.detach().numpy().copy()
        self.state, self.reference = {}, reference


class Group:
    """One param group: a method, its twins and its numbers."""

    def __init__(self, method, seed, lr, weight_decay, maximize):
        self.rule, reference, shapes = METHODS[method]
        self.twins = [Twin(shape, seed + i, reference) for i, shape in enumerate(shapes)]
        self.lr, self.weight_decay, self.maximize = lr, weight_decay, maximize

    def record(self):
        return {
            "params": [twin.parameter for twin in self.twins],
            "rule": self.rule,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "momentum": 0.9,
            "maximize": self.maximize,
        }


groups = st.builds(
    Group,
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 50),
    lr=st.sampled_from([0.0, 0.05, 0.1]),
    weight_decay=st.sampled_from([0.0, 0.2]),
    maximize=st.booleans(),
)
what = st.sampled_from(["number"] * 5 + ["none", "zero", "nan", "inf"])


class Machine(RuleBasedStateMachine):
    """The optimizer and the model."""

    @initialize(first=st.lists(groups, min_size=1, max_size=2))
    def build(self, first):
        self.groups = first
        self.optimizer = SpectralOptimizer([group.record() for group in first])
        self.scheduler = None
        self.saved = None
        self.skipped = 0

    @property
    def twins(self):
        return [twin for group in self.groups for twin in group.twins]

    @rule(data=st.data(), seed=st.integers(0, 10_000))
    def step(self, data, seed):
        for group in self.groups:
            for i, twin in enumerate(group.twins):
                kind = data.draw(what) if twin.parameter.requires_grad else "none"
                G = gaussian(*twin.weight.shape, seed=seed + i)
                if kind in ("nan", "inf"):
                    G.view(-1)[seed % G.numel()] = NAN if kind == "nan" else -np.inf
                    self.skipped += 1
                G = torch.zeros_like(G) if kind == "zero" else G
                twin.parameter.grad = None if kind == "none" else G
                if kind in ("number", "zero"):
                    self._model(group, twin, G.numpy() * (-1 if group.maximize else 1))
        self.optimizer.step()

    def _model(self, group, twin, G):
        numbers = {"lr": group.lr, "weight_decay": group.weight_decay, "momentum": 0.9}
        fresh = not np.any(G) and not any(np.any(x) for x in twin.state.values())
        if fresh and twin.reference is not adamw.step:
            # 0 / 0 in the formulas: nothing has been seen, so nothing moves but the decay
            twin.weight = twin.weight * (1 - group.lr * group.weight_decay)
        else:
            twin.weight = twin.reference(twin.weight, G, twin.state, **numbers)

    @rule()
    def step_without_gradients(self):
        self.optimizer.zero_grad()
        self.optimizer.step()

    @precondition(lambda self: len(self.groups) < 4)
    @rule(group=groups)
    def add_group(self, group):
        self.groups.append(group)
        self.optimizer.add_param_group(group.record())
        self.scheduler = None  # torch's schedulers know the groups they were made with

    @rule()
    def schedule(self):
        if self.scheduler is None:
            self.scheduler = torch.optim.lr_scheduler.MultiplicativeLR(
                self.optimizer, lambda epoch: GAMMA
            )
        self.optimizer._opt_called = True  # no warning: its steps have other names here
        self.scheduler.step()
        for group in self.groups:
            group.lr *= GAMMA

    @rule(index=st.integers(0, 20))
    def freeze_or_thaw(self, index):
        twin = self.twins[index % len(self.twins)]
        twin.parameter.requires_grad_(not twin.parameter.requires_grad)

    @rule(index=st.integers(0, 3), weight_decay=st.sampled_from([0.0, 0.1, 0.5]))
    def set_weight_decay(self, index, weight_decay):
        index %= len(self.groups)
        self.groups[index].weight_decay = weight_decay
        self.optimizer.param_groups[index]["weight_decay"] = weight_decay

    @rule(executor=st.sampled_from([polarlight.OneByOne(), polarlight.Batched(100)]))
    def restart(self, executor):
        """Saves, forgets everything but weights and settings, and loads."""
        self._load_into_a_new_one(self._written(), executor)

    def _written(self):
        """The state as it lies in a file."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        return file.getvalue()

    def _load_into_a_new_one(self, written, executor):
        wrong = {"lr": 0.7, "weight_decay": 0.7, "maximize": False}
        records = [group.record() | wrong for group in self.groups]
        self.optimizer = SpectralOptimizer(records, executor=executor)
        self._load(written)
        self.scheduler, self.skipped = None, 0

    def _load(self, written):
        self.optimizer.load_state_dict(torch.load(io.BytesIO(written), weights_only=True))

    @rule()
    def save(self):
        """Weights and state now, to come back to after more steps."""
        numbers = [(group.lr, group.weight_decay) for group in self.groups]
        model = [(twin.weight.copy(), copy.deepcopy(twin.state)) for twin in self.twins]
        self.saved = self._written(), numbers, model

    @precondition(lambda self: self.saved)
    @rule(anew=st.booleans())
    def go_back(self, anew):
        """Into a new optimizer, or into the one that has gone on."""
        written, numbers, model = self.saved
        if len(numbers) < len(self.groups):
            with pytest.raises(ValueError, match="param groups, the optimizer has"):
                self._load(written)
            return
        for group, (lr, weight_decay) in zip(self.groups, numbers, strict=True):
            group.lr, group.weight_decay = lr, weight_decay
        for twin, (weight, state) in zip(self.twins, model, strict=True):
            twin.weight, twin.state = weight.copy(), copy.deepcopy(state)
            twin.parameter.data.copy_(torch.from_numpy(weight))
        if anew:
            self._load_into_a_new_one(written, polarlight.Batched())
        else:
            self._load(written)
            self.scheduler = None

    @invariant()
    def weights_are_the_models(self):
        for twin in getattr(self, "groups", []) and self.twins:
            scale = max(1.0, np.abs(twin.weight).max())
            # float64 rounding; an exact polar factor of an ill-conditioned momentum enlarges it
            np.testing.assert_allclose(
                twin.parameter.detach().numpy() / scale, twin.weight / scale, rtol=0, atol=1e-7
            )

    @invariant()
    def skips_are_counted(self):
        if hasattr(self, "optimizer"):
            assert sum(self.optimizer.skipped().values()) == self.skipped


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=max(30, EXAMPLES // 5),
    stateful_step_count=25,
    deadline=None,
    derandomize=FAST.derandomize,
)
