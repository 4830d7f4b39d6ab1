"""Opening of a checkpoint: a file, or a folder of Hugging Face, sharded or not."""

import json
from dataclasses import replace
from pathlib import Path

from polarlight.lab.inspection.optimizer_state import state_of
from polarlight.lab.inspection.safetensors import safetensors_entries
from polarlight.lab.inspection.source import Entry, OpenedCheckpoint, UnreadableError
from polarlight.lab.inspection.torchfile import load_mapped, torch_source

TORCH = (".pt", ".pth", ".bin", ".ckpt")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
STATES = ("optimizer.pt", "optimizer.bin")


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """Return the names and shapes in a checkpoint; read no tensor yet.

    Args:
        path: A .safetensors file, a file of torch.save (.pt, .pth, .bin, .ckpt), the index of a
            sharded checkpoint, or a folder with one of these.

    Raises:
        UnreadableError: If it is none of them, a part is missing or cut short; the message says
            which, and what to do.
    """
    if not path.exists():
        raise UnreadableError(f"{path} does not exist")
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".json":
        return OpenedCheckpoint(_sharded(path))
    if path.suffix == ".safetensors":
        return OpenedCheckpoint(safetensors_entries(path))
    if path.suffix in TORCH:
        return torch_source(path)
    raise UnreadableError(
        f"{path} has no known ending; expected .safetensors, {', '.join(TORCH)}, an index .json or "
        "a folder"
    )


def _folder(folder: Path) -> OpenedCheckpoint:
    source = _model(folder)
    state = next((folder / name for name in STATES if (folder / name).exists()), None)
    if state is None:
        return source
    found = state_of(load_mapped(state), source.weights)
    notes = (*source.notes, *found.notes)
    return replace(source, momenta=found.momenta, scales=found.scales, notes=notes)


def _model(folder: Path) -> OpenedCheckpoint:
    for name in INDICES:
        if (folder / name).exists():
            return OpenedCheckpoint(_sharded(folder / name))
    for name in SINGLE:
        if (folder / name).exists():
            return open_checkpoint(folder / name)
    if found := sorted(folder.glob("*.safetensors")):
        return OpenedCheckpoint(_joined(found))
    runs = [path for path in sorted(folder.iterdir()) if path.suffix in TORCH]
    if len(runs) == 1:
        return torch_source(runs[0])
    raise UnreadableError(_why_not(folder, runs))


def _why_not(folder: Path, found: list[Path]) -> str:
    if (folder / ".metadata").exists():
        return (
            f"{folder} is a distributed checkpoint of torch; turn it into one file with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt`"
        )
    if found:
        names = ", ".join(path.name for path in found[:5])
        return f"{folder} holds several files of torch.save ({names}); name one of them"
    return f"{folder} holds no checkpoint; expected {', '.join((*SINGLE, *INDICES))}"


def _sharded(index: Path) -> dict[str, Entry]:
    """Return the tensors that an index maps to its shards."""
    shard_of = _weight_map(index)
    files = [index.parent / name for name in dict.fromkeys(shard_of.values())]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UnreadableError(
            f"{index.parent} lacks {len(missing)} of {len(files)} shards: "
            f"{', '.join(missing[:5])}; download them"
        )
    entries = _joined(files)
    lost = [name for name in shard_of if name not in entries]
    if lost:
        raise UnreadableError(f"{index} names {lost[0]}, which is in none of its shards")
    return entries


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor, all in the folder of the index."""
    try:
        shard_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UnreadableError(f"{index} is no index of shards: it has no weight_map") from error
    for tensor, file in shard_of.items():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file:
            raise UnreadableError(
                f"{index}: {tensor} is said to be in {file!r}; expected the name of a file in "
                f"{index.parent}"
            )
    return shard_of


def _joined(files: list[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file in files:
        is_plain = file.suffix == ".safetensors"
        entries |= safetensors_entries(file) if is_plain else torch_source(file).weights
    return entries
