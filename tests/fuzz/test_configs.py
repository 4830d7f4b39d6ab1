"""Folders of Hugging Face with any content: one clear error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarlight.lab.inspection.opening import INDICES, open_checkpoint
from polarlight.lab.inspection.source import UnreadableError
from tests.fuzz.test_bytes import FAST, damaged, json_values, outcome
from tests.routing.roles.golden import CONFIGS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "layer_types": None,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
strange = json_values | st.sampled_from(
    [-1, 0, 2**31, 2**63, 10**30, -(10**400), 1e308, "", "pipeline", ["pipeline"], [[]], {"a": {}}]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


def held_to_its_word(path):
    """A model's table, or a ValueError that names the file."""
    import polarlight
    from polarlight.integrations.transformers import explain_hf

    found, said = outcome(ValueError, lambda: explain_hf(path, polarlight.Muon).table())
    assert found or str(path) in said


@FAST
@given(
    changes=st.dictionaries(st.sampled_from(sorted(LLAMA)), strange, min_size=1, max_size=3),
    without=st.sets(st.sampled_from(sorted(LLAMA)), max_size=2),
)
def test_a_config_with_wrong_missing_and_huge_values(folder, changes, without):
    pytest.importorskip("transformers")
    path = folder / "config.json"
    config = {k: v for k, v in (LLAMA | changes).items() if k not in without}
    path.write_text(json.dumps(config))
    held_to_its_word(path)


@FAST
@given(data=damaged(json.dumps(LLAMA).encode()) | json_values.map(lambda x: json.dumps(x).encode()))
def test_a_config_with_damaged_text(folder, data):
    pytest.importorskip("transformers")
    path = folder / "config.json"
    path.write_bytes(data)
    held_to_its_word(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; at most 100,000"),
        ({"num_labels": 10**9}, "num_labels is"),
        ({"hidden_size": 10**30}, "hidden_size is"),
        ({"hidden_size": -16}, "makes no model of it"),
        ({"num_attention_heads": 0}, "makes no model of it"),
    ],
)
def test_sizes_that_would_build_for_hours_raise(tmp_path, change, said):
    pytest.importorskip("transformers")
    from polarlight.integrations.transformers import meta_model

    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | change))
    with pytest.raises(ValueError, match=said):
        meta_model(path)


def test_a_model_of_too_many_tensors_is_stopped(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from polarlight.integrations import transformers

    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert transformers.meta_model(path)
    monkeypatch.setattr(transformers, "_MOST_TENSORS", 5)
    with pytest.raises(ValueError, match="more than 5 tensors"):
        transformers.meta_model(path)


def test_an_architecture_that_is_no_model_is_passed_over(tmp_path):
    """`pipeline` is a function of transformers: a config must not choose what is called."""
    pytest.importorskip("transformers")
    from polarlight.integrations.transformers import meta_model

    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"architectures": ["pipeline", "Trainer"]}))
    assert type(meta_model(path)).__name__ == "LlamaForCausalLM"


def test_deep_nesting_is_no_traceback(tmp_path):
    pytest.importorskip("transformers")
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    held_to_its_word(path)
    (tmp_path / INDICES[0]).write_text("[" * 100_000)
    with pytest.raises(UnreadableError, match="no index of shards"):
        open_checkpoint(tmp_path)


places = st.sampled_from(["", ".", "..", "../x", "/", "a\0b", "a.safetensors"]) | json_values


@FAST
@given(
    content=json_values | st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(), places)})
)
def test_an_index_of_shards(folder, content):
    """Files outside its folder are none of its business."""
    path = folder / INDICES[0]
    path.write_text(json.dumps(content))
    found, said = outcome(UnreadableError, lambda: open_checkpoint(folder))
    assert said or found.weights == {}


HEADER = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
entries = st.fixed_dictionaries(
    {
        "dtype": st.just("F32") | strange,
        "shape": st.just([2, 3]) | st.lists(st.integers() | json_values, max_size=3),
        "data_offsets": st.just([0, 24]) | st.lists(st.integers() | json_values, max_size=3),
    }
)


@FAST
@given(header=st.dictionaries(st.text(max_size=4), entries | json_values, max_size=3) | json_values)
def test_a_safetensors_header(folder, header):
    path = folder / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    _, said = outcome(UnreadableError, lambda: read_all(path))
    assert said is None or str(path) in said


def read_all(path):
    return [entry.read() for entry in open_checkpoint(path).weights.values()]


def test_the_configs_that_are_shipped_pass_the_limits():
    from polarlight.integrations import transformers

    assert CONFIGS
    for path in CONFIGS:
        transformers._refuse_endless(json.loads(path.read_text()))
