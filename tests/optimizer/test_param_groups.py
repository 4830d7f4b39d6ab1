"""Param groups: defaults, ends of ranges, and messages that say which group and parameter."""

import pytest
import torch

import polarlight
from polarlight import NonFinite, SpectralOptimizer
from polarlight.optimizer import with_stochastic_rounding
from polarlight.optimizer.param_groups import alike_groups
from polarlight.recipes import muon_with_adamw
from tests.nets import optimizer_of, parameter, step


def test_defaults_of_the_optimizer():
    optimizer = optimizer_of([parameter(3, 2)])
    (group,) = optimizer.param_groups
    numbers = [group[key] for key in ("lr", "weight_decay", "momentum", "maximize", "view", "role")]
    assert numbers == [0.02, 0.0, 0.95, False, None, ""]
    assert optimizer.nonfinite is NonFinite.SKIP
    assert optimizer.executor == polarlight.Batched()


@pytest.mark.parametrize("number", ["lr", "weight_decay", "momentum"])
def test_numbers_may_be_zero(number):
    (group,) = optimizer_of([parameter(3, 2)], **{number: 0.0}).param_groups
    assert group[number] == 0.0


def test_a_negative_momentum_is_named():
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got -0\.5"):
        optimizer_of([parameter(3, 2)], momentum=-0.5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_rate_may_be_a_tensor_of_one_element(shape):
    (group,) = optimizer_of([parameter(3, 2)], lr=torch.full(shape, 0.5)).param_groups
    assert group["lr"].shape == shape


def quantized(*shape, dtype=torch.uint8):
    return torch.nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)


def quantized_model(dtype):
    """Two trained matrices, a packed weight, and a layer whose weight is integers in place."""
    model = torch.nn.ModuleDict(
        {"up_proj": torch.nn.Linear(8, 32), "q_proj": torch.nn.Linear(8, 8)}
    )
    model["down_proj"] = torch.nn.Linear(32, 8, bias=False)
    model["q_proj"].weight = quantized(8, 8, dtype=dtype)
    model.register_parameter("packed", quantized(512, 1, dtype=dtype))
    return model


MADE = {
    "of a model": polarlight.Muon,
    "of names": lambda model: polarlight.Aurora(model.named_parameters()),
    "of tensors": lambda model: SpectralOptimizer(
        model.parameters(), rule=polarlight.rules.AdamWRule()
    ),
    "of groups": lambda model: SpectralOptimizer(
        [
            {"params": list(model.named_parameters()), "rule": polarlight.rules.AdamWRule()},
            {"params": [("q", quantized(4, 4))], "rule": polarlight.rules.muon()},
        ]
    ),
    "of routed groups": lambda model: SpectralOptimizer(muon_with_adamw(model, lr=0.1)),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_frozen_integers_are_left_out_as_by_torch(make, dtype):
    model = quantized_model(dtype)
    optimizer = make(model)
    kept = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in kept} == {id(p) for p in trained}
    for group in optimizer.param_groups:
        assert len(group.get("param_names", group["params"])) == len(group["params"])
    before = [p.detach().clone() for p in model.parameters()]
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]
    assert make(model).load_state_dict(optimizer.state_dict()) is None
    assert "q_proj.bias" in str(polarlight.explain(optimizer)) or not optimizer.reasons


def test_integers_in_routed_groups_are_explained():
    groups = muon_with_adamw(quantized_model(torch.int8), lr=0.1)
    rows = {row.name: row for row in polarlight.explain(groups).rows}
    assert rows["packed"].frozen
    assert rows["q_proj.weight"].reason.endswith("; frozen")


def test_a_group_without_a_rule_is_named_with_three_of_its_parameters():
    whole = {"params": [parameter(3, 2)], "rule": polarlight.rules.muon()}
    bare = [(name, parameter(3, 2)) for name in ("a", "b", "c", "d")]
    with pytest.raises(ValueError, match=r"^param group 0 \(a, b, c, \.\.\.\) has no rule: give"):
        SpectralOptimizer(bare)
    with pytest.raises(ValueError, match=r"^param group 1 \(param_groups\[1\]\['params'\]\[0\], "):
        SpectralOptimizer([whole, {"params": [parameter(3, 2)]}])


