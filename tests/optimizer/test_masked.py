"""A gradient that is not finite: skipped to the bit, raised, or used; by the host or a device."""

import copy
import pickle
from dataclasses import dataclass, replace

import pytest
import torch

import polarlight
from polarlight import NonFinite, SpectralOptimizer
from polarlight.optimizer import gradient_guard
from polarlight.rule import HOST_COUNTER, ElementwiseRule, UpdateRule
from polarlight.rules import AdamWRule
from tests.contracts.catalogue import SHIPPED
from tests.matrices import gaussian
from tests.releases import needs_compiled_steps

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class SignOfMean(ElementwiseRule):
    """An elementwise rule as a user may write one: it knows nothing of skipping."""

    name: str = "sign_of_mean"

    def new_state(self, parameter):
        return {"mean": torch.zeros_like(parameter), "step": torch.zeros(())}

    def step(self, parameters, gradients, states, *, lr, weight_decay, momentum):
        for p, g, state in zip(parameters, gradients, states, strict=True):
            state["step"] += 1
            state["mean"].lerp_(g, 1 - momentum)
            p.mul_(1 - lr * weight_decay).sub_(lr * state["mean"].sign())

    def momentum_and_direction(self, state, momentum):
        return state["mean"], state["mean"].sign()


RULES = {
    **SHIPPED,
    "muon-not_averaging": replace(
        SHIPPED["muon"], momentum=polarlight.stages.HeavyBall(nesterov=False)
    ),
    "muon-bfloat16": replace(SHIPPED["muon"], momentum=polarlight.stages.InBfloat16()),
    "muon-bfloat16-heavy_ball": replace(
        SHIPPED["muon"], momentum=polarlight.stages.InBfloat16(polarlight.stages.HeavyBall())
    ),
    "muon-raw": replace(SHIPPED["muon"], momentum=polarlight.stages.RawGradient()),
    "adamw": AdamWRule(),
    "elementwise": SignOfMean(),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """The two ways: the host may look at the gradients, or has to leave all of it to the device."""
    if request.param == "device":
        monkeypatch.setattr(gradient_guard, "is_host_readable", lambda device: False)
    return request.param


def trained(rule, *, steps=2, dtype=torch.float32, count=3, **options):
    """An optimizer of `count` equal matrices in the middle of a run."""
    parameters = [torch.nn.Parameter(gaussian(8, 4, seed=i, dtype=dtype)) for i in range(count)]
    options = {"lr": 0.1, "weight_decay": 0.5} | options
    optimizer = SpectralOptimizer(parameters, rule=rule, **options)
    for step in range(steps):
        set_gradients(optimizer, step)
        optimizer.step()
    return optimizer


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer, seed):
    for i, p in enumerate(parameters_of(optimizer)):
        p.grad = gaussian(*p.shape, seed=10 * seed + i + 100, dtype=p.dtype)


