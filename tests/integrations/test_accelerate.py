"""accelerate: prepare, DDP in two processes, and what its FSDP2 does to an optimizer's groups."""

import os
from dataclasses import fields

import pytest
import torch
from torch import nn

import polarlight
from tests.integrations.running import EXAMPLES, assert_equal_weights, example


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(16, 8),
        nn.Linear(8, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 8),
        nn.Linear(8, 16, bias=False),
    )


def train(model, optimizer, steps):
    for step in range(steps):
        tokens = torch.randint(16, (64,), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(tokens), (3 * tokens + 1) % 16).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_example_learns_and_its_state_comes_back(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, losses = example("accelerate_loop").main(tmp_path)
    assert losses[-1] < losses[0]
    accelerator = accelerate.Accelerator(cpu=True)
    again = example("accelerate_loop")
    torch.manual_seed(1)
    hidden = [nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False)]
    twin = nn.Sequential(nn.Embedding(64, 32), *hidden, nn.Linear(32, 64, bias=False))
    optimizer = polarlight.Aurora(twin, lr=0.02, aux_lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
    twin, _wrapped, _, _ = accelerator.prepare(twin, optimizer, again.data(), schedule)
    accelerator.load_state(tmp_path)
    assert_equal_weights(model, accelerator.unwrap_model(twin))
    assert optimizer.state_dict()["state"][1]["momentum_buffer"].any()
    accelerator.end_training()


class Replaced(nn.Module):
    """A model whose parameters accelerate's FSDP2 replaces by new tensors of the same values."""

    def __init__(self):
        super().__init__()
        self.inner = tiny()

    def forward(self, tokens):
        return self.inner(tokens)

    def replace_parameters(self):
        """Each parameter becomes another object; returns pairs of old address and new one."""
        pairs = {}
        for module in self.inner:
            for name, p in list(module.named_parameters(recurse=False)):
                new = nn.Parameter(p.detach().clone())
                setattr(module, name, new)
                pairs[p.data_ptr()] = new
        return pairs


def swap(optimizer, model):
    """accelerate 1.15, `fsdp2_prepare_model`: groups hold stand-ins, then the new parameters.

    Old parameters are told apart by their address; in between, a group's entries are one-element
    tensors whose only use is that address.
    """
    addresses = [[p.data_ptr() for p in group["params"]] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = [torch.empty(1) for _ in group["params"]]
    replaced = model.replace_parameters()
    for group, own in zip(optimizer.param_groups, addresses, strict=True):
        group["params"] = [replaced[address] for address in own]


@pytest.mark.parametrize("make", [polarlight.Aurora, polarlight.NorMuon])
def test_parameters_that_are_replaced_after_construction_train_the_same(make):
    plain, replaced = Replaced(), Replaced()
    usual = make(plain, lr=0.02, aux_lr=1e-2)
    swapped = make(replaced, lr=0.02, aux_lr=1e-2)
    swap(swapped, replaced)
    train(plain, usual, 3)
    train(replaced, swapped, 3)
    assert_equal_weights(plain, replaced)
    a, b = usual.state_dict(), swapped.state_dict()
    assert a["state"].keys() == b["state"].keys()
    assert "inner.1.weight" in str(polarlight.explain(swapped))


def worker(rank, world, folder, port):
    """One rank of two: half of every batch each."""
    from accelerate import Accelerator

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    accelerator = Accelerator(cpu=True)
    model = tiny()
    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(3):
        tokens = torch.randint(16, (64,), generator=torch.Generator().manual_seed(step))
        tokens = tokens.view(world, -1)[rank]
        loss = nn.functional.cross_entropy(model(tokens), (3 * tokens + 1) % 16)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    torch.save(accelerator.unwrap_model(model).state_dict(), folder / f"{rank}.pt")
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip("accelerate")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (2, tmp_path, port), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    single = tiny()
    train(single, polarlight.Aurora(single, lr=0.02, aux_lr=1e-2), 3)
    for name, expected in single.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        # the mean of two halves' gradients is rounded otherwise than the whole batch's
        torch.testing.assert_close(ranks[0][name], expected, atol=2e-3, rtol=0)


def test_accelerate_reads_the_fsdp2_config_of_the_examples():
    commands = pytest.importorskip("accelerate.commands.config.config_args")
    config = commands.load_config_from_file(str(EXAMPLES / "accelerate_fsdp2.yaml"))
    assert config.distributed_type == "FSDP"
    plugin = pytest.importorskip("accelerate").FullyShardedDataParallelPlugin
    known = {f"fsdp_{f.name.removeprefix('fsdp_')}" for f in fields(plugin)}
    assert set(config.fsdp_config) <= known
    assert config.fsdp_config["fsdp_version"] == 2
