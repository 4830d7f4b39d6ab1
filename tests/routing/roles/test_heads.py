"""Output layers of models that are parts of others, under wrappers, and beside other heads."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import polarlight
from polarlight import Role
from polarlight.routing import infer_roles
from polarlight.routing.roles import MATRIX_ROLES
from polarlight.routing.roles.names import block_and_half
from polarlight.routing.roles.wrappers import plain_name
from tests.routing.roles.blocks import block, found, linear, raw


class LM(nn.Module):
    """A language model; its output layer is called what the caller says."""

    def __init__(self, head="lm_head", vocabulary=96, width=32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            [block(up_proj=linear(64, width), down_proj=linear(width, 64)) for _ in range(2)]
        )
        self.add_module(head, nn.Linear(width, vocabulary, bias=False))


def heads(source):
    return [a.name for a in infer_roles(source) if a.role is Role.HEAD]


def policy_and_value(head):
    return block(policy=nn.ModuleDict({"model": LM(head)}), value=nn.Linear(32, 1))


LARGER = {
    "a policy beside a value": (policy_and_value, ["policy.model.{}.weight"]),
    "a value registered first": (
        lambda head: block(value=nn.Linear(32, 1), policy=block(model=LM(head))),
        ["policy.model.{}.weight"],
    ),
    "a student and its teacher": (
        lambda head: block(teacher=LM(head, 96, 48), student=LM(head)),
        ["teacher.{}.weight", "student.{}.weight"],
    ),
    "an ensemble": (
        lambda head: block(members=nn.ModuleList([LM(head), LM(head)])),
        ["members.0.{}.weight", "members.1.{}.weight"],
    ),
    "a value inside of the model": (
        lambda head: block(lm=with_value(LM(head))),
        ["lm.{}.weight"],
    ),
}


def with_value(model):
    model.value = nn.Linear(32, 1)
    return model


@pytest.mark.parametrize("head", ["lm_head", "to_tokens"])
@pytest.mark.parametrize(("make", "expected"), LARGER.values(), ids=LARGER)
def test_the_head_of_a_model_inside_another_is_a_head(make, expected, head):
    """By the vocabulary of an embedding in the same part, whatever the layer is called."""
    model = make(head)
    assert heads(model) == [name.format(head) for name in expected]
    optimizer = polarlight.Muon(model)
    rules = {n: g["rule"].name for g in optimizer.param_groups for n in g["param_names"]}
    assert {rules[name] for name in heads(model)} == {"adamw"}
    assert {rule for name, rule in rules.items() if "_proj" in name} == {"muon"}


@pytest.mark.parametrize("head", ["lm_head", "to_tokens"])
def test_the_vocabulary_of_a_config_counts_for_its_own_model(head):
    class Configured(LM):
        def __init__(self):
            super().__init__(head)
            self.embed = nn.Conv1d(32, 32, 1)  # no table says how many tokens there are
            self.config = block(vocab_size=96)
            self.layers[0].config = self.config

    model = block(parts=nn.ModuleList([Configured()]), value=nn.Linear(32, 1))
    assert heads(model) == [f"parts.0.{head}.weight"]


PREFIXES = [
    "base_model.model.",
    "model.language_model.",
    "module._orig_mod.policy.model.",
    "members.0.",
    "_fsdp_wrapped_module.student.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("head", ["lm_head", "output"])
def test_a_head_is_found_by_name_behind_any_prefix(prefix, head):
    named = [(prefix + name, p) for name, p in LM(head).named_parameters()]
    named.append(("value.weight", nn.Parameter(torch.zeros(4, 32))))
    assert heads(named) == [f"{prefix}{head}.weight"]


def test_a_head_is_found_by_the_rows_of_the_embedding_in_its_part():
    student, teacher = LM("to_tokens"), LM("to_tokens", vocabulary=80)
    named = [("student." + n, p) for n, p in student.named_parameters()]
    named += [("teacher." + n, p) for n, p in teacher.named_parameters()]
    assert heads(named) == ["student.to_tokens.weight", "teacher.to_tokens.weight"]


def test_a_matrix_with_an_embeddings_rows_is_not_always_a_head():
    """Position and type tables do not count, nor layers that others read or of another model."""
    model = block(
        other=linear(96, 16),
        tokens=block(embed=nn.Embedding(96, 32), head=linear(96, 32)),
        wpe=nn.Embedding(64, 32),
        token_type_embeddings=nn.Embedding(32, 32),
        after=linear(64, 32),
        expand=block(embed=nn.Embedding(256, 32), first=linear(256, 32), second=linear(32, 256)),
        attention=block(relative_attention_bias=nn.Embedding(32, 4), o_proj=linear(32, 32)),
    )
    assert heads(model) == ["tokens.head.weight"]


def test_a_square_head_beside_another_is_one():
    model = block(student=with_value(LM(vocabulary=32)), teacher=LM("to_tokens"))
    assert heads(model) == ["student.lm_head.weight", "teacher.to_tokens.weight"]
    assert heads(block(output=linear(32, 32), lm=LM())) == ["lm.lm_head.weight"]


def test_every_entry_of_a_list_of_heads_is_one():
    model = block(
        lm=LM(),
        medusa_heads=nn.ModuleList([nn.Sequential(linear(32, 32), linear(96, 32)) for _ in "ab"]),
        tasks=block(heads=nn.ModuleList([linear(k, 32) for k in (2, 5)])),
    )
    expected = ["lm.lm_head.weight", "medusa_heads.0.1.weight", "medusa_heads.1.1.weight"]
    expected += ["tasks.heads.0.weight", "tasks.heads.1.weight"]
    assert heads(model) == expected
    assert heads(model.named_parameters()) == expected


INSIDE = ["layers.0.attention.output", "layers.0.output.dense", "mlp.output", "attn.score"]


@pytest.mark.parametrize("path", INSIDE)
def test_words_for_heads_mean_none_inside_of_layers(path):
    model = inner = block(embed=nn.Embedding(96, 32))
    *outer, last = path.split(".")
    for word in outer:
        inner.add_module(word, block())
        inner = inner.get_submodule(word)
    inner.add_module(last, linear(32, 24))
    assert heads(model) == []


AUXILIARY = {
    "aux_classifier": ["aux_classifier.4.weight", "classifier.4.weight"],
    "AuxLogits": ["AuxLogits.4.weight", "classifier.4.weight"],
    "aux1": ["aux1.4.weight", "classifier.4.weight"],
    "auxiliary_head": ["auxiliary_head.4.weight", "classifier.4.weight"],
    "head_dist": ["classifier.4.weight", "head_dist.4.weight"],
}


@pytest.mark.parametrize("layer", [lambda m, n: nn.Linear(n, m), lambda m, n: nn.Conv2d(n, m, 1)])
@pytest.mark.parametrize(("name", "expected"), AUXILIARY.items())
def test_auxiliary_classifiers_are_heads_too(name, expected, layer):
    """The last layer is a head, earlier ones are not. FCN's and DeepLab's are kernels."""

    def classifier():
        parts = [layer(16, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(), layer(21, 16)]
        return nn.Sequential(*parts)

    model = block(**{name: classifier(), "classifier": classifier()})
    assert sorted(heads(model)) == expected
    assert sorted(heads(model.named_parameters())) == expected


def test_the_final_layer_of_a_network_inside_another_is_a_head():
    def resnet():
        return block(layer1=nn.Sequential(nn.Conv2d(3, 8, 3)), fc=linear(10, 8))

    assert heads(block(encoder=resnet(), predictor=linear(8, 10))) == ["encoder.fc.weight"]
    assert heads(block(mlp=block(fc=linear(16, 8)), out=linear(8, 16))) == []
    pooled = block(stem=nn.Conv2d(3, 8, 3), head=block(norm=nn.LayerNorm(8), fc=linear(10, 8)))
    assert heads(block(backbone=pooled)) == ["backbone.head.fc.weight"]


def twice(model):
    return block(first=model, second=block(inner=copy.deepcopy(model)))


WRAPPED = {
    "module": lambda m: block(module=m),
    "_orig_mod": lambda m: torch.compile(m, backend="eager"),
    "_forward_module": lambda m: block(_forward_module=m),
    "_fsdp_wrapped_module": lambda m: block(_fsdp_wrapped_module=m),
    "_checkpoint_wrapped_module": lambda m: block(_checkpoint_wrapped_module=m),
    "base_model.model": lambda m: block(base_model=block(model=m)),
    "all": lambda m: block(module=block(_orig_mod=block(base_model=block(model=m)))),
}


def signature(source):
    return [(a.role, a.part, a.view, a.heads, a.reason) for a in infer_roles(source)]


@pytest.mark.parametrize("make", [LM, lambda: twice(LM()), lambda: policy_and_value("to_tokens")])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_change_no_role_view_or_reason(wrap, make):
    """Neither around the model nor around each layer, whether modules or names are known."""
    torch.manual_seed(0)
    plain, wrapped = make(), wrap(make())
    assert signature(wrapped) == signature(plain)
    assert signature(wrapped.named_parameters()) == signature(plain.named_parameters())
    inside = make()
    for name, module in list(inside.named_modules()):
        if name.endswith(("_proj", "lm_head", "to_tokens")):
            parent, _, last = name.rpartition(".")
            inside.get_submodule(parent)._modules[last] = wrap(module)
    assert signature(inside) == signature(plain)


def test_a_real_wrapper_of_processes_changes_nothing(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = policy_and_value("lm_head")
        assert signature(DistributedDataParallel(model)) == signature(model)
    finally:
        torch.distributed.destroy_process_group()


class Saved(nn.Module):
    """A module in peft's names: the frozen original beside the copy that is trained."""

    def __init__(self, layer, adapter="default"):
        super().__init__()
        self.original_module = copy.deepcopy(layer).requires_grad_(False)
        self.modules_to_save = nn.ModuleDict({adapter: layer})