def snapshot(optimizer, place):
    p = parameters_of(optimizer)[place]
    return {"weight": p.detach().clone()} | {k: v.clone() for k, v in optimizer.state[p].items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.in_turn(3, "rule", "bad", "where")
@rules
@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
def test_a_skipped_parameter_keeps_every_bit_and_the_others_move(rule, bad, where):
    optimizer, healthy = trained(rule), trained(rule)
    before = snapshot(optimizer, 1)
    for o in (optimizer, healthy):
        set_gradients(o, 7)
    parameters_of(optimizer)[1].grad[2, 3] = bad
    waits = isinstance(rule, UpdateRule) and HOST_COUNTER in rule.buffer_shapes(torch.Size((8, 4)))
    if where == "host" or waits:  # it is left out of the batch, which decides the others' rounding
        parameters_of(healthy)[1].grad = None
    optimizer.step()
    healthy.step()
    assert_same(snapshot(optimizer, 1), before)
    for place in (0, 2):
        assert_same(snapshot(optimizer, place), snapshot(healthy, place))
        assert parameters_of(optimizer)[place].isfinite().all()
    assert optimizer.skipped() == {"param_groups[0]['params'][1]": 1}


@rules
def test_without_a_bad_gradient_the_policy_changes_no_bit(rule, where):
    skipping = trained(rule, steps=4)
    propagating = trained(rule, steps=4, nonfinite=NonFinite.PROPAGATE)
    for place in range(3):
        assert_same(snapshot(skipping, place), snapshot(propagating, place))
    assert skipping.skipped() == {}


@rules
def test_after_a_bad_first_gradient_training_is_as_if_it_had_not_been(rule, where):
    late, fresh = trained(rule, steps=0, count=1), trained(rule, steps=0, count=1)
    p = parameters_of(late)[0]
    for _ in range(2):
        p.grad = torch.full_like(p, NAN)
        late.step()
    for step in range(3):
        for o in (late, fresh):
            set_gradients(o, step)
            o.step()
    assert_same(snapshot(late, 0), snapshot(fresh, 0))


@rules
def test_a_propagated_nan_stays_in_its_own_parameter(rule):
    optimizer = trained(rule, nonfinite=NonFinite.PROPAGATE, steps=1)
    set_gradients(optimizer, 7)
    parameters_of(optimizer)[1].grad[2, 3] = NAN
    optimizer.step()
    finite = [bool(p.isfinite().all()) for p in parameters_of(optimizer)]
    assert finite == [True, rule == SignOfMean(), True]  # the sign of NaN is 0
    assert optimizer.skipped() == {}


@rules
def test_raising_names_the_parameters_before_anything_moves(rule):
    optimizer = trained(rule)
    optimizer.nonfinite = NonFinite.RAISE
    set_gradients(optimizer, 7)
    for place in (0, 2):
        parameters_of(optimizer)[place].grad[0, 0] = INF
    before = [snapshot(optimizer, place) for place in range(3)]
    with pytest.raises(FloatingPointError, match=r"\[0\], .*\[2\] is not finite; nothing was"):
        optimizer.step()
    for place in range(3):
        assert_same(snapshot(optimizer, place), before[place])
    set_gradients(optimizer, 8)
    optimizer.step()
    assert not torch.equal(snapshot(optimizer, 0)["weight"], before[0]["weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_other_dtypes_and_tensor_learning_rates(dtype, lr, where):
    for rule in (polarlight.rules.normuon(), AdamWRule()):
        optimizer = trained(rule, dtype=dtype, lr=lr)
        before = [snapshot(optimizer, place) for place in range(3)]
        set_gradients(optimizer, 7)
        parameters_of(optimizer)[1].grad[0, 0] = NAN
        optimizer.step()
        assert_same(snapshot(optimizer, 1), before[1])
        assert not torch.equal(parameters_of(optimizer)[0].detach(), before[0]["weight"])


@pytest.mark.parametrize(
    "view",
    [polarlight.view.RowBlocks((5, 3)), polarlight.view.Heads(2), polarlight.view.Transposed()],
    ids=str,
)
def test_every_part_of_a_skipped_parameter_is_skipped(view, where):
    optimizer = trained(polarlight.rules.normuon(), view=view)
    before = snapshot(optimizer, 0)
    set_gradients(optimizer, 7)
    parameters_of(optimizer)[0].grad[7, 3] = NAN
    optimizer.step()
    assert_same(snapshot(optimizer, 0), before)


def test_all_may_be_bad_and_some_may_have_no_gradient_or_no_entries(where):
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in [(4, 3), (3, 0), (2, 2)]]
    named = list(zip(["a", "empty", "b"], parameters, strict=True))
    optimizer = SpectralOptimizer(named, rule=polarlight.rules.aurora(), lr=0.1)
    for step in range(3):
        for p in parameters:
            p.grad = torch.full_like(p, NAN)
        parameters[2].grad = None if step == 1 else parameters[2].grad
        optimizer.step()
    assert optimizer.skipped() == {"a": 3, "b": 2}
    assert all(torch.equal(p.detach(), torch.ones_like(p)) for p in parameters)


def test_huge_gradients_are_finite(where):
    """The sum of the entries and of their squares is not."""
    optimizer = trained(polarlight.rules.muon(), steps=0, count=1)
    p = parameters_of(optimizer)[0]
    before = p.detach().clone()
    p.grad = torch.full_like(p, 3e38)
    optimizer.step()
    assert optimizer.skipped() == {}
    assert not torch.equal(p.detach(), before)
    assert p.isfinite().all()


def test_probes_receive_no_skipped_parameter(where):
    seen = []

    class Probe:
        def begin(self):
            return True

        def observe(self, observation):
            seen.append(observation.name)

        def end(self):
            pass

    optimizer = trained(polarlight.rules.muon(), count=2)
    optimizer.observe(Probe())
    set_gradients(optimizer, 7)
    parameters_of(optimizer)[1].grad[0, 0] = NAN
    optimizer.step()
    assert seen == ["param_groups[0]['params'][0]"]


def test_a_gradient_whose_square_overflows_is_not_finite_for_adamw(where):
    """Otherwise the second moment is infinite, and the parameter never moves again."""
    optimizer = trained(AdamWRule())
    before = snapshot(optimizer, 1)
    set_gradients(optimizer, 7)
    parameters_of(optimizer)[0].grad.fill_(1e18)
    parameters_of(optimizer)[1].grad.fill_(1e30)
    optimizer.step()
    assert_same(snapshot(optimizer, 1), before)
    assert optimizer.state[parameters_of(optimizer)[0]]["exp_avg_sq"].isfinite().all()
    assert optimizer.skipped() == {"param_groups[0]['params'][1]": 1}


def test_skipping_does_not_wait_for_a_device():
    """Tensors without data: whoever asks for a value fails."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 8))
    for cls in (polarlight.Muon, polarlight.NorMuon, polarlight.Aurora, polarlight.MuonEq):
        optimizer = cls(model, weight_decay=0.1)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            optimizer.skipped()


@needs_compiled_steps
@pytest.mark.filterwarnings("ignore:Dynamo detected a call:UserWarning")
def test_a_compiled_step_skips_as_well():
    compiled, eager = (trained(polarlight.rules.normuon(), steps=0) for _ in range(2))
    for group in compiled.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    step = torch.compile(compiled.step, backend="eager")
    for seed in range(3):
        for o in (compiled, eager):
            set_gradients(o, seed)
            parameters_of(o)[1].grad[0, 0] = NAN if seed == 1 else 0.0
        before = snapshot(compiled, 1)
        step()
        eager.step()
        if seed == 1:
            assert_same(snapshot(compiled, 1), before)
    assert compiled.skipped() == eager.skipped() == {"param_groups[0]['params'][1]": 1}
    assert compiled._guard._skipped_on_device  # kept by the device: the host was not asked
    for place in range(3):
        ours, theirs = (snapshot(o, place)["weight"] for o in (compiled, eager))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)  # bfloat16 iterations


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_keep_the_policy_and_count_from_zero(copied):
    optimizer = trained(polarlight.rules.muon(), nonfinite="skip")
    parameters_of(optimizer)[0].grad[0, 0] = NAN
    optimizer.step()
    optimizer.nonfinite = "raise"
    twin = copied(optimizer)
    assert twin.nonfinite is NonFinite.RAISE
    assert twin.skipped() == {}
    assert len(optimizer.skipped()) == 1


def test_loading_a_state_keeps_the_policy():
    optimizer = trained(polarlight.rules.muon(), nonfinite=NonFinite.RAISE)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.nonfinite is NonFinite.RAISE


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'ignore' is not a valid NonFinite"):
        trained(polarlight.rules.muon(), nonfinite="ignore")