def test_a_second_group_is_counted_from_zero():
    groups = [{"params": [parameter(3, 2)]}, {"params": [parameter(3, 2), parameter(3)]}]
    with pytest.raises(ValueError, match=r"^param_groups\[1\]\['params'\]\[1\] has shape \(3,\)"):
        optimizer_of(groups)


def test_a_view_that_does_not_fit_is_refused_at_once_by_name():
    p = parameter(5, 4)
    with pytest.raises(ValueError, match=r"^up: "):
        optimizer_of([("up", p)], view=polarlight.view.Heads(2))
    assert len(optimizer_of([("up", p)], view=polarlight.view.Heads(5)).param_groups) == 1


def test_a_parameter_twice_is_named_with_both_its_places():
    p = parameter(3, 2)
    with pytest.raises(ValueError, match=r"mention of: params\[1\] \(it is params\[0\]\)"):
        optimizer_of([p, p])
    optimizer = optimizer_of([p])
    with pytest.raises(ValueError, match=r"mention of: b \(it is param_groups\[0\]\['params'\]\["):
        optimizer.add_param_group({"params": [("a", parameter(3, 2)), ("b", p)]})


def test_a_load_completes_what_the_saved_state_lacks():
    optimizer = optimizer_of([parameter(3, 2)])
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved | {"state": {}})
    (p,) = optimizer.param_groups[0]["params"]
    assert torch.equal(optimizer.state[p]["momentum_buffer"], torch.zeros(3, 2))


