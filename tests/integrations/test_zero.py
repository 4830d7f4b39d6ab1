"""torch's ZeroRedundancyOptimizer around the optimizer: its state is that of one process."""

import copy
import io
import warnings

import torch
from torch import nn

import polarlight
from tests.distributed.processes import run

with warnings.catch_warnings(action="ignore"):  # torch deprecates what it imports itself here
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from polarlight.integrations.zero import ZeroRedundancy


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8))


def groups(model):
    return polarlight.recipes.muon_with_adamw(model, lr=1e-2)


def around(model, make):
    return make(groups(model), optimizer_class=polarlight.SpectralOptimizer)


def steps(model, optimizer, start, count=2):
    for t in range(start, start + count):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(t))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def equal(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def alone(count):
    model = net()
    optimizer = polarlight.SpectralOptimizer(groups(model))
    steps(model, optimizer, 0, count)
    return model, optimizer


def consolidated(rank, optimizer):
    """The whole state, on every process."""
    optimizer.consolidate_state_dict(0)
    found = [optimizer.state_dict() if rank == 0 else None]
    torch.distributed.broadcast_object_list(found, 0)
    return found[0]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_plain_wrapper(rank):
    model = net()
    wrapped = around(model, ZeroRedundancyOptimizer)
    steps(model, wrapped, 0)
    assert equal(model, alone(2)[0])
    state = through_a_file(consolidated(rank, wrapped))
    optimizer = polarlight.SpectralOptimizer(groups(model))
    optimizer.load_state_dict(state)
    steps(model, optimizer, 2)
    assert equal(model, alone(4)[0])


def check_own_wrapper(rank):
    model = net()
    wrapped = around(model, ZeroRedundancy)
    steps(model, wrapped, 0)
    state = through_a_file(consolidated(rank, wrapped))
    twin = copy.deepcopy(model)
    optimizer = polarlight.SpectralOptimizer(groups(twin))
    optimizer.load_state_dict(copy.deepcopy(state))
    steps(twin, optimizer, 2)
    assert equal(twin, alone(4)[0])
    again = around(model, ZeroRedundancy)
    before = copy.deepcopy(state)
    again.load_state_dict(state)
    assert state["param_groups"] == before["param_groups"]
    assert all(state["state"].values())  # what was given is not written
    steps(model, again, 2)
    assert equal(model, alone(4)[0])


def check_state_of_one_process(rank):
    model, optimizer = alone(2)
    wrapped = around(model, ZeroRedundancy)
    wrapped.load_state_dict(through_a_file(optimizer.state_dict()))
    steps(model, wrapped, 2)
    assert equal(model, alone(4)[0])


def test_state_of_torchs_wrapper_loads_with_weights_only_one_process():
    run(1, check_plain_wrapper)


def test_state_of_torchs_wrapper_loads_with_weights_only_two_processes():
    run(2, check_plain_wrapper)


def test_state_of_our_wrapper_loads_with_weights_only_and_resumes():
    run(2, check_own_wrapper)


def test_a_plain_state_loads_into_our_wrapper():
    run(2, check_state_of_one_process)
