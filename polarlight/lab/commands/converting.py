"""Command `polarlight convert`: a checkpoint's optimizer state as carried state."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from polarlight.lab.commands import options
from polarlight.lab.commands.console import say
from polarlight.lab.inspection.torchfile import TORN, not_of_torch
from polarlight.lab.train import durable
from polarlight.migration.carried import Carried, to_file
from polarlight.migration.conventions import convention_of
from polarlight.migration.sources import SOURCES, fitting_source, read_momenta, read_state_dict

SOURCES_LIST = "Formats:\n\n" + "\n".join(
    f"- **{name}**: {source.about}" for name, source in SOURCES.items()
)
_DEPTH = 4


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A file of torch.save.")],
    out: Annotated[Path, typer.Option(help="The file to write.", callback=options.new_file)] = Path(
        "carried.pt"
    ),
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Path of an optimizer's state dict, such as optimizer or optimizers.0. "
            "May be repeated. Default: all that are found."
        ),
    ] = None,
    momenta: Annotated[
        str | None,
        typer.Option(help="Path of a bare loop's list of momenta, as in the Aurora release."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="JSON: the parameters' names in the order in which the optimizer was given them; "
            "for several optimizers an object from key to list."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Format; see below. Default: detected.")
    ] = None,
) -> None:
    """Convert the optimizer state of a checkpoint: momentum, second moments, steps.

    Units are converted: a heavy ball's momentum is 1 / (1 - beta) times an EMA. Names come from the
    checkpoint if the optimizer was built from named parameters, or if the checkpoint holds a model
    with as many tensors; otherwise write them in your training script:

    ```
    json.dump([n for group in my_groups for n in group_names], open("names.json", "w"))
    polarlight convert checkpoint.pt --names names.json --out carried.pt
    ```

    In a script that still has the old optimizer, `polarlight.migration.carry_over(old, new)` does
    the same without names.
    """
    content = _load(checkpoint)
    orders = {} if names is None else _names_in(names)
    carried: dict[str, Carried] = {}
    for where in key or ([] if momenta else _optimizers(content)):
        state_dict = _at(content, where)
        carried |= read_state_dict(
            state_dict, _order(content, state_dict, where, orders), source=source
        )
        say(f"{where}: {_summary(state_dict, source)}")
    if momenta is not None:
        carried |= _bare(content, momenta, orders)
    durable.replace(out, lambda file: torch.save(to_file(carried), file))
    _say_how_to_load(carried, out)


def _load(path: Path) -> Any:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if foreign := not_of_torch(path):
        raise ValueError(f"{foreign}; expected a checkpoint that torch.save wrote")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = "it is damaged, or holds more than tensors and plain values, which is not loaded"
        raise ValueError(f"{path} cannot be read: {said} for safety") from error
    except TORN as error:
        raise ValueError(f"{path} cannot be read by torch: {error or type(error)}") from error


def _names_in(path: Path) -> Any:
    """Read a list of names, or an object from key to list."""
    orders = options.json_in(path, "--names")
    lists = list(orders.values()) if isinstance(orders, dict) else [orders]
    names = [name for some in lists if isinstance(some, list) for name in some]
    if not all(isinstance(x, list) for x in lists) or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"--names {path} must hold a list of names, or an object from key to such a list"
        )
    return orders


def _is_optimizer(value: object) -> bool:
    return isinstance(value, Mapping) and {"state", "param_groups"} <= set(value)


def _walk(value: object, where: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield every part of nested dicts and lists, with its path."""
    yield where, value
    if depth == 0 or _is_optimizer(value):
        return
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        return
    for key, part in parts:
        yield from _walk(part, f"{where}.{key}" if where else key, depth - 1)


def _optimizers(content: object) -> list[str]:
    found = [where for where, value in _walk(content) if _is_optimizer(value)]
    if not found:
        raise ValueError(
            "no optimizer's state dict was found (a dict with state and param_groups); "
            "say where it lies by --key, or --momenta for a list of buffers"
        )
    return found


def _at(content: Any, where: str) -> Any:
    for place, value in _walk(content, depth=8):
        if place == where:
            return value
    known = [place for place, value in _walk(content) if place and not isinstance(value, Tensor)]
    raise ValueError(f"nothing lies at {where!r}. The checkpoint has: {', '.join(known[:12])}")


def _order(
    content: object, state_dict: Mapping[str, Any], where: str, orders: Any
) -> Sequence[str] | None:
    """Return the names given by the user, or the model's if their number fits."""
    given = orders if isinstance(orders, list) else orders.get(where)
    if given is not None:
        return [str(name) for name in given]
    groups = state_dict["param_groups"]
    if all("param_names" in group for group in groups):
        return None
    count = sum(len(group["params"]) for group in groups)
    start = f"{where}: " if where else ""  # the file's whole content has no path inside of it
    for place, value in _walk(content):
        if _is_model(value) and len(value) == count:
            say(f"{start}names and their order taken from the model at {place!r}")
            return list(value)
    raise ValueError(
        f"{start}the checkpoint does not say what its {count} parameters are called; write their "
        "names in the order in which the optimizer was given them, group after group, as a JSON "
        "list, and pass --names FILE"
    )


def _is_model(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(tensor, Tensor) for tensor in value.values())


def _bare(content: object, where: str, orders: Any) -> dict[str, Carried]:
    found = _at(content, where)
    if isinstance(found, Mapping):
        return read_momenta(list(found.values()), list(found))
    if not isinstance(orders, list):
        raise ValueError(f"{where} is a list: give the names of its buffers by --names, as a list")
    say(f"{where}: {len(found)} averages of a bare loop")
    return read_momenta(found, orders)


def _summary(state_dict: Mapping[str, Any], source: str | None) -> str:
    """Return every group's format and the name of its learning rate's convention."""
    said = []
    for group in state_dict["param_groups"]:
        states = [state_dict["state"].get(place) for place in group["params"]]
        state = next((one for one in states if one), None)
        if state is None:
            said.append(f"{len(states)} parameters that were never stepped")
            continue
        kind = fitting_source(group, state, source)
        name = kind.convention(group)
        here = f"; here: polarlight.{convention_of(name).here}" if name else ""
        lr = f"lr {float(group['lr']):g} as in {name!r}" if name else f"lr {group['lr']}"
        said.append(f"{len(states)} parameters of {kind.name}, {lr}{here}")
    return "\n  ".join(["", *said])


def _say_how_to_load(carried: Mapping[str, Carried], out: Path) -> None:
    empty = [name for name, one in carried.items() if one.reason]
    say(f"{out}: {len(carried) - len(empty)} of {len(carried)} parameters carry state")
    for name in empty[:5]:
        say(f"  {name}: {carried[name].reason}")
    say("Load it with:")
    say("  from polarlight.migration import from_file, load_carried")
    say(f"  print(load_carried(optimizer, from_file(torch.load({str(out)!r}))))")
