"""Names of parameters without the words that wrappers and reparametrizations put into them.

`base_model.model.lm_head.modules_to_save.default.weight`  ->  `lm_head.weight`
`up_proj.parametrizations.weight.original`                 ->  `up_proj.weight`

Only this module knows these words.
"""

from collections.abc import Collection, Sequence

WRAPPERS: tuple[tuple[str, ...], ...] = (
    ("module",),  # DistributedDataParallel, DataParallel, AveragedModel
    ("_orig_mod",),  # torch.compile
    ("_forward_module",),  # Lightning Fabric
    ("_fsdp_wrapped_module",),
    ("_checkpoint_wrapped_module",),
    ("base_layer",),  # an adapted layer of peft
    ("base_model", "model"),  # an adapted model of peft
    ("modules_to_save", "*"),  # the trained copy of a module, by the adapter's name
    ("original_module",),  # the frozen original
)
"""Words in a row under which a wrapper holds the real module; `*` stands for any word."""

_BY_FIRST = {words[0]: words for words in WRAPPERS}

MAGNITUDE = "_g"
"""Suffix of a weight-normalized layer's magnitude, in either of torch's forms."""


def wrapper_positions(path: Sequence[str]) -> set[int]:
    """Return the positions in a module's path of words that wrappers added."""
    found: set[int] = set()
    for place, first in enumerate(path):
        words = _BY_FIRST.get(first, ())
        here = path[place : place + len(words)]
        alike = zip(here, words, strict=False)
        if len(here) == len(words) and all(word in (a, "*") for a, word in alike):
            found.update(range(place, place + len(words)))
    return found


LORA = {"lora_a": "A", "lora_b": "B"}
"""Factors of an adapter, by the lower-case word before its name: `up_proj.lora_a.default`."""


def lora_factor(words: Sequence[str]) -> str:
    """Return "A" or "B" for the lower-case words of a LoRA factor's name; "" for other names."""
    return next((LORA[word] for word in words[-3:] if word in LORA), "")


def lora_base(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of the name of the weight that a LoRA factor adapts; () for other names."""
    place = next((i for i, word in enumerate(words) if word in LORA), None)
    return (*words[:place], "weight") if place and lora_factor(words) else ()


def weight_words(words: Sequence[str], all_names: Collection[str] = ()) -> tuple[str, ...]:
    """Return a name's words; of a weight-normalized, pruned or parametrized one the plain weight's.

    A magnitude is called `weight_g`.

    Args:
        words: The parameter's name, cut at the dots.
        all_names: All names of the model: a direction is known by the magnitude of the same layer.
    """
    *path, leaf = words
    if path[-2:-1] == ["parametrizations"]:
        # One tensor is called `original`, of several each has a number. Weight norm keeps two, a
        # magnitude and the direction.
        weight = path[-1]
        plain = {"original": weight, "original0": f"{weight}{MAGNITUDE}", "original1": weight}
        return (*path[:-2], plain.get(leaf, f"{weight}_{leaf}"))
    stem = leaf.removesuffix("_orig")  # spectral_norm of torch.nn.utils, and pruning
    if leaf.endswith("_v") and ".".join((*path, leaf[:-2] + MAGNITUDE)) in all_names:
        stem = leaf[:-2]
    return (*path, stem)


def owner_name(name: str) -> str:
    """Return the name of the module that owns a parameter; wrappers' words are kept."""
    return ".".join(weight_words(name.split("."))[:-1])


def without_wrappers(name: str) -> str:
    """Return a parameter's name without the words of wrappers."""
    *path, leaf = name.split(".")
    without = wrapper_positions(path)
    return ".".join((*(word for i, word in enumerate(path) if i not in without), leaf))


def plain_name(name: str) -> str:
    """Return a name without the words of wrappers, `parametrizations` and `_orig`."""
    return without_wrappers(".".join(weight_words(name.split("."))))
