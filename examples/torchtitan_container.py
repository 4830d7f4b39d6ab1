"""torchtitan's optimizers container with Aurora in it, on its own Llama, schedule and checkpoint.

python examples/torchtitan_container.py     # CPU, seconds; needs torchtitan
"""

import torch
from torch import nn
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.models.common.attention import ScaledDotProductAttention

import polarlight
from polarlight.lab.train.titan_recipe import TOY, aurora, decoder


def batch(step):
    tokens = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(step))
    return tokens, (5 * tokens + 3) % 256


def build(steps):
    """As torchtitan's trainer does, but for the attention, which is flex on a GPU."""
    with torch.device("meta"):
        model = decoder(TOY, ScaledDotProductAttention.Config()).build()
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    optimizers = aurora(lr=0.02, aux_lr=3e-3).build(model_parts=[model])
    schedule = LRSchedulersContainer.Config(warmup_steps=5, decay_ratio=0.3)
    return model, optimizers, schedule.build(optimizers=optimizers, training_steps=steps)


def train(model, optimizers, schedule, steps):
    losses, positions = [], torch.arange(32).expand(8, 32)
    for step in steps:
        tokens, targets = batch(step)
        logits = model(tokens, positions=positions)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(steps=40):
    first, second = build(steps), build(steps)
    print(polarlight.explain(first[1].optimizers[0]))
    losses = train(*first, range(steps // 2))
    for old, new in zip(first, second, strict=True):  # the model, the container, the schedule
        new.load_state_dict(old.state_dict())
    losses += train(*second, range(steps // 2, steps))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