@pytest.mark.parametrize("adapter", ["default", "mine"])
def test_the_trained_copy_of_a_saved_head_is_a_head(adapter):
    model = block(base_model=block(model=LM()))
    inner = model.base_model.model
    inner.lm_head = Saved(inner.lm_head, adapter)
    roles = {name.split("base_model.model.")[1]: a.role for name, a in found(model).items()}
    assert roles[f"lm_head.modules_to_save.{adapter}.weight"] is Role.HEAD
    assert roles["lm_head.original_module.weight"] is Role.HEAD
    by_name = {a.name: a.role for a in infer_roles(model.named_parameters())}
    assert by_name == {name: a.role for name, a in found(model).items()}


def test_an_adapted_model_of_peft_has_the_roles_of_its_base():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["up_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(LM(), config)
    roles = {name: a.role for name, a in found(model).items()}
    assert roles["base_model.model.lm_head.modules_to_save.default.weight"] is Role.HEAD
    assert roles["base_model.model.embed.weight"] is Role.EMBEDDING
    assert roles["base_model.model.layers.0.down_proj.weight"] is Role.DOWN
    assert roles["base_model.model.layers.0.up_proj.base_layer.weight"] is Role.GATE_UP


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("target", "role", "reason"),
    [
        ("down_proj", Role.DOWN, "down of an MLP"),
        ("up_proj", Role.GATE_UP, "up of an MLP"),
        ("lm_head", Role.HEAD, ""),
    ],
)
def test_both_factors_of_lora_have_the_role_of_their_layer(target, role, reason, named):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(LM(), peft.LoraConfig(r=2, target_modules=[target]))
    source = model.named_parameters() if named else model
    factors = {a.name: a for a in infer_roles(source) if ".lora_" in a.name}
    assert {a.role for a in factors.values()} == {role}
    for name, a in factors.items():
        assert a.reason.startswith(f"{'A' if 'lora_A' in name else 'B'} of LoRA for: {reason}")
        assert len(a.view) == 1