def test_hooks_after_a_load_see_the_dtypes_that_were_saved():
    """Whoever registered first: torch casts to the parameter's dtype, which is undone before."""
    p = parameter(8, 2, dtype=torch.bfloat16)
    optimizer = SpectralOptimizer([p], rule=polarlight.rules.normuon())
    seen = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[p]["row_second_moment"].dtype)
    )
    step(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [torch.float32]


def test_state_that_is_no_tensor_is_carried_along():
    optimizer = optimizer_of([parameter(3, 2)])
    step(optimizer)
    saved = optimizer.state_dict()
    saved["state"][0]["note"] = 7
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"][0]["note"] == 7


def test_loaded_state_is_not_the_saved_one():
    p = parameter(8, 2, dtype=torch.bfloat16)
    optimizer = SpectralOptimizer([p], rule=polarlight.rules.normuon())
    step(optimizer)
    saved = optimizer.state_dict()
    kept = saved["state"][0]["row_second_moment"].clone()
    optimizer.load_state_dict(saved)
    step(optimizer, seed=1)
    assert not torch.equal(optimizer.state[p]["row_second_moment"], kept)
    twin = SpectralOptimizer(
        [parameter(8, 2, dtype=torch.bfloat16)], rule=polarlight.rules.normuon()
    )
    twin.load_state_dict(optimizer.state_dict())
    before = optimizer.state[p]["row_second_moment"].clone()
    step(twin, seed=2)
    assert torch.equal(optimizer.state[p]["row_second_moment"], before)


@pytest.mark.parametrize("rule", [polarlight.rules.muon(), polarlight.rules.AdamWRule()])
@pytest.mark.parametrize("lr", [0.25, torch.tensor(0.25)], ids=["float", "tensor"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_weights_decay_by_the_rate_times_the_decay(rule, lr, decay):
    p = torch.nn.Parameter(torch.full((3, 2), 8.0))
    optimizer = SpectralOptimizer([p], rule=rule, lr=lr, weight_decay=decay)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((3, 2), 8.0 * (1 - 0.25 * decay)))


def test_weights_are_rounded_at_random_only_where_that_is_asked_for():
    def state_of(optimizer):
        (p,) = optimizer.param_groups[-1]["params"]
        step(optimizer)
        return set(optimizer.state[p])

    def narrow():
        return parameter(3, 2, dtype=torch.bfloat16)

    assert state_of(optimizer_of([narrow()])) == {"momentum_buffer", "momentum_sizes"}
    at_random = with_stochastic_rounding(optimizer_of([narrow()]))
    assert state_of(at_random) == {"momentum_buffer", "momentum_sizes", "weight_draws"}
    at_random.add_param_group({"params": [narrow()]})
    assert state_of(at_random) == {"momentum_buffer", "momentum_sizes", "weight_draws"}
    assert state_of(with_stochastic_rounding(optimizer_of([parameter(3, 2)]))) == {
        "momentum_buffer",
        "momentum_sizes",
    }


class Counter:
    """A probe that is told of every update and asks for no observation."""

    def __init__(self):
        self.told = []

    def begin(self):
        return False

    def observe(self, observation):
        raise AssertionError("nobody asked")

    end = observe

    def count(self, name, rule, *, frozen=False):
        self.told.append((name, rule and rule.name, frozen))


def test_a_counting_probe_counts_every_parameter_in_every_step():
    still, vector = parameter(3, 2).requires_grad_(False), parameter(3)
    groups = [
        {"params": [("moving", parameter(3, 2)), ("waiting", parameter(3, 2)), ("still", still)]},
        {"params": [("vector", vector)], "rule": polarlight.rules.AdamWRule()},
    ]
    optimizer, probe = optimizer_of(groups), Counter()
    optimizer.observe(probe)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    vector.grad = torch.ones(3)
    optimizer.step()
    assert probe.told == [
        ("moving", "muon", False),
        ("waiting", None, False),
        ("still", None, True),
        ("vector", "adamw", False),
    ]


@pytest.mark.parametrize(
    "key",
    [
        {"use_muon": False},
        {"use_muon": True},
        {"algorithm": "adamw"},
        {"use_fallback": True},
        {"betas": (0.9, 0.95)},
        {"eps": 1e-8},
        {"lr": 3e-4, "betas": (0.9, 0.95), "use_muon": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [polarlight.Muon, optimizer_of], ids=["Muon", "SpectralOptimizer"])
def test_keys_that_select_methods_in_other_libraries_raise_with_the_fix(make, key):
    groups = [{"params": [parameter(4, 4)]}, {"params": [parameter(8, 4)], **key}]
    with pytest.raises(ValueError, match=r"param group 1 has '(use|alg|betas|eps).*AdamWRule"):
        make(groups)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"lr": float("inf")}, "lr must be finite, got inf"),
        ({"lr": torch.tensor(float("inf"))}, "lr must be finite"),
        ({"lr": float("nan")}, "lr must be >= 0, got nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"momentum": float("nan")}, r"momentum must lie in \[0, 1\), got nan"),
        ({"lr": "1e-3"}, "lr must be a number, got the text '1e-3'"),
    ],
    ids=str,
)
def test_invalid_numbers_raise_at_construction(numbers, said):
    with pytest.raises(ValueError, match=said):
        polarlight.Muon([parameter(4, 4)], **numbers)


def test_groups_with_equal_rule_view_and_numbers_are_merged_on_an_accelerator(monkeypatch):
    rule, lr = polarlight.rules.muon(), torch.tensor(0.1)

    def group(device="meta", **changes):
        params = [torch.nn.Parameter(torch.ones(4, 2, device=device))]
        numbers = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "maximize": False}
        return {"params": params, "rule": rule, "view": None, **numbers, **changes}

    groups = [group(), group(lr=0.2), group(), group(rule=polarlight.rules.muon()), group("cpu")]
    groups += [group("cpu"), group(lr=lr), group(lr=lr), group(lr=lr.clone()), group(maximize=True)]
    groups += [group(stochastic_rounding=True), group(view=polarlight.view.Transposed())]
    found = alike_groups(groups, range(len(groups)))
    assert found == [[0, 2], [1], [3], [4], [5], [6, 7], [8], [9], [10], [11]]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert alike_groups(groups, [0, 2]) == [[0], [2]]


def trainers_groups(model):
    """Param groups of an optimizer class in transformers.Trainer: no names, vectors apart."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("cls", [polarlight.Muon, polarlight.Aurora])
@pytest.mark.parametrize("groups", [trainers_groups, lambda model: list(model.parameters())])
def test_parameters_without_names_are_refused_with_a_way_for_the_trainer(cls, groups):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"Trainer give .*integrations\.trainer\.factory\("):
        cls(groups(model))


@pytest.mark.parametrize("names", [["1.bias"], ["1.bias", "1.weight"]], ids=str)
def test_a_module_that_is_added_later_is_routed_as_the_error_says(names):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    optimizer = polarlight.Muon(model[:1])
    later = [(name, p) for name, p in model.named_parameters() if name in names]
    with pytest.raises(ValueError, match=r"rules\.with_adamw\(module\).*add_param_group\(group\)"):
        optimizer.add_param_group({"params": later})
    for group in polarlight.rules.with_adamw(model[1]):
        optimizer.add_param_group(group)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
