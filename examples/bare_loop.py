"""The loop of nanoGPT and nanochat with Aurora in it: warmup, cooldown, accumulation, clipping.

python examples/bare_loop.py        # CPU, seconds; needs torch alone
"""

import torch
from torch import nn

import polarlight

STEPS, WARMUP, COOLDOWN, ACCUMULATE = 30, 5, 10, 2


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up_proj = nn.Linear(width, 4 * width, bias=False)
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        return x + self.down_proj(self.up_proj(self.norm(x)).relu().square())


def batch(step):
    tokens = torch.randint(64, (32, 16), generator=torch.Generator().manual_seed(step))
    return tokens, (5 * tokens + 3) % 64


def share(step):
    """Of the full learning rate: linear warmup, constant, linear cooldown."""
    return min(1, (step + 1) / WARMUP, (STEPS - step) / COOLDOWN)


def main():
    torch.manual_seed(0)
    ends = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
    model = nn.Sequential(ends[0], Block(32), Block(32), ends[1])
    optimizer = polarlight.Aurora(model, lr=0.02, weight_decay=0.01, aux_lr=3e-3)
    print(polarlight.explain(optimizer))
    full = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in range(STEPS):
        for group, lr in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = lr * share(step)
        for part in range(ACCUMULATE):
            tokens, targets = batch(ACCUMULATE * step + part)
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            (loss / ACCUMULATE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
