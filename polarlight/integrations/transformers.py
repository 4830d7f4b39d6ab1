"""Hugging Face transformers: explain an optimizer on a model from its config alone."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from polarlight.lookup import nearest
from polarlight.routing.explain import Explanation, explain

_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageTextToText",
    "AutoModelForImageClassification",
    "AutoModel",
)
"""Tried in this order where the config does not name a class."""

_COUNTS = ("layer", "layers", "labels", "experts", "blocks", "stages", "heads")
_LARGEST_COUNT, _LARGEST, _MOST_TENSORS = 100_000, 2**40, 300_000
"""Limits on a config. The largest models of today have some 100,000 tensors."""

_MISFITS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(RuntimeError, TypeError, ValueError),
)
"""Errors that transformers raises where values of a config do not fit each other or the model."""


def explain_hf(
    config_json: str | Path, make_optimizer: Callable[[nn.Module], Optimizer]
) -> Explanation:
    """Explain an optimizer's routes on the model of a `config.json`, of any size.

    The model is built on the meta device: no weights, no download, no remote code.

    Args:
        config_json: A model's `config.json`, or the folder that holds it.
        make_optimizer: Makes the optimizer for the model, `polarlight.Aurora` for example.

    Raises:
        ValueError: If the file is no config of a model that the installed transformers knows.
        ImportError: If transformers is not installed.
    """
    return explain(make_optimizer(meta_model(config_json)))


def meta_model(config_json: str | Path) -> nn.Module:
    """Build the model of a `config.json` on the meta device.

    The class is the first of the config's `architectures`, else the first auto class (causal,
    sequence to sequence, masked, ...) that has a model for the config.

    Raises:
        ValueError: If the file is no config of a model that the installed transformers knows.
        ImportError: If transformers is not installed.
    """
    transformers = _transformers()
    kind, data = _read(transformers, Path(config_json))
    strict = import_module("huggingface_hub.errors").StrictDataclassError
    try:
        _refuse_endless(data)
        config = kind.from_dict(data)
        with torch.device("meta"), _few_tensors():
            model: nn.Module = _build(transformers, config)
    except (*_MISFITS, strict) as error:
        said = f"{type(error).__name__}: {error}".strip()
        raise ValueError(
            f"{config_json}: transformers {transformers.__version__} makes no model of it: {said}"
        ) from error
    return model


def _transformers() -> Any:
    """Import transformers; raise ImportError with the command to install it."""
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise ImportError("this needs transformers: pip install transformers") from error


def _read(transformers: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the config's class and the file's content."""
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a model's config.json, or its folder")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    kind = data.get("model_type") if isinstance(data, dict) else None
    known = transformers.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        near = nearest(str(kind), known.keys())
        hint = f". Did you mean {near!r}?" if near else ""
        raise ValueError(
            f"{path}: model_type must be one that transformers {transformers.__version__} knows, "
            f"got {kind!r}{hint}"
        )
    return known[kind], data


def _refuse_endless(value: Any, name: str = "") -> None:
    """Raise ValueError for sizes with which transformers would build for hours."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_endless(inner, key)
    elif isinstance(value, list):
        for inner in value:
            _refuse_endless(inner, name)
    elif isinstance(value, int):
        most = _LARGEST_COUNT if name.endswith(_COUNTS) else _LARGEST
        if abs(value) > most:
            raise ValueError(f"{name} is {str(value)[:40]}; at most {most:,} is allowed")


@contextmanager
def _few_tensors() -> Iterator[None]:
    """Raise ValueError once a model under construction has too many tensors."""
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        """Count one registered parameter."""
        nonlocal made
        made += 1
        if made > _MOST_TENSORS:
            raise ValueError(f"the model has more than {_MOST_TENSORS:,} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _build(transformers: Any, config: Any) -> Any:
    """Build the model by the config's architectures, else by the first fitting auto class."""
    for name in config.architectures or ():
        named: Any = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            made: Any = named
            return made._from_config(config)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto.from_config(config)
    raise ValueError(f"no model for {config.model_type!r}; name its class in architectures")
