"""Token shards: read as one stream, mapped, and damaged in every way that downloads are."""

import numpy as np
import pytest
import torch

from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import Batches, DataError


def write_shard(path, tokens, *, magic=20240520, version=1, count=None, order="<"):
    """A shard with this header; `count` is what the header claims."""
    header = np.zeros(256, dtype=f"{order}i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype=f"{order}u2").tobytes())
    return path


def test_shards_are_one_stream_in_the_order_of_their_names(tmp_path):
    write_shard(tmp_path / "news_train_000002.bin", range(300, 500))
    write_shard(tmp_path / "news_train_000001.bin", range(300))
    write_shard(tmp_path / "news_val_000000.bin", range(1000, 1050))
    corpus = load_corpus(tmp_path)
    assert corpus.train.read(0, 500).tolist() == list(range(500))
    assert corpus.validation.read(0, 50).tolist() == list(range(1000, 1050))
    assert corpus.vocab_size == 50304
    assert len(corpus.train.pieces) == 2
    assert corpus.train.pieces[0].dtype == torch.uint16


def test_batches_cross_the_border_between_shards(tmp_path):
    write_shard(tmp_path / "train_1.bin", range(10))
    write_shard(tmp_path / "train_2.bin", range(10, 20))
    write_shard(tmp_path / "val.bin", range(20))
    inputs, targets = Batches(load_corpus(tmp_path).train, batch=16, context=15, seed=0)(0)
    assert torch.equal(targets, inputs + 1)


def test_the_tail_of_the_last_shard_is_validation_without_a_val_shard(tmp_path):
    write_shard(tmp_path / "a.bin", range(100))
    write_shard(tmp_path / "b.bin", range(100, 200))
    corpus = load_corpus(tmp_path)
    assert corpus.train.read(0, 190).tolist() == list(range(190))
    assert corpus.validation.read(0, 10).tolist() == list(range(190, 200))


def test_a_single_shard_of_any_name_is_split(tmp_path):
    corpus = load_corpus(write_shard(tmp_path / "news_val_000000.bin", range(100)))
    assert (len(corpus.train), len(corpus.validation)) == (90, 10)


def test_tokens_above_32767_are_not_negative(tmp_path):
    corpus = load_corpus(write_shard(tmp_path / "a.bin", [50000] * 20))
    assert corpus.train.read(0, 3).tolist() == [50000] * 3


def test_the_fingerprint_sees_names_sizes_heads_and_tails_but_not_the_folder(tmp_path):
    def fingerprint(folder, name="a.bin", tokens=range(100)):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / name, tokens)
        return load_corpus(tmp_path / folder).fingerprint

    first = fingerprint("one")
    assert len(first) == 64
    assert fingerprint("two") == first
    assert fingerprint("three", name="b.bin") != first
    assert fingerprint("four", tokens=range(101)) != first
    assert fingerprint("five", tokens=[*range(99), 7]) != first


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"magic": 20240326}, r"magic number 20240326, expected 20240520.*nanoGPT's train.bin"),
        ({"magic": 20240801, "version": 7}, "magic number 20240801.*Llama 3 with uint32"),
        ({"order": ">"}, "magic number .* big-endian"),
        ({"version": 2}, "version 2, expected 1"),
        ({"count": 150}, "header says 150 tokens, the file holds 100; it was cut short"),
        ({"count": 50}, "header says 50 tokens, the file holds 100; something was appended"),
        ({"tokens": []}, "holds 0 tokens, expected at least one"),
        ({"tokens": [1, 50257]}, "holds token 50257, expected less than 50257.* at least 50258"),
    ],
)
def test_a_bad_shard_is_an_error_that_names_it_and_both_values(tmp_path, damage, message):
    write_shard(tmp_path / "broken.bin", **({"tokens": range(100)} | damage))
    with pytest.raises(DataError, match=rf"broken\.bin.*{message}"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("size", [0, 11, 1023])
def test_a_shard_shorter_than_its_header_is_an_error(tmp_path, size):
    (tmp_path / "short.bin").write_bytes(b"\0" * size)
    with pytest.raises(DataError, match=rf"short\.bin holds {size} bytes.* header of 1024"):
        load_corpus(tmp_path / "short.bin")


def test_an_odd_trailing_byte_is_an_error(tmp_path):
    shard = write_shard(tmp_path / "odd.bin", range(100))
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"odd\.bin has 201 bytes after its header, an odd number"):
        load_corpus(shard)


def test_a_given_vocabulary_is_held_against_the_tokens(tmp_path):
    shard = write_shard(tmp_path / "a.bin", [0, 59999, 1] * 20)
    assert load_corpus(shard, vocab_size=60000).vocab_size == 60000
    with pytest.raises(DataError, match="token 59999, expected less than 59999"):
        load_corpus(shard, vocab_size=59999)


def test_a_large_token_beyond_the_sample_is_met_in_a_batch(tmp_path):
    for i in range(6):
        write_shard(tmp_path / f"train_{i}.bin", [60000 if i == 5 else 0] * 50)
    corpus = load_corpus(tmp_path)
    assert corpus.vocab_size == 50304
    with pytest.raises(DataError, match=r"token 60000 .* vocab_size = 50304"):
        corpus.train.read(200, 60)


def test_a_folder_of_validation_shards_alone_is_an_error(tmp_path):
    write_shard(tmp_path / "news_val_000000.bin", range(100))
    with pytest.raises(DataError, match=r"only validation shards.*add training shards"):
        load_corpus(tmp_path)
