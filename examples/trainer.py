"""Aurora in a Hugging Face Trainer: a small Llama from scratch, saved and resumed.

python examples/trainer.py          # CPU, seconds; needs transformers and accelerate
"""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import polarlight
from polarlight.integrations.trainer import factory, watch


def text(length=65):
    """Python's own licence as bytes, in pieces."""
    tokens = torch.tensor(list(str(license).encode() * 40 + Path(torch.__file__).read_bytes()))
    pieces = tokens[: len(tokens) // length * length].view(-1, length)[:512]
    return [{"input_ids": piece.long(), "labels": piece.long()} for piece in pieces]


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes, **heads))


def main(folder, steps=20, resume=False):
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=8,
        lr_scheduler_type="cosine",
        warmup_steps=4,
        logging_steps=5,
        save_steps=10,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        model=model(),
        args=arguments,
        train_dataset=text(),
        optimizer_cls_and_kwargs=(
            factory(polarlight.Aurora, arguments),
            {"lr": 0.02, "aux_lr": 3e-3},
        ),
    )
    watched = watch(trainer, every=5)
    trainer.train(resume_from_checkpoint=resume)
    print(watched.check.report())
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
