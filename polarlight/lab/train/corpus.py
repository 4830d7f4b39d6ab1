"""Corpora of training: text as bytes, or token shards.

Text is not tokenized: a byte is a token and the vocabulary has 256. The default corpus is there
without a download: the Python sources of the interpreter's own standard library.
"""

import gzip
import hashlib
import lzma
import os
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from polarlight.lab.train.data import Corpus, DataError, Tokens, cut_tail
from polarlight.lab.train.shards import shard_corpus

BYTES = 256
"""The vocabulary of text."""

TEXT = (".txt", ".md", ".rst", ".py", ".jsonl")
"""Names of text files in a folder end with one of these, and perhaps with .xz or .gz after it."""

FILES_TO_SPLIT = 20
"""From this many files on, one in this many is validation; below, a tail is."""

_OPENERS: dict[str, Callable[[Path], bytes]] = {
    ".xz": lambda file: lzma.decompress(file.read_bytes()),
    ".gz": lambda file: gzip.decompress(file.read_bytes()),
}
_SUFFIXES = tuple(text + packed for text in TEXT for packed in ("", *_OPENERS))
_SKIPPED = {"site-packages", "dist-packages", "__pycache__"}


def load_corpus(source: Path | None, *, vocab_size: int | None = None) -> Corpus:
    """Read a corpus and split it into training and validation.

    - None: every `*.py` file of the interpreter's standard library, without installed packages;
      about 31 MB on CPython 3.11. Equal interpreters give equal corpora.
    - A text file, or one packed as .xz or .gz: its bytes. Validation is the last tenth.
    - A folder: its text files (.txt .md .rst .py .jsonl, also .xz and .gz of them), subfolders
      included; hidden ones, __pycache__ and installed packages not.
    - A .bin file, or a folder with some: token shards, see `shards.py`.

    Files of the library or of a folder are joined in the order of their relative POSIX paths, with
    a 0 byte after each. If they are 20 or more, a twentieth of them is validation, those whose
    paths have the smallest hashes; if fewer, the last tenth of the bytes. One text file that is
    not packed is memory-mapped, like shards; other text is held in memory.

    Args:
        source: A file or folder, or None for the standard library.
        vocab_size: Size of the model's vocabulary. None takes 256 for text, and 50304 for shards
            whose tokens are GPT-2's.

    Raises:
        DataError: If source is missing, empty, damaged or unreadable, or vocab_size is too small.
    """
    try:
        return _load(source, vocab_size)
    except OSError as error:
        where = error.filename or source
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error


def _load(source: Path | None, vocab_size: int | None) -> Corpus:
    if source is None:
        return _standard_library(vocab_size)
    if not source.exists():
        raise DataError(f"{source} does not exist; expected a text file, a .bin file or a folder")
    if source.is_file():
        if source.suffix == ".bin":
            return shard_corpus(source, [source], vocab_size)
        return _corpus(source.name, str(source), cut_tail(_text(source)), vocab_size)
    if shards := list(source.glob("*.bin")):
        return shard_corpus(source, shards, vocab_size)
    return _folder(source, vocab_size)


def _standard_library(vocab_size: int | None) -> Corpus:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = _files(folder, (".py",)) if folder.is_dir() else {}
    if not files:
        raise DataError(
            f"this Python has no standard library sources (*.py) in {folder}, as when it is frozen "
            "or zipped; pass --data with text or token shards"
        )
    name = f"{platform.python_implementation()} {platform.python_version()} standard library"
    return _corpus(name, f"the {name}", _split(files), vocab_size)


def _folder(folder: Path, vocab_size: int | None) -> Corpus:
    files = _files(folder, _SUFFIXES)
    if not files:
        raise DataError(
            f"{folder} holds no data; expected token shards (*.bin) or text files "
            f"(*{', *'.join(TEXT)}, also packed as .xz or .gz)"
        )
    name = f"{folder.resolve().name}: {len(files)} text file{'s' * (len(files) > 1)}"
    return _corpus(name, str(folder), _split(files), vocab_size)


def _corpus(
    name: str, source: str, splits: tuple[Tensor, Tensor], vocab_size: int | None
) -> Corpus:
    """Return a corpus of bytes that are already split; `source` is for error messages."""
    if vocab_size is None:
        vocab_size = BYTES
    if vocab_size < BYTES:
        raise DataError(
            f"vocab_size = {vocab_size} is too small for {source}: text is read as bytes and needs "
            f"at least {BYTES}"
        )
    train, validation = splits
    digest = hashlib.sha256(f"{len(train)}\0{len(validation)}\0".encode())
    digest.update(train.numpy().data)
    digest.update(validation.numpy().data)
    return Corpus(
        name=name,
        train=Tokens((train,), vocab_size, f"training split of {source}"),
        validation=Tokens((validation,), vocab_size, f"validation split of {source}"),
        fingerprint=digest.hexdigest(),
    )


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files below a folder with these suffixes, by relative path, in order."""
    found = {}
    for root, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name not in _SKIPPED and name[0] != "."]
        for name in names:
            if name.lower().endswith(suffixes) and name[0] != ".":
                file = Path(root, name)
                found[file.relative_to(folder).as_posix()] = file
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed; `os.walk` ignores it otherwise."""
    raise error


def _split(files: dict[str, Path]) -> tuple[Tensor, Tensor]:
    """Return training and validation bytes, uint8; whole files if there are enough."""
    if len(files) < FILES_TO_SPLIT:
        return cut_tail(_joined(files.values()))
    by_hash = sorted(files, key=lambda path: hashlib.sha256(path.encode()).digest())
    held = set(by_hash[: -(-len(files) // FILES_TO_SPLIT)])
    return (
        _joined(file for path, file in files.items() if path not in held),
        _joined(file for path, file in files.items() if path in held),
    )


def _joined(files: Iterable[Path]) -> Tensor:
    """Join the bytes of all files, uint8, with a 0 after each."""
    joined = bytearray()
    for file in files:
        joined += _contents(file)
        joined.append(0)
    return torch.frombuffer(joined, dtype=torch.uint8)


def _text(file: Path) -> Tensor:
    """Return the bytes of one file, uint8, memory-mapped if it is not compressed."""
    if file.suffix.lower() in _OPENERS:
        if contents := bytearray(_contents(file)):
            return torch.frombuffer(contents, dtype=torch.uint8)
    else:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
        if size:
            return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    raise DataError(f"{file} is empty; expected text")


def _contents(file: Path) -> bytes:
    """Return the bytes of one file, decompressed."""
    try:
        return _OPENERS.get(file.suffix.lower(), Path.read_bytes)(file)
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{file} is not a whole {file.suffix} file: {error}; copy or download it again"
        ) from error
