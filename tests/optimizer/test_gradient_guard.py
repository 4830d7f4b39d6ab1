"""Guard against non-finite gradients: who is asked, what is counted, what is undone."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import polarlight
from polarlight import NonFinite
from polarlight.optimizer import gradient_guard, masked
from polarlight.optimizer.gradient_guard import NonFiniteGuard
from polarlight.rule import ElementwiseRule
from polarlight.rules import AdamWRule
from polarlight.stages.side import Identity
from tests.matrices import gaussian

GOOD, BAD = torch.tensor(True), torch.tensor(False)


def parameters(*gradients):
    """One of ones per gradient, or None for one without."""
    found = []
    for g in gradients:
        found.append(torch.nn.Parameter(torch.ones(2)))
        found[-1].grad = None if g is None else torch.full((2,), g)
    return found


def group(*gradients, rule=None):
    return {"params": parameters(*gradients), "rule": rule or polarlight.rules.muon()}


def flagged(guard, groups, wait=False, states=None):
    """Masks, and the param indices that are left of those with a gradient."""
    active = {
        i: [j for j, p in enumerate(g["params"]) if p.grad is not None]
        for i, g in enumerate(groups)
    }
    states = states or {p: {} for g in groups for p in g["params"]}
    shared = [set() for _ in groups]
    masks = guard.flag_nonfinite(groups, active, states, shared=shared, may_wait=wait)
    guard.drop_nonfinite_on_host(groups, active, shared)
    return masks, active


@pytest.fixture
def on_a_device(monkeypatch):
    """The host may not look."""
    monkeypatch.setattr(gradient_guard, "is_host_readable", lambda device: False)


def test_nonfinite_gradients_in_host_memory_are_dropped_and_counted():
    guard = NonFiniteGuard(NonFinite.SKIP)
    groups = [group(1.0, torch.nan, None, torch.inf), group(torch.nan)]
    masks, active = flagged(guard, groups)
    assert masks == {0: None, 1: None}
    assert active == {0: [0], 1: []}
    assert guard.skipped(groups) == {
        "param_groups[0]['params'][1]": 1,
        "param_groups[0]['params'][3]": 1,
        "param_groups[1]['params'][0]": 1,
    }


def test_gradients_in_host_memory_are_tested_batch_by_batch():
    """Each gradient is read once, unless a policy has to know all of them first."""
    guard, groups = NonFiniteGuard(NonFinite.SKIP), [group(1.0, torch.nan), group(torch.nan)]
    active = {0: [0, 1], 1: [0]}
    states = {p: {} for g in groups for p in g["params"]}
    shared = [set(), set()]
    masks = guard.flag_nonfinite(groups, active, states, shared=shared, may_wait=True)
    assert masks == {0: None, 1: None}
    assert active == {0: [0, 1], 1: [0]}
    assert guard.skipped(groups) == {}
    part = {0: [1]}
    guard.drop_nonfinite_on_host(groups, part, shared)
    assert part == {0: []}
    assert guard.skipped(groups) == {"param_groups[0]['params'][1]": 1}


@pytest.mark.parametrize("policy", [NonFinite.RAISE, NonFinite.PROPAGATE])
def test_raise_and_propagate_drop_no_parameter(policy):
    guard, groups, active = NonFiniteGuard(policy), [group(1.0, torch.nan)], {0: [0, 1]}
    guard.drop_nonfinite_on_host(groups, active, [set()])
    assert active == {0: [0, 1]}
    assert guard.skipped(groups) == {}


@pytest.mark.usefixtures("on_a_device")
def test_flags_and_counts_stay_on_the_device():
    guard, groups = NonFiniteGuard(NonFinite.SKIP), [group(1.0, torch.nan), group(torch.nan, None)]
    for _ in range(2):
        masks, active = flagged(guard, groups)
        assert active == {0: [0, 1], 1: [0]}
        assert {i: bool(ok) for i, ok in masks[0].items()} == {0: True, 1: False}
        assert {i: bool(ok) for i, ok in masks[1].items()} == {0: False}
    names = ["param_groups[0]['params'][1]", "param_groups[1]['params'][0]"]
    assert guard.skipped(groups) == dict.fromkeys(names, 2)


@pytest.mark.usefixtures("on_a_device")
def test_the_host_waits_for_flags_where_a_probe_observes():
    masks, active = flagged(NonFiniteGuard(NonFinite.SKIP), [group(1.0, torch.nan)], wait=True)
    assert masks == {0: None}
    assert active == {0: [0]}


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize(
    ("rule", "key", "asked"),
    [
        (polarlight.rules.soap(), "step", True),
        (polarlight.rules.soap(), "unit", False),
        (AdamWRule(), "step", False),  # a counter, but none that it branches on
    ],
)
def test_the_host_waits_for_flags_where_a_stage_counts_on_the_host(rule, key, asked):
    groups = [group(1.0, torch.nan, rule=rule)]
    states = {p: {key: torch.zeros(())} for p in groups[0]["params"]}
    masks, active = flagged(NonFiniteGuard(NonFinite.SKIP), groups, states=states)
    assert (masks == {0: None}) == asked
    assert active == {0: [0] if asked else [0, 1]}


def test_a_gradient_that_is_nonfinite_on_another_process_is_dropped():
    guard, groups = NonFiniteGuard(NonFinite.SKIP), [group(1.0, 1.0), group(1.0, 1.0)]
    shared = [{1}, {0}]

    def flag():
        active = {0: [0, 1], 1: [0, 1]}
        guard.flag_nonfinite(
            groups,
            active,
            {p: {} for g in groups for p in g["params"]},
            shared=shared,
            nonfinite_ranks={(0, 1): 0, (1, 0): 3},
            may_wait=False,
        )
        return active

    active = flag()
    assert active == {0: [0], 1: [1]}
    assert list(guard.skipped(groups).values()) == [1, 1]
    guard.policy = NonFinite.RAISE
    with pytest.raises(FloatingPointError, match=r"\[0\]\['params'\]\[1\], .*\[1\]\['params'\]\[0"):
        flag()


def test_finite_gradients_have_no_mask_under_any_policy():
    for policy in NonFinite:
        masks, active = flagged(NonFiniteGuard(policy), [group(1.0, None, -1.0)])
        assert masks == {0: None}
        assert active == {0: [0, 2]}


@pytest.mark.usefixtures("on_a_device")
def test_skip_counts_are_allocated_ahead_and_again_for_a_group_that_grew():
    guard, groups = NonFiniteGuard(NonFinite.SKIP), [group(1.0), group(1.0, 1.0)]
    guard.allocate_counts(groups)
    assert [len(counts.places) for counts in guard._skipped_on_device.values()] == [3]
    groups[0]["params"] += parameters(torch.nan)
    for _ in range(3):
        guard.allocate_counts(groups)
        flagged(guard, groups)
    assert guard.skipped(groups) == {"param_groups[0]['params'][1]": 3}


def test_an_optimizer_allocates_skip_counts_with_its_state():
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = polarlight.Muon([p])
    optimizer.state_dict()
    counts = optimizer._guard._skipped_on_device
    assert {str(device): some.places for device, some in counts.items()} == {"cpu": [(0, 0)]}


def test_mask_for_returns_flags_by_param_index_and_true_for_absent_ones():
    params = [torch.ones(2, device=device) for device in ("cpu", "meta", "cpu")]
    assert masked.flags_from_mask(None, [0, 1], params) is None
    assert [bool(x) for x in masked.flags_from_mask({2: BAD}, [0, 2], params)] == [True, False]
    assert masked.flags_from_mask({2: BAD}, [1], params)[0].device.type == "meta"


@pytest.mark.parametrize(
    "momentum",
    [polarlight.stages.EMA(), polarlight.stages.HeavyBall(), polarlight.stages.RawGradient()],
    ids=str,
)
def test_momenta_of_nonfinite_gradients_keep_every_bit(momentum):
    gradients = [gaussian(3), torch.full((3,), torch.nan).double()]
    buffers = [gaussian(3, seed=i) for i in (1, 2)] if momentum.buffered else []
    plain = [b.clone() for b in buffers]
    expected = momentum(gradients[:1], plain[:1], 0.9)
    found = masked.update_momenta(momentum, [{}, {}], gradients, buffers, 0.9, [GOOD, BAD])
    assert torch.equal(found[0], expected[0])
    assert found[1].isfinite().all()
    assert all(torch.equal(x, y) for x, y in zip(buffers, plain, strict=True))


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize(
    "momentum", [polarlight.stages.EMA(False), polarlight.stages.HeavyBall(False)], ids=str
)
def test_a_rule_that_returns_what_it_was_given_does_not_lose_the_momentum(momentum):
    plain = replace(
        polarlight.rules.muon(),
        map=Identity(),
        scale=polarlight.stages.Unscaled(),
        momentum=momentum,
    )
    p = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = polarlight.SpectralOptimizer([p], rule=plain)
    for value in (1.0, torch.nan):
        p.grad = torch.full((4, 2), value)
        optimizer.step()
        if value == 1.0:
            before = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
            assert before[1].all()
    assert torch.equal(p, before[0])
    assert torch.equal(optimizer.state[p]["momentum_buffer"], before[1])


@dataclass(frozen=True)
class Counting(ElementwiseRule):
    """An elementwise rule that knows nothing of skipping."""

    name: str = "counting"

    def new_state(self, parameter):
        return {"seen": torch.zeros(())}

    def step(self, parameters, gradients, states, *, lr):
        for p, g, state in zip(parameters, gradients, states, strict=True):
            state["seen"] += 1
            p.sub_(lr * g)

    def momentum_and_direction(self, state, momentum):
        return state["seen"], state["seen"]


def test_a_rule_that_cannot_skip_has_its_work_undone():
    rule, weights = Counting(), [torch.ones(2), torch.ones(2)]
    states = [rule.new_state(w) for w in weights]
    gradients = [torch.ones(2), torch.full((2,), torch.nan)]
    masked.step_where_finite(rule, weights, gradients, states, [GOOD, BAD], lr=0.5)
    assert [w.tolist() for w in weights] == [[0.5, 0.5], [1.0, 1.0]]
    assert [state["seen"].item() for state in states] == [1, 0]
    masked.step_where_finite(rule, weights, gradients, states, None, lr=0.5)
    assert [state["seen"].item() for state in states] == [2, 1]


class Skipping(AdamWRule):
    """Notes which way it was called."""

    def step(self, *_, **__):
        self.called("step")

    def step_finite(self, *_, **__):
        self.called("step_finite")


@pytest.mark.parametrize(
    ("device", "compiling", "way"),
    [("cpu", False, "step_finite"), ("cpu", True, "step"), ("elsewhere", False, "step")],
)
def test_a_rule_that_can_skip_does_where_torchs_kernels_do(monkeypatch, device, compiling, way):
    ways = []
    monkeypatch.setattr(Skipping, "called", lambda self, name: ways.append(name), raising=False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    if device != "cpu":
        monkeypatch.setattr(masked, "_FUSED_DEVICES", {"cuda", "meta"})
    masked.step_where_finite(Skipping(), [torch.ones(2)], [torch.ones(2)], [{}], [GOOD])
    assert ways == [way]


def test_weights_that_are_left_out_do_not_decay():
    weights = [torch.ones(2), torch.ones(2)]
    masked.decay_where_finite(weights, 0.5, [GOOD, BAD])
    masked.decay_where_finite(weights, 0.5, None)
    assert [w.tolist() for w in weights] == [[0.25, 0.25], [0.5, 0.5]]


def test_cloned_buffers_are_committed_where_gradients_are_finite():
    states = [{"momentum_buffer": torch.zeros(2), "own": torch.zeros(2)} for _ in range(2)]
    clones = masked.clone_buffers(states)
    assert [set(clone) for clone in clones] == [{"own"}, {"own"}]
    for clone in clones:
        clone["own"] += 1
    directions = [torch.ones(2), torch.ones(2)]
    masked.commit_where_finite(directions, states, clones, [GOOD, BAD])
    assert [state["own"].tolist() for state in states] == [[1, 1], [0, 0]]
    assert [D.tolist() for D in directions] == [[1, 1], [0, 0]]


@dataclass(frozen=True)
class Careless(Counting):
    """Does not look at the lengths of its lists."""

    def step(self, *_, **__):
        pass


EMA_, BALL, RAW = (
    polarlight.stages.EMA(),
    polarlight.stages.HeavyBall(),
    polarlight.stages.RawGradient(),
)


def zeros(count):
    return [torch.zeros(2) for _ in range(count)]


def empty(count):
    return [{} for _ in range(count)]


UNEQUAL = {
    "momenta, states": lambda: masked.update_momenta(
        EMA_, empty(3), zeros(2), zeros(2), 0.9, [GOOD] * 2
    ),
    "momenta, buffers": lambda: masked.update_momenta(
        BALL, empty(3), zeros(2), zeros(2), 0.9, [GOOD] * 2
    ),
    "momenta, flags": lambda: masked.update_momenta(RAW, empty(1), zeros(2), [], 0.9, [GOOD]),
    "commit, clones": lambda: masked.commit_where_finite(zeros(2), empty(2), empty(1), [GOOD] * 2),
    "keep, directions": lambda: masked.commit_where_finite(
        zeros(1), empty(2), empty(2), [GOOD] * 2
    ),
    "decay": lambda: masked.decay_where_finite(zeros(1), 0.5, [GOOD] * 2),
    "entries, states": lambda: masked.step_where_finite(
        Careless(), zeros(2), zeros(2), empty(3), [GOOD] * 2
    ),
    "entries, flags": lambda: masked.step_where_finite(
        Careless(), zeros(2), zeros(2), empty(2), [GOOD]
    ),
    "adamw, gradients": lambda: adamw_step(1, gradients=2),
    "adamw, states": lambda: adamw_step(1, states=2),
    "adamw, flags": lambda: adamw_step(2, flags=1),
}


def adamw_step(count, gradients=None, states=None, flags=None):
    rule = AdamWRule()
    lists = zeros(count), zeros(gradients or count)
    kept = [rule.new_state(torch.zeros(2)) for _ in range(states or count)]
    step = rule.step if flags is None else partial(rule.step_finite, finite=[GOOD] * flags)
    step(*lists, kept, lr=0.1, weight_decay=0.0, momentum=0.9)


@pytest.mark.parametrize("call", UNEQUAL.values(), ids=UNEQUAL)
def test_lists_that_do_not_match_are_refused_and_not_cut(call):
    """A parameter at the end of a list would be left as it is without a word."""
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        call()
