"""Token shards in the format of llm.c and modded-nanogpt, memory-mapped.

    256 x int32: magic 20240520, version 1, number of tokens, unused ...    |    uint16 tokens

All numbers are little-endian.
"""

import hashlib
import struct
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from polarlight.lab.train.data import Corpus, DataError, Tokens, cut_tail

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2

GPT2_TOKENS = 50257
GPT2_VOCAB_SIZE = 50304
"""GPT-2's vocabulary, rounded up to a multiple of 128; what shards get unless told otherwise."""

_SAMPLED_SHARDS = 4
_SAMPLED_TOKENS = 2**20
_MIB = 2**20

Shards = dict[Path, Tensor]
"""The tokens of every file, in the order of the stream."""


def shard_corpus(source: Path, files: Sequence[Path], vocab_size: int | None) -> Corpus:
    """Return the corpus of these shards, memory-mapped, in the order of their names.

    In a folder, shards with "val" in their name are validation; without one, and for a single file,
    validation is the last tenth of the last shard.

    Args:
        source: What the user named.
        files: The shards.
        vocab_size: None takes 50304. Held against the first million tokens of the first four
            shards here, and against every token when it is read.

    Raises:
        DataError: If a file is not a shard or is damaged, if its tokens do not fit vocab_size (for
            None: are not GPT-2's), or if a folder has validation shards only.
    """
    files = sorted(files, key=lambda file: file.name)
    shards = {file: map_shard(file) for file in files}
    train, validation = _split(source, shards)
    vocab_size = _vocabulary(shards, vocab_size)
    return Corpus(
        name=f"{source.resolve().name}: {len(files)} token shard{'s' * (len(files) > 1)}",
        train=Tokens(train, vocab_size, f"training split of {source}"),
        validation=Tokens(validation, vocab_size, f"validation split of {source}"),
        fingerprint=_fingerprint(files),
    )


def map_shard(file: Path) -> Tensor:
    """Map the tokens of one shard, uint16 [tokens].

    Raises:
        DataError: If the header or the size of the file is wrong.
    """
    size = file.stat().st_size
    if size < HEADER_BYTES:
        raise DataError(
            f"{file} holds {size} bytes, a token shard starts with a header of {HEADER_BYTES}; "
            "copy or download it again"
        )
    with file.open("rb") as opened:
        head = opened.read(12)
    magic, version, tokens = struct.unpack("<3i", head)
    if magic != MAGIC:
        raise DataError(f"{file} has magic number {magic}, expected {MAGIC}; {_hint(head)}")
    if version != VERSION:
        raise DataError(
            f"{file} has version {version}, expected {VERSION} (uint16 tokens); convert it"
        )
    _check_size(file, tokens, size - HEADER_BYTES)
    words = torch.from_file(
        str(file), shared=False, size=HEADER_BYTES // TOKEN_BYTES + tokens, dtype=torch.uint16
    )
    return words[HEADER_BYTES // TOKEN_BYTES :]


def _hint(head: bytes) -> str:
    """Return what a header with another magic number may be, and the fix."""
    if int.from_bytes(head[:4], "big") == MAGIC:
        return "its bytes are in big-endian order: write it again with little-endian numbers"
    if int.from_bytes(head[:4], "little") == 20240801:
        return "this is llm.c's format of Llama 3 with uint32 tokens: make GPT-2 shards instead"
    return (
        "shards are what llm.c and modded-nanogpt write; files without a header, such as "
        "nanoGPT's train.bin, have to be converted"
    )


def _check_size(file: Path, tokens: int, payload: int) -> None:
    """Raise DataError unless the file holds as many tokens as its header says."""
    if payload % TOKEN_BYTES:
        raise DataError(
            f"{file} has {payload} bytes after its header, an odd number, where every token takes "
            f"{TOKEN_BYTES}; copy or download it again"
        )
    found = payload // TOKEN_BYTES
    if found != tokens:
        what = "it was cut short" if found < tokens else "something was appended"
        raise DataError(
            f"{file}: the header says {tokens} tokens, the file holds {found}; {what}: copy or "
            "download it again"
        )
    if not tokens:
        raise DataError(f"{file} holds 0 tokens, expected at least one; remove or replace it")


def _split(source: Path, shards: Shards) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return training and validation pieces: by name in a folder, else by cutting the last."""
    held = {file for file in shards if "val" in file.name and source.is_dir()}
    if held:
        if len(held) == len(shards):
            raise DataError(
                f'{source} holds only validation shards ("val" in the name), {len(held)} of them; '
                "add training shards, or name one file to split it"
            )
        return (
            tuple(tokens for file, tokens in shards.items() if file not in held),
            tuple(tokens for file, tokens in shards.items() if file in held),
        )
    *whole, last = shards.values()
    head, tail = cut_tail(last)
    return (*whole, head), (tail,)


def _vocabulary(shards: Shards, vocab_size: int | None) -> int:
    """Return the vocabulary size, given or default, checked on a sample of tokens."""
    limit = GPT2_TOKENS if vocab_size is None else vocab_size
    for file, shard in islice(shards.items(), _SAMPLED_SHARDS):
        largest = int(shard[:_SAMPLED_TOKENS].int().max())
        if largest >= limit:
            raise DataError(
                f"{file} holds token {largest}, expected less than {limit}; give a vocab_size of "
                f"at least {largest + 1}"
            )
    return GPT2_VOCAB_SIZE if vocab_size is None else vocab_size


def _fingerprint(files: Sequence[Path]) -> str:
    """Return SHA-256 over name, size, first and last MiB of every file."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_MIB))
            opened.seek(max(0, size - _MIB))
            digest.update(opened.read(_MIB))
    return digest.hexdigest()
