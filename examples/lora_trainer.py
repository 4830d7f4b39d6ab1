"""LoRA of a small Llama in a Hugging Face Trainer, with each pair of factors as one product.

python examples/lora_trainer.py          # CPU, seconds; needs transformers, accelerate and peft
"""

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from polarlight.integrations.lora import lora_product_groups
from polarlight.integrations.trainer import factory


def counting(count=256):
    """Counting by fives: what the fine-tune shall learn."""
    starts = torch.randint(64, (count, 1), generator=torch.Generator().manual_seed(0))
    rows = (starts + 5 * torch.arange(16)) % 64
    return [{"input_ids": row, "labels": row} for row in rows]


def base():
    """Your pretrained model; here an untrained one, so that nothing has to be fetched."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes, **heads))


def main(folder, steps=40, resume=False):
    lora = LoraConfig(r=8, target_modules="all-linear", lora_alpha=16, task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=16,
        warmup_steps=5,
        logging_steps=5,
        save_steps=20,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        model=get_peft_model(base(), lora),
        args=arguments,
        train_dataset=counting(),
        optimizer_cls_and_kwargs=(factory(lora_product_groups), {"lr": 0.3}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
