"""A LoRA fine-tune with peft: Muon on the factors A and B, everything else frozen.

python examples/lora.py             # CPU, seconds; needs transformers and peft
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import polarlight
from polarlight.integrations.lora import lora_groups


def batch(step):
    """Counting by fives: what the fine-tune shall learn."""
    start = torch.randint(64, (16, 1), generator=torch.Generator().manual_seed(step))
    return (start + 5 * torch.arange(16)) % 64


def base():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes, **heads))


def main(steps=40):
    model = get_peft_model(base(), LoraConfig(r=8, target_modules="all-linear", lora_alpha=16))
    optimizer = polarlight.SpectralOptimizer(lora_groups(model, lr=0.05))
    print(polarlight.explain(optimizer))
    losses = []
    for step in range(steps):
        tokens = batch(step)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return model, losses


if __name__ == "__main__":
    main()
