"""Files and texts from anywhere: whatever they hold, the error is one that says so."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polarlight.lab.inspection.opening import open_checkpoint
from polarlight.lab.inspection.source import UnreadableError
from polarlight.lab.train import checkpoint, durable, history
from polarlight.lab.train.checkpoint import CheckpointError
from polarlight.lab.train.corpus import load_corpus
from polarlight.lab.train.data import DataError
from polarlight.lab.train.history import HistoryError
from polarlight.lab.train.shards import HEADER_BYTES, MAGIC, map_shard
from polarlight.routing import view_from_json
from tests.fuzz.test_gradients import EXAMPLES, FAST

CPU = torch.device("cpu")
FAST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=FAST.derandomize,
    suppress_health_check=list(HealthCheck),
)


def damaged(whole):
    """Bytes near `whole`: flipped, cut, doubled, overwritten."""
    places = st.integers(0, len(whole) - 1)
    return st.one_of(
        st.builds(
            lambda i, b: whole[:i] + bytes([b]) + whole[i + 1 :], places, st.integers(0, 255)
        ),
        st.builds(lambda i: whole[:i], places),
        st.builds(lambda i, j: whole[: max(i, j)] + whole[min(i, j) :], places, places),
        st.builds(lambda i, x: whole[:i] + x + whole[i + len(x) :], places, st.binary(max_size=40)),
        st.binary(max_size=200),
    )


def outcome(kind, call):
    """Return the call's result, or the message of the one allowed error."""
    try:
        return call(), None
    except kind as error:
        return None, str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bytes")


