"""MuLoCo: Muon inside, one average of the workers every ten steps, outer Nesterov.

python examples/muloco.py                               # two simulated workers in one process
torchrun --nproc-per-node 2 examples/muloco.py          # the same, each in a process of its own
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

import polarlight

WORKERS, STEPS, EVERY = 2, 60, 10


def batch(worker, step):
    generator = torch.Generator().manual_seed(WORKERS * step + worker)
    tokens = torch.randint(64, (256,), generator=generator)
    return tokens, (5 * tokens + 3) % 64


def build():
    torch.manual_seed(0)
    hidden = [nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False)]
    return nn.Sequential(nn.Embedding(64, 32), *hidden, nn.Linear(32, 64, bias=False))


def main(workers=range(WORKERS), group=None):
    """Train the workers of this process; return the model and its losses."""
    models = [build() for _ in workers]
    inner = [polarlight.Muon(m, lr=0.02, aux_lr=3e-3) for m in models]
    nesterov = polarlight.diloco.OuterNesterov(lr=0.7, momentum=0.5)
    outer = polarlight.diloco.Outer(*models, every=EVERY, optimizer=nesterov, group=group)
    losses = []
    for step in range(STEPS):
        for worker, m, optimizer in zip(workers, models, inner, strict=True):
            tokens, targets = batch(worker, step)
            loss = nn.functional.cross_entropy(m(tokens), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        outer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} after {outer.rounds} averages")
    return models[0], losses


if __name__ == "__main__":
    if "RANK" not in os.environ:
        main()
    else:
        dist.init_process_group("gloo")
        main([dist.get_rank()], dist.group.WORLD)
        dist.barrier()  # no process ends while another one waits for it
        sys.stdout.flush()
        os._exit(0)  # gloo's threads abort an ordinary exit, or block it (torch 2.7), now and then
