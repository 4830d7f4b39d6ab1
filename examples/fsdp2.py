"""FSDP2 with Aurora on two processes; what one process would compute, to rounding.

torchrun --nproc-per-node 2 examples/fsdp2.py     # gloo, CPU, seconds; needs torch alone
python examples/fsdp2.py                          # the same on one process
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polarlight

WIDTH, STEPS = 64, 30


def model():
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    return nn.Sequential(nn.Embedding(64, WIDTH), *layers, nn.Linear(WIDTH, 64, bias=False))


def share(step, rank, world):
    """Return this process's part of the batch of a step."""
    tokens = torch.randint(64, (256,), generator=torch.Generator().manual_seed(step))
    tokens = tokens.chunk(world)[rank]
    return tokens, (5 * tokens + 3) % 64


def main():
    alone = "RANK" not in os.environ
    net, rank, world = model(), 0, 1
    if not alone:
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
        fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    optimizer = polarlight.Aurora(net, lr=0.02, aux_lr=3e-3)  # after fully_shard
    for step in range(STEPS):
        tokens, targets = share(step, rank, world)
        loss = nn.functional.cross_entropy(net(tokens), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    mean = loss.detach() / world
    if not alone:
        dist.all_reduce(mean)
        dist.destroy_process_group()
    if rank == 0:
        print(f"{world} process(es): loss {mean.item():.4f} after {STEPS} steps")


if __name__ == "__main__":
    main()