def saved(folder, seal):
    path = folder / "whole.pt"
    content = {
        "format": checkpoint.FORMAT,
        "version": 2 if seal else 1,
        "step": 3,
        "model": {"weight": torch.arange(12.0).view(3, 4)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    }
    (durable.replace_sealed if seal else durable.replace)(path, lambda f: torch.save(content, f))
    return path.read_bytes()


@FAST
@given(data=st.data(), seal=st.booleans())
def test_random_checkpoints_load_or_raise_checkpoint_errors(folder, data, seal):
    whole = saved(folder, seal)
    path = folder / "checkpoint.pt"
    found = data.draw(damaged(whole))
    path.write_bytes(found)
    content, said = outcome(CheckpointError, lambda: checkpoint.load(path, CPU))
    if said is not None:
        assert str(path) in said
    else:
        assert content["version"] == checkpoint.VERSION
        assert found == whole or not seal  # version 1 has nothing to tell damage by


def torch_file(folder):
    path = folder / "model.pt"
    weight = torch.arange(12.0).view(3, 4)
    state = {"state": {0: {"momentum_buffer": weight}}, "param_groups": [{"params": [0]}]}
    torch.save({"model": {"weight": weight}, "optimizer": state}, path)
    return path.read_bytes()


@FAST
@given(data=st.data(), suffix=st.sampled_from([".pt", ".bin"]))
def test_random_files_of_torch_save_load_or_are_named(folder, data, suffix):
    """As `polarlight inspect` and `convert` read them; the pickle inside is hit often enough."""
    whole = torch_file(folder)
    start = whole.index(b"data.pkl") + len(b"data.pkl")
    path = folder / f"damaged{suffix}"
    inside = st.tuples(st.integers(start, start + 400), st.integers(0, 255)).map(
        lambda hit: whole[: hit[0]] + bytes([hit[1]]) + whole[hit[0] + 1 :]
    )
    path.write_bytes(data.draw(damaged(whole) | inside))
    found, said = outcome(UnreadableError, lambda: open_checkpoint(path))
    if said is not None:
        assert str(path) in said
    else:
        assert all(entry.read().shape == entry.shape for entry in found.weights.values())
    pytest.importorskip("typer")
    from polarlight.lab.commands import converting

    _, said = outcome(ValueError, lambda: converting._load(path))
    assert said is None or str(path) in said


places = st.integers(0, 3) | st.text(max_size=4)
parts = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.just(torch.ones(2)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(places, inner, max_size=3),
    max_leaves=8,
)
buffers = st.dictionaries(st.sampled_from(["momentum_buffer", "exp_avg", "row_scale"]), parts)
state_dicts = st.fixed_dictionaries(
    {
        "state": st.dictionaries(places, buffers | parts, max_size=3) | parts,
        "param_groups": st.lists(
            st.dictionaries(st.sampled_from(["params", "param_names", "lr"]), parts) | parts,
            max_size=2,
        )
        | parts,
    }
)


@FAST
@given(optimizer=state_dicts | parts, weights=st.dictionaries(places, parts, max_size=2))
def test_optimizer_states_of_any_form_are_read(folder, optimizer, weights):
    """Whole files that say strange things."""
    path = folder / "strange.pt"
    torch.save({"model": {"w": torch.ones(2), **weights}, "optimizer": optimizer}, path)
    source = open_checkpoint(path)
    assert "w" in source.weights
    assert source.momenta.keys() <= source.weights.keys()


HEADER = struct.pack("<3i", MAGIC, 1, 100).ljust(HEADER_BYTES, b"\0")
SHARD = HEADER + torch.arange(100).to(torch.uint16).numpy().tobytes()


@FAST
@given(data=damaged(SHARD))
def test_random_token_shards_load_or_raise_data_errors(folder, data):
    path = folder / "tokens.bin"
    path.write_bytes(data)
    tokens, said = outcome(DataError, lambda: map_shard(path))
    if said is not None:
        assert str(path) in said
    else:
        assert tokens.numel() == (len(data) - HEADER_BYTES) // 2
        assert tokens.int().max() < 2**16


@FAST
@given(data=damaged(SHARD), suffix=st.sampled_from([".bin", ".txt"]))
def test_random_corpora_load_or_raise_data_errors(folder, data, suffix):
    path = folder / f"corpus{suffix}"
    path.write_bytes(data)
    corpus, said = outcome(DataError, lambda: load_corpus(path))
    if said is not None:
        assert path.name in said
    else:
        assert len(corpus.train) + len(corpus.validation) > 0


RECORDS = b"".join(
    json.dumps({"kind": "step", "step": i, "loss": 1.5, "time": {}}).encode() + b"\n"
    for i in range(5)
)


@FAST
@given(data=damaged(RECORDS))
def test_random_records_load_or_raise_history_errors(folder, data):
    path = folder / "metrics.jsonl"
    path.write_bytes(data)
    records, said = outcome(HistoryError, lambda: history.read_records(path))
    if said is not None:
        assert str(path) in said
    else:
        assert all(isinstance(r["step"], int) for r in records)
        history.truncate_after(path, 2)
        assert all(r["step"] <= 2 for r in history.read_records(path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
VIEW_NAMES = [
    "Whole",
    "Heads",
    "RowBlocks",
    "Interleaved",
    "Slices",
    "Transposed",
    "Flattened",
    "Taps",
]
FIELDS = ["view", "heads", "count", "dim", "sizes", "rows", "inner", "parts", "kernel", "then"]


@FAST
@given(
    data=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), json_values, max_size=4),
    name=st.sampled_from(VIEW_NAMES) | json_values,
)
def test_random_views_parse_or_raise_value_errors(data, name):
    """Views come out of JSON files: a wrong one is a ValueError, whatever is wrong."""
    view, said = outcome(ValueError, lambda: view_from_json(data | {"view": name}))
    assert said or type(view).__name__ == name


@FAST
@given(text=st.text(max_size=30), name=st.sampled_from(["width", "steps", "mlp", "compile", "x"]))
def test_random_settings_parse_or_raise_value_errors(text, name):
    pytest.importorskip("typer")
    from polarlight.lab.commands import options

    for call in (
        lambda: options.plan("quick", [f"{name}={text}"], {}),
        lambda: options.plan(text, [], {}),
        lambda: options.plan("quick", [text], {}),
        lambda: options.sweep([f"lr={text}"]),
        lambda: options.sweep([text]),
        lambda: options.optimizers(text),
        lambda: options.architecture(text),
    ):
        result, said = outcome(ValueError, call)
        assert result is not None or said
