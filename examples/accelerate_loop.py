"""Aurora under accelerate: prepare the model and the optimizer, and use them as ever.

python examples/accelerate_loop.py                          # one process
accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polarlight


def data():
    tokens = torch.randint(64, (512, 8), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(tokens, (5 * tokens + 3) % 64), batch_size=32)


def main(folder=None):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    hidden = [nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False)]
    model = nn.Sequential(nn.Embedding(64, 32), *hidden, nn.Linear(32, 64, bias=False))
    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, data(), schedule)
    losses = []
    for tokens, targets in loader:
        with accelerator.accumulate(model):
            logits = model(tokens)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
    accelerator.print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    if folder is not None:
        accelerator.save_state(folder)
    accelerator.end_training()
    return accelerator.unwrap_model(model), losses


if __name__ == "__main__":
    main()
