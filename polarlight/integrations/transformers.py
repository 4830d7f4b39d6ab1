"""Hugging Face transformers: what an optimizer would do to a model, from its config alone."""

import json
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from polarlight.explanation import Explanation, explain

_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageTextToText",
    "AutoModelForImageClassification",
    "AutoModel",
)
"""Tried in this order where the config does not name a class."""


def explain_hf(config_json: Path, make_optimizer: Callable[[nn.Module], Optimizer]) -> Explanation:
    """What an optimizer would do to the model of a `config.json`, whatever the model's size.

    The model is built on the meta device: no weights, no download, no code from elsewhere.

    Args:
        config_json: A model's `config.json`.
        make_optimizer: Makes the optimizer for the model, `polarlight.Aurora` for example.

    Raises:
        ValueError: If the file is no config of a model that the installed transformers knows.
        ImportError: If transformers is not installed.
    """
    return explain(make_optimizer(meta_model(config_json)))


def meta_model(config_json: Path) -> nn.Module:
    """The model of a `config.json` on the meta device.

    The class is the first of the config's `architectures`, else the first auto class (causal,
    sequence to sequence, masked, ...) that has a model for the config.

    Raises:
        ValueError: If the file is no config of a model that the installed transformers knows.
        ImportError: If transformers is not installed.
    """
    transformers = _transformers()
    config = _config(transformers, config_json)
    with torch.device("meta"):
        model: nn.Module = _build(transformers, config, config_json)
    return model


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise ImportError("this needs transformers: pip install transformers") from error


def _config(transformers: Any, path: Path) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    kind = data.get("model_type") if isinstance(data, dict) else None
    known = transformers.CONFIG_MAPPING
    if kind not in known:
        near = get_close_matches(str(kind), known.keys(), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(
            f"{path}: model_type must be one that transformers {transformers.__version__} knows, "
            f"got {kind!r}{hint}"
        )
    return known[kind].from_dict(data)


def _build(transformers: Any, config: Any, path: Path) -> Any:
    for name in config.architectures or ():
        if (named := getattr(transformers, name, None)) is not None:
            return named._from_config(config)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto.from_config(config)
    raise ValueError(
        f"{path}: transformers {transformers.__version__} has no model for {config.model_type!r}; "
        "name its class in architectures"
    )
