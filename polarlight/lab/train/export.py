"""Export of a run's model as a Hugging Face folder: config, weights, byte tokenizer.

The trainer's model is weight for weight a Qwen3 (a mixture of experts a Qwen3Moe), so that nothing
is converted: `AutoModelForCausalLM.from_pretrained(folder)` has equal logits. Where the vocabulary
is the 256 bytes, `AutoTokenizer.from_pretrained(folder)` turns text into its UTF-8 bytes. Token
shards come with a vocabulary of their own, whose tokenizer the user has.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polarlight.lab.train import checkpoint
from polarlight.lab.train.corpus import BYTES
from polarlight.lab.train.model_config import ModelConfig, qwen3_config
from polarlight.lab.train.settings import Plan

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def export(run: Path, out: Path) -> list[Path]:
    """Write the model of a run's checkpoint as a Hugging Face folder; return the files.

    Args:
        run: A run's folder, with `settings.json` and `checkpoint.pt`.
        out: The folder to write; made if it is missing.

    Raises:
        ValueError: If the folder holds no checkpoint of a run, or its MLP is none that Qwen3 has.
        ImportError: If safetensors is not installed; transformers brings it.
    """
    content = checkpoint.load(_file(run, "checkpoint.pt"), torch.device("cpu"))
    weights: dict[str, Tensor] = content["model"]
    config = _config(run, weights)
    out.mkdir(parents=True, exist_ok=True)
    if config.tied:
        weights = {name: W for name, W in weights.items() if name != _HEAD}
    texts = {"config.json": hugging_face_config(config), "generation_config.json": {}}
    if config.vocab_size == BYTES:
        texts |= byte_tokenizer()
    for name, text in texts.items():
        (out / name).write_text(json.dumps(text, indent=2, ensure_ascii=False), encoding="utf-8")
    tensors = {name: W.contiguous() for name, W in weights.items()}
    _safetensors().save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return [out / name for name in (*texts, "model.safetensors")]


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """Return the `config.json` of a model.

    Raises:
        ValueError: If its MLP is none that Qwen3 has.
    """
    kind, name = ("qwen3_moe", "Qwen3Moe") if config.is_mixture else ("qwen3", "Qwen3")
    about = {"architectures": [f"{name}ForCausalLM"], "model_type": kind, "dtype": "float32"}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {**about, **qwen3_config(config), **tokens}


def byte_tokenizer() -> dict[str, dict[str, Any]]:
    """Return `tokenizer.json` and its config: one token per UTF-8 byte, numbered by it.

    A byte-level BPE without merges; byte 0, which the trainer puts between files, ends a text.
    """
    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    level["use_regex"] = False
    end = {"id": 0, "content": _characters()[0], "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    special = {"eos_token": _characters()[0], "pad_token": _characters()[0]}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": about | special}


def _characters() -> list[str]:
    """Return GPT-2's printable character for every byte."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    found, replaced = [], 0
    for byte in range(BYTES):
        found.append(chr(byte) if byte in visible else chr(256 + replaced))
        replaced += byte not in visible
    return found


def _config(run: Path, weights: dict[str, Tensor]) -> ModelConfig:
    settings = json.loads(_file(run, "settings.json").read_text(encoding="utf-8"))
    return Plan(**settings["plan"]).model(weights[_EMBEDDING].shape[0])


def _file(run: Path, name: str) -> Path:
    if not (run / name).exists():
        near = sorted(run.glob(f"**/{name}"))
        hint = f"; did you mean {near[0].parent}?" if near else ""
        raise ValueError(
            f"{run} has no {name}: give the folder of one run, "
            f"such as runs/quick/aurora/seed0{hint}"
        )
    return run / name


def _safetensors() -> Any:
    try:
        return import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise ImportError(
            "this needs safetensors: pip install 'polarlight[transformers]'"
        ) from error
