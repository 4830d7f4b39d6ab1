"""Streams over several pieces, and batches that depend on nothing but their number."""

import pytest
import torch

from polarlight.lab.train.data import (
    Batches,
    Corpus,
    DataError,
    Tokens,
    cut_tail,
    validation_batches,
)


def stream(length: int, pieces: tuple[int, ...] = (), vocab_size: int = 65536) -> Tokens:
    """0, 1, 2, ... as uint16, cut into pieces of these sizes and a rest."""
    numbers = torch.arange(length, dtype=torch.int32).to(torch.uint16)
    sizes = (*pieces, length - sum(pieces))
    return Tokens(numbers.split(sizes), vocab_size, "training split of counting.bin")


def test_a_read_crosses_pieces_also_empty_and_tiny_ones():
    tokens = stream(20, pieces=(0, 5, 1, 0, 6))
    assert len(tokens) == 20
    for start in range(20):
        for stop in range(start + 1, 21):
            window = tokens.read(start, stop - start)
            assert window.dtype == torch.int64
            assert window.tolist() == list(range(start, stop))


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (16, 5), (3, 0), (20, 1)])
def test_a_read_outside_the_stream_is_an_error(start, length):
    with pytest.raises(IndexError, match=r"counting\.bin"):
        stream(20).read(start, length)


def test_a_read_is_a_copy_so_that_nothing_writes_into_a_file():
    tokens = stream(20)
    tokens.read(0, 5).zero_()
    assert tokens.read(0, 5).tolist() == [0, 1, 2, 3, 4]


def test_the_same_batch_comes_again_on_every_call_in_any_order():
    one = Batches(stream(5000), batch=4, context=8, seed=3)
    two = Batches(stream(5000, pieces=(7, 4000)), batch=4, context=8, seed=3)
    forward = [one(step)[0] for step in range(10)]
    backward = [two(step)[0] for step in reversed(range(10))]
    for a, b in zip(forward, reversed(backward), strict=True):
        assert torch.equal(a, b)


def test_batches_are_the_same_on_every_machine_and_in_every_version():
    # SHAKE-256 of "0/0/0", modulo 4992: resumed and compared runs rely on these numbers.
    assert Batches(stream(5000), batch=3, context=8, seed=0).offsets(0) == [868, 2303, 4910]


def test_step_micro_step_and_seed_each_change_the_batch():
    batches = Batches(stream(5000), batch=8, context=8, seed=0)
    other = Batches(stream(5000), batch=8, context=8, seed=1)
    offsets = [batches.offsets(1), batches.offsets(2), batches.offsets(1, 1), other.offsets(1)]
    offsets += [batches.offsets(11), batches.offsets(1, 11), batches.offsets(111)]
    assert len({tuple(o) for o in offsets}) == len(offsets)


def test_targets_are_the_inputs_shifted_by_one():
    inputs, targets = Batches(stream(5000), batch=4, context=8, seed=0)(17)
    assert inputs.shape == targets.shape == (4, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


def test_windows_start_everywhere_and_about_equally_often():
    batches = Batches(stream(18), batch=100, context=8, seed=0)
    starts = torch.tensor([batches.offsets(step) for step in range(100)]).flatten()
    counts = starts.bincount()
    assert len(counts) == 10  # 18 - 8: the last window's target is the last token
    assert (counts - 1000).abs().max() < 150  # 5 standard deviations of a fair count


def test_one_window_is_enough_and_one_token_less_is_not():
    inputs, targets = Batches(stream(9), batch=2, context=8, seed=0)(0)
    assert inputs[0].tolist() == list(range(8))
    assert targets[1].tolist() == list(range(1, 9))
    with pytest.raises(DataError, match=r"counting\.bin has 8 tokens, a context of 8 needs .* 9"):
        Batches(stream(8), batch=2, context=8, seed=0)


@pytest.mark.parametrize("bad", [{"batch": 0}, {"context": 0}])
def test_sizes_below_one_are_errors_that_name_them(bad):
    sizes = {"batch": 2, "context": 8} | bad
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be >= 1, got 0"):
        Batches(stream(100), **sizes, seed=0)
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be >= 1, got 0"):
        validation_batches(stream(100), **sizes, tokens_at_most=50)


def test_a_token_beyond_the_vocabulary_is_an_error_when_it_is_met():
    batches = Batches(stream(100, vocab_size=50), batch=64, context=8, seed=0)
    with pytest.raises(DataError, match=r"counting\.bin: token \d+ .* vocab_size = 50"):
        batches(0)


def test_validation_windows_are_fixed_full_and_do_not_overlap():
    pairs = list(validation_batches(stream(100), batch=3, context=8, tokens_at_most=80))
    assert [inputs.shape for inputs, _ in pairs] == [(3, 8)] * 3  # 10 windows, one left out
    assert torch.cat([inputs for inputs, _ in pairs]).flatten().tolist() == list(range(72))
    for inputs, targets in pairs:
        assert torch.equal(targets, inputs + 1)


def test_validation_ends_with_the_data_and_uses_its_last_token():
    pairs = list(validation_batches(stream(25), batch=3, context=8, tokens_at_most=10**9))
    assert pairs[-1][1][-1, -1] == 24
    assert sum(inputs.numel() for inputs, _ in pairs) == 24
    short = list(validation_batches(stream(24), batch=3, context=8, tokens_at_most=10**9))
    assert sum(inputs.numel() for inputs, _ in short) == 16  # the last target is missing


def test_fewer_validation_windows_than_a_batch_make_one_smaller_batch():
    pairs = list(validation_batches(stream(20), batch=64, context=8, tokens_at_most=10**9))
    assert [inputs.shape for inputs, _ in pairs] == [(2, 8)]


def test_validation_errors_come_at_once_and_not_with_the_first_batch():
    with pytest.raises(ValueError, match=r"tokens_at_most must be >= context = 8, .* got 7"):
        validation_batches(stream(100), batch=3, context=8, tokens_at_most=7)
    with pytest.raises(DataError, match="has 8 tokens"):
        validation_batches(stream(8), batch=3, context=8, tokens_at_most=8)


def test_a_corpus_needs_a_window_in_both_splits():
    corpus = Corpus("counting", stream(100), Tokens(stream(5).pieces, 65536, "the rest"), "")
    corpus.require(context=4)
    with pytest.raises(DataError, match="the rest has 5 tokens, a context of 5 needs at least 6"):
        corpus.require(context=5)


def test_the_tail_is_a_tenth():
    head, tail = cut_tail(torch.arange(105))
    assert (len(head), len(tail)) == (95, 10)
    assert torch.equal(torch.cat((head, tail)), torch.arange(105))