def test_a_factor_beside_packed_weights_is_a_matrix_by_itself():
    """Of 4-bit weights nothing but their number of bytes is known."""
    layer = block(base_layer=block(weight=raw(512, 1)), lora_A=linear(2, 32), lora_B=linear(64, 2))
    roles = {a.name: a.role for a in infer_roles(block(mlp=block(up_proj=layer)))}
    assert roles["mlp.up_proj.lora_B.weight"] in MATRIX_ROLES


NAMES = {
    "model.mlp.up_proj.weight": "model.mlp.up_proj.weight",
    "module._orig_mod.mlp.up_proj.weight": "mlp.up_proj.weight",
    "base_model.model.mlp.up_proj.base_layer.weight": "mlp.up_proj.weight",
    "lm_head.modules_to_save.default.weight": "lm_head.weight",
    "mlp._fsdp_wrapped_module.up_proj.parametrizations.weight.original": "mlp.up_proj.weight",
    "mlp.up_proj.weight_orig": "mlp.up_proj.weight",
    "mlp.up_proj.parametrizations.weight.original0": "mlp.up_proj.weight_g",  # weight_norm's
    "mlp.up_proj.parametrizations.weight.original1": "mlp.up_proj.weight",  # magnitude, direction
    "mlp.up_proj.parametrizations.weight.original2": "mlp.up_proj.weight_original2",
    "base_model.mlp.weight": "base_model.mlp.weight",  # no adapted model: `model` does not follow
    "modules_to_save": "modules_to_save",
}


