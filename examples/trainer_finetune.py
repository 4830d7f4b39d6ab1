"""Fine-tuning in a Hugging Face Trainer: evaluation, weight decay, clipping, freezing, resume.

python examples/trainer_finetune.py      # CPU, seconds; needs transformers and accelerate
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import polarlight
from polarlight.integrations.trainer import clip_gradients, factory


def pretrained():
    torch.manual_seed(0)  # a small Llama; yours comes from `from_pretrained`
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_attention_heads=4, **sizes))


def text(pieces):
    tokens = torch.tensor(list(str(license).encode() * 400))[: pieces * 33].view(pieces, 33)
    return [{"input_ids": piece, "labels": piece} for piece in tokens]


def main(folder, steps=12, resume=False):
    model = pretrained()
    model.model.embed_tokens.weight.requires_grad_(False)  # frozen: no step, no decay
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        learning_rate=2e-4,
        weight_decay=0.1,
        eval_strategy="steps",
        report_to="none",
        use_cpu=True,
        **dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), 6),
    )
    options = {
        "lr": arguments.learning_rate,  # with MatchRmsAdamW() AdamW gets the same two numbers
        "weight_decay": arguments.weight_decay,
        "scale": polarlight.stages.MatchRmsAdamW(),
        "overrides": {"model.layers.0.*": polarlight.Route(lr=1e-4)},
    }
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=text(64),
        eval_dataset=text(16),
        optimizer_cls_and_kwargs=(factory(polarlight.Muon, arguments), options),
    )
    clip_gradients(trainer)  # the AdamW part alone, by max_grad_norm, 1.0
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(main(temporary).state.log_history[-2])
