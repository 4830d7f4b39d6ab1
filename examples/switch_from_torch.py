"""A run that began with torch.optim.Muon and AdamW goes on with Aurora: no bump in the loss.

python examples/switch_from_torch.py    # CPU, seconds; needs torch alone
"""

import torch
from torch import nn

import polarlight
from polarlight.migration import carry_over


def batch(step):
    tokens = torch.randint(64, (256,), generator=torch.Generator().manual_seed(step))
    return tokens, (5 * tokens + 3) % 64


def train(model, optimizers, steps):
    losses = []
    for step in steps:
        tokens, targets = batch(step)
        loss = nn.functional.cross_entropy(model(tokens), targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main():
    torch.manual_seed(0)
    hidden = [nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False)]
    model = nn.Sequential(nn.Embedding(64, 32), *hidden, nn.Linear(32, 64, bias=False))
    matrices = [hidden[0].weight, hidden[2].weight]
    rest = [model[0].weight, model[4].weight]
    old = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95)),
    ]
    losses = train(model, old, range(30))

    # `polarlight translate-lr --from torch-match-rms --lr 3e-3 --shape 128x32`: the learning rate
    # means the same where the scale is the same.
    new = polarlight.Aurora(model, lr=3e-3, scale=polarlight.stages.MatchRmsAdamW(), aux_lr=3e-3)
    print(carry_over(old, new))

    losses += train(model, [new], range(30, 60))
    print(f"torch {losses[0]:.3f} -> {losses[29]:.3f}; Aurora {losses[30]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