@pytest.mark.parametrize(("name", "plain"), NAMES.items())
def test_names_lose_the_words_of_wrappers_and_no_others(name, plain):
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    "name", [name for name, plain in NAMES.items() if plain.endswith("up_proj.weight")]
)
def test_gate_and_up_are_paired_under_wrappers(name):
    block, half = block_and_half(name, 0, 1)
    assert half == "up"
    assert block == plain_name(name).removesuffix(".up_proj.weight")


def tasks(**ends):
    """Two layers of width 32 and what stands beside them."""
    layers = [block(up_proj=linear(64, 32), down_proj=linear(32, 64)) for _ in range(2)]
    return block(embed=nn.Embedding(96, 32), layers=nn.ModuleList(layers), **ends)


PREDICTIONS = {"transform": block(dense=linear(32, 32)), "decoder": linear(96, 32)}
ANY_NAME = {
    "classes beside a language model's head": (  # AntiBERTy
        {
            "cls": block(
                predictions=block(**PREDICTIONS), species=linear(6, 32), chain=linear(2, 32)
            )
        },
        ["cls.predictions.decoder.weight", "cls.species.weight", "cls.chain.weight"],
    ),
    "a task's name": ({"toxicity": linear(5, 32)}, ["toxicity.weight"]),
    "tasks by name, two of them alike": (
        {"tasks": nn.ModuleDict({"topic": linear(8, 32), "mood": linear(8, 32)})},
        ["tasks.topic.weight", "tasks.mood.weight"],
    ),
    "a bias, which reads nothing": ({"stance": nn.Linear(32, 3)}, ["stance.weight"]),
}


@pytest.mark.parametrize("in_order", [list, sorted, lambda x: sorted(x, reverse=True)])
@pytest.mark.parametrize(("ends", "expected"), ANY_NAME.values(), ids=ANY_NAME)
def test_a_classifier_of_any_name_is_a_head_in_any_order(ends, expected, in_order):
    """Files of safetensors are sorted by name."""
    model = tasks(**ends)
    assert heads(model) == expected
    assert sorted(heads(in_order(list(model.named_parameters())))) == sorted(expected)


NO_OUTPUTS = {
    "a layer reads it": {"squeeze": linear(8, 32), "expand": linear(32, 8)},
    "a kernel reads it": {"squeeze": linear(8, 32), "conv": nn.Conv1d(8, 32, 3)},
    "a norm follows": {"squeeze": linear(8, 32), "norm": nn.LayerNorm(8)},
    "narrower, and not by 4": {"projection": linear(24, 32)},
    "square": {"pooler": block(dense=linear(32, 32))},
    "wider": {"fused": linear(80, 32)},
    "keys of an attention": {"attn": block(k_proj=linear(8, 32), o_proj=linear(32, 32))},
    "half of an MLP": {"mlp": block(up_proj=linear(8, 32))},
    "reads something else than the layers": {"side": linear(4, 24)},
}


@pytest.mark.parametrize("ends", NO_OUTPUTS.values(), ids=NO_OUTPUTS)
def test_a_matrix_beside_the_layers_is_no_head_where(ends):
    model = tasks(**ends)
    assert heads(model) == heads(model.named_parameters()) == []


def test_a_narrow_matrix_that_nothing_reads_inside_of_layers_is_no_head():
    model = tasks()
    model.layers[0].decay = linear(4, 32)
    assert heads(model) == heads(model.named_parameters()) == []


@pytest.mark.parametrize("name", ["position_embedding", "query_embed", "embed_positions"])
def test_a_table_is_known_by_the_end_of_its_name(name):
    model = tasks(decoder=block(**{name: nn.Embedding(12, 32)}))
    for source in (model, model.named_parameters()):
        roles = {a.name: a.role for a in infer_roles(source)}
        assert roles[f"decoder.{name}.weight"] is Role.EMBEDDING


def test_a_kernel_that_embeds_patches_is_no_table_by_its_name():
    model = tasks(vision=block(patch_embedding=nn.Conv2d(3, 32, 4, 4, bias=False)))
    roles = {a.name: a.role for a in infer_roles(model.named_parameters())}
    assert roles["vision.patch_embedding.weight"] is Role.CONV
