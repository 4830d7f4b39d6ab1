"""Findings in a checkpoint with planted dead and doubled neurons."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import polarlight
from polarlight.lab.inspection.depth import by_depth, place_of
from polarlight.lab.inspection.measure import _lifts, inspect, stable_rank
from polarlight.lab.inspection.natural import natural
from polarlight.lab.inspection.opening import open_checkpoint
from polarlight.lab.inspection.page import summary, write_page
from tests.lab.inspection.files import model, sharded, trained
from tests.lab.report.reading import rows_of

UP = "model.layers.1.mlp.up_proj.weight"


def inspected(path):
    return list(inspect(open_checkpoint(path)))[-1][1]


@pytest.fixture
def found(tmp_path):
    return inspected(sharded(tmp_path / "hf", model(), ".safetensors"))


def test_dead_and_doubled_neurons_are_found_and_no_others(found):
    mlps = {mlp.name: mlp for mlp in found.mlps}
    sick = mlps.pop("model.layers.1.mlp")
    assert sick.neurons == 64
    assert sick.dead == [3, 5]  # 7 has a living up row
    assert sick.doubles == [(10, 20)]
    assert len(mlps) == 2
    assert not any(mlp.dead or mlp.doubles for mlp in mlps.values())


def test_every_hidden_matrix_is_measured(found):
    assert len(found.matrices) == 21
    assert found.parameters == model().parameter_count()
    up = next(m for m in found.matrices if m.name == UP)
    W = model().get_parameter(UP).detach()
    assert up.shape == (64, 16)
    assert up.rms == pytest.approx(float(W.square().mean().sqrt()))
    norms = W.norm(dim=1)
    assert up.neurons == pytest.approx(float(norms.std(unbiased=False) / norms.mean()))
    expected = W.norm() ** 2 / torch.linalg.matrix_norm(W, ord=2) ** 2
    assert up.stable_rank == pytest.approx(float(expected), rel=1e-4)
    assert up.starved is None


def test_columns_of_a_down_projection_are_its_neurons(found):
    down = next(m for m in found.matrices if m.name == "model.layers.1.mlp.down_proj.weight")
    norms = model().get_parameter(down.name).detach().norm(dim=0)
    assert down.neurons == pytest.approx(float(norms.std(unbiased=False) / norms.mean()), rel=1e-5)


def test_starved_rows_come_from_the_momentum(tmp_path):
    net = model()
    optimizer = trained(net)
    p = net.get_parameter(UP)
    with torch.no_grad():
        optimizer.state[p]["momentum_buffer"][:16] *= 1e-3  # a quarter
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    found = inspected(tmp_path / "x.pt")
    up = next(m for m in found.matrices if m.name == UP)
    assert up.starved["0.01"] >= 0.25
    square = next(m for m in found.matrices if "q_proj" in m.name)
    assert square.starved is None


def test_lifts_come_from_auroras_row_scale(tmp_path):
    net = model()
    optimizer = trained(net, polarlight.Aurora(net, lr=0.0, aux_lr=0.0))
    p = net.get_parameter(UP)
    scale = optimizer.state[p]["row_scale"]
    scale.fill_(1)
    scale[5], scale[6] = 4, 0  # a zero row has no scale
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    found = inspected(tmp_path / "x.pt")
    by_name = {m.name: m for m in found.matrices}
    assert by_name[UP].lift == pytest.approx(4)
    assert by_name["model.layers.1.self_attn.q_proj.weight"].lift is None
    page = write_page("x", found, [], tmp_path / "report")
    assert "Row scale that Aurora kept" in page.read_text()
    lines = rows_of(tmp_path / "report" / "matrices.csv")
    assert {row["name"]: row["lift"] for row in lines}[UP] == "4.0"


def test_row_scales_of_a_fused_projection_belong_to_its_halves():
    scale = torch.tensor([1.0, 1, 3, 2, 2, 2])
    assert _lifts(scale, [torch.zeros(3, 2), torch.zeros(3, 2)]) == [3, 1]
    assert _lifts(scale, [torch.zeros(4, 2)]) == [None]


def test_stacks_of_experts_and_fused_projections(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, intermediate_size=32, moe_intermediate_size=24,
        num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip
    net = transformers.Qwen3MoeForCausalLM(config)
    net.save_pretrained(tmp_path / "hf")
    found = inspected(tmp_path / "hf")
    table = by_depth(found.matrices, lambda m: m.neurons)
    assert list(table.depths) == [0, 1]
    assert any("experts" in kind for kind in table.kinds)
    assert all(x is not None for row in table.values for x in row)
    assert found.parameters == sum(p.numel() for p in net.parameters())


def test_layers_that_are_stored_the_other_way_round(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    net = transformers.GPT2LMHeadModel(config)
    fc = net.transformer.h[1].mlp.c_fc.weight  # (fan_in, fan_out): neurons are columns
    with torch.no_grad():
        fc[:, 5] *= 1e-3
        fc[:, 20] = 3 * fc[:, 10]
    net.save_pretrained(tmp_path / "hf")
    first, second = inspected(tmp_path / "hf").mlps
    assert (first.dead, first.doubles) == ([], [])
    assert (second.dead, second.doubles) == ([5], [(10, 20)])


@pytest.mark.parametrize("shape", [(1500, 1100), (1100, 1500), (2, 1200, 1100)])
def test_a_large_matrix_has_its_stable_rank_within_a_few_percent(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = W.square().sum(dim=(-2, -1)) / torch.linalg.matrix_norm(W, ord=2).square()
    # A random matrix has no gap below its largest singular value: the hardest case.
    assert ((stable_rank(W) / exact).sub(1).abs() < 0.03).all()


def test_zero_and_non_finite_weights_are_measured_too(tmp_path):
    net = model()
    with torch.no_grad():
        net.model.layers[0].mlp.up_proj.weight.zero_()
        net.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    save_file(net.state_dict(), tmp_path / "x.safetensors")
    found = inspected(tmp_path / "x.safetensors")
    assert write_page("x", found, [], tmp_path / "report").exists()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_matrix_that_is_not_finite_is_named_first_and_counted_nowhere(
    tmp_path, value, part, suffix
):
    net = model()
    name = f"model.layers.0.mlp.{part}.weight"
    with torch.no_grad():
        net.get_parameter(name)[0, 0] = value
    path = tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(net.state_dict(), path)
    found = inspected(path)
    assert found.nonfinite == [name]
    words = summary(found)
    assert words.startswith(
        f"1 of {found.tensors} tensors is not finite (NaN or Inf): {name}; it is left out of all "
        "numbers that follow, and so are the neurons of 1 MLP. "
    )
    assert "Of 128 neurons in 2 MLPs, 2 (" in words  # 3 and 5 of layer 1
    first = next(mlp for mlp in found.mlps if mlp.name == "model.layers.0.mlp")
    assert (first.finite, first.dead, first.doubles) == (False, [], [])
    report = next(m for m in found.matrices if m.name == name)
    assert (report.neurons, report.stable_rank, report.rms) == (None, None, None)
    text = write_page("x", found, [], tmp_path / "report").read_text()
    assert text.index("not finite (NaN or Inf)") < text.index("dead by their weights")
    lines = rows_of(tmp_path / "report" / "matrices.csv")
    assert {row["name"]: row["rms"] for row in lines}[name] == ""


def test_a_checkpoint_of_nan_alone_counts_no_neuron(tmp_path):
    state = {name: torch.full_like(x, torch.nan) for name, x in model().state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    found = inspected(tmp_path / "x.safetensors")
    words = summary(found)
    assert words.startswith(f"{found.tensors} of {found.tensors} tensors are not finite")
    assert "model.layers.{0-2}.input_layernorm.weight" in words  # folded
    assert " more; they are left out" in words
    assert "no neuron was counted" in words
    assert "are dead" not in words
    assert write_page("x", found, [], tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_table_or_vector_that_is_not_finite_is_named_too(tmp_path, name):
    state = model().state_dict()
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = -torch.inf
    torch.save(state, tmp_path / "x.pt")
    found = inspected(tmp_path / "x.pt")
    assert found.nonfinite == [name]
    assert all(m.rms is not None for m in found.matrices)
    assert "Of 192 neurons in 3 MLPs, 2 (" in summary(found)


def test_a_momentum_that_is_not_finite_shows_no_starved_neurons(tmp_path):
    net = model()
    optimizer = trained(net)
    with torch.no_grad():
        optimizer.state[net.get_parameter(UP)]["momentum_buffer"][0, 0] = torch.nan
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    found = inspected(tmp_path / "x.pt")
    assert found.nonfinite == []
    assert found.nonfinite_state == [UP]
    assert next(m for m in found.matrices if m.name == UP).starved is None
    words = summary(found)
    assert words.startswith(f"The optimizer's state of 1 parameter is not finite: {UP}; ")


def test_layers_have_a_place_and_sort_by_number():
    assert place_of("model.layers.3.mlp.up_proj.weight") == (3, "mlp.up_proj")
    assert place_of("h.10.mlp.experts.7.w1.weight") == (10, "mlp.experts.*.w1")
    assert place_of("blocks.2.fused.weight[1]") == (2, "fused[1]")
    assert place_of("embed.weight") is None
    assert sorted(["a.10.b", "a.2.b"], key=natural) == ["a.2.b", "a.10.b"]


def test_the_page_has_the_findings_and_no_external_files(found, tmp_path):
    page = write_page("demo <1>", found, ["a note"], tmp_path / "report")
    text = page.read_text()
    assert "Of 192 neurons in 3 MLPs, 2 (1.04" in text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "demo &lt;1&gt;" in text
    assert "a note" in text
    assert "dead: 3, 5; doubled: 10 and 20" in text
    assert "http" not in text.replace("http-equiv", "").split("<body>")[1].split("data:image")[0]
    lines = (tmp_path / "report" / "neurons.csv").read_text().split()
    assert lines[1:] == [
        "model.layers.1.mlp,3,dead,",
        "model.layers.1.mlp,5,dead,",
        "model.layers.1.mlp,10,double,20",
    ]
    assert "21 hidden matrices; no MLP" in summary(replace(found, mlps=[]))


def test_a_model_without_layer_numbers_gets_a_page_without_heatmaps(tmp_path):
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    torch.save({f"mlp.{k}": v for k, v in net.state_dict().items()}, tmp_path / "x.pt")
    renamed = {
        "mlp.up_proj.weight": net[0].weight.detach(),
        "mlp.down_proj.weight": net[2].weight.detach(),
    }
    torch.save(renamed, tmp_path / "y.pt")
    page = write_page("y", inspected(tmp_path / "y.pt"), [], tmp_path / "report")
    assert "Of 16 neurons" in page.read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")


def test_classifiers_and_tables_are_no_hidden_matrices(tmp_path, found):
    extra = {"cls.species.weight": (4, 16), "cls.chain.weight": (2, 16)}
    extra |= {"model.query_embed.weight": (12, 16), "embed_positions.weight": (8, 16)}
    state = model().state_dict() | {name: torch.randn(shape) for name, shape in extra.items()}
    save_file(state, tmp_path / "with_classes.safetensors")
    names = {matrix.name for matrix in inspected(tmp_path / "with_classes.safetensors").matrices}
    assert names == {matrix.name for matrix in found.matrices}
