"""Views of fused, stacked, turned and strided parameters: the meaning counts, not the storage."""

import pytest
import torch
from torch import nn

import polarlight
from polarlight import Role
from polarlight.routing import infer_roles
from polarlight.routing.roles import Part
from polarlight.view import Flattened, Heads, Interleaved, RowBlocks, Slices, Transposed, Whole
from tests.routing.roles.blocks import Attention, Experts, TurnedLinear, block, found, linear, raw

STORED = [
    # E, 2 I, H and E, H, I; then both turned; the shapes alone tell, also where 2 I = H.
    (Experts((3, 32, 8), (3, 8, 16)), RowBlocks((16, 16)), Whole()),
    (Experts((3, 8, 32), (3, 16, 8)), Transposed(RowBlocks((16, 16))), Transposed()),
    (Experts((3, 8, 8), (3, 8, 4)), RowBlocks((4, 4)), Whole()),
    (Experts((3, 8, 8), (3, 4, 8)), Transposed(RowBlocks((4, 4))), Transposed()),
    (
        Experts((3, 8, 32), (3, 16, 8), is_transposed=True, is_concatenated=False),
        Transposed(Interleaved(2)),
        Transposed(),
    ),
]


@pytest.mark.parametrize(("experts", "up", "down"), STORED, ids=range(len(STORED)))
def test_stacked_experts_are_single_matrices_in_either_layout(experts, up, down):
    """Experts are neither rows of one matrix nor a kernel, and gate and up are two."""
    views = found(block(experts=experts))
    assert views["experts.gate_up_proj"].view == up
    assert views["experts.down_proj"].view == down
    assert views["experts.down_proj"].part is Part.DOWN


def test_the_scale_of_turned_experts_is_that_of_the_map():
    """Stored (E, in, out), a factor sqrt(out / in) from stored rows and columns is inverted."""
    turned = polarlight.Muon(block(experts=Experts((3, 8, 64), (3, 32, 8))), lr=1.0)
    plain = polarlight.Muon(block(experts=Experts((3, 64, 8), (3, 8, 32))), lr=1.0)
    for optimizer in (turned, plain):
        up, down = polarlight.explain(optimizer).rows
        assert [piece.lr for piece in up.pieces] == [2.0, 2.0]  # sqrt(32 / 8), gate and up apart
        assert [piece.lr for piece in down.pieces] == [1.0]


def test_experts_on_top_of_each_other_are_taken_apart():
    """DBRX stacks them along the rows of one matrix, down turned."""
    experts = block(w1=raw(48, 8), v1=raw(48, 8), w2=raw(48, 8))
    experts.num_experts = 3
    views = {name: a.view for name, a in found(block(experts=experts)).items()}
    assert views["experts.w1"] == views["experts.v1"] == Heads(3)
    assert views["experts.w2"] == Heads(3, inner=Transposed())


def test_an_experts_own_layers_keep_their_orientation():
    model = block(experts=nn.ModuleList([block(up=TurnedLinear(8, 32), w2=raw(8, 32))]))
    views = {name: (a.role, a.view) for name, a in found(model).items()}
    assert views["experts.0.up.weight"] == (Role.EXPERT, Transposed())
    assert views["experts.0.w2"] == (Role.EXPERT, Whole())


def test_fused_gate_and_up_are_two_matrices():
    model = block(mlp=block(gate_up_proj=linear(32, 8), down_proj=linear(8, 16)))
    fused = found(model)["mlp.gate_up_proj.weight"]
    assert (fused.role, fused.view) == (Role.GATE_UP, RowBlocks((16, 16)))
    wide = block(mlp=block(wi=linear(32, 8), wo=linear(8, 16)))
    assert found(wide)["mlp.wi.weight"].part is Part.GATE_UP
    plain = block(mlp=block(wi=linear(16, 8), wo=linear(8, 16)))
    assert found(plain)["mlp.wi.weight"].view == Whole()


SLICED = {
    "an MLP": (block(feed_forward=block(w13=raw(16, 2, 8), w2=linear(8, 16))), Role.GATE_UP),
    "its layer": (block(feed_forward=block(w13=block(weight=raw(16, 2, 8)))), Role.GATE_UP),
    "another name": (block(mlp=block(gate_up_proj=raw(16, 2, 8))), Role.GATE_UP),
    "experts": (block(experts=block(w13=raw(4, 16, 2, 8), w2=raw(4, 8, 16))), Role.EXPERT),
}


@pytest.mark.parametrize("how", ["modules", "names"])
@pytest.mark.parametrize(("model", "role"), SLICED.values(), ids=SLICED)
def test_gate_and_up_in_slices_of_their_own_are_two_matrices(model, role, how):
    """torchtitan's w13 [hidden, 2, dim], and [E, hidden, 2, dim] of stacked experts."""
    assignment = infer_roles(model if how == "modules" else model.named_parameters())[0]
    assert (assignment.role, assignment.part) == (role, Part.GATE_UP)
    assert assignment.view == Slices(2)
    optimizer = polarlight.Muon(model, lr=1.0)
    row = polarlight.explain(optimizer).rows[0]
    assert [piece.shape[-2:] for piece in row.pieces] == [(16, 8)] * 2
    assert [piece.lr for piece in row.pieces] == [2**0.5] * 2


def test_a_raw_down_projection_beside_slices_is_one():
    model = block(feed_forward=block(w13=raw(16, 2, 8), w2=raw(8, 16)))
    down = found(model)["feed_forward.w2"]
    assert (down.role, down.part, down.view) == (Role.DOWN, Part.DOWN, Whole())


def test_slices_step_as_gate_and_up_apart():
    torch.manual_seed(0)
    fused = block(feed_forward=block(w13=raw(16, 2, 8)))
    apart = block(mlp=block(gate_proj=linear(16, 8), up_proj=linear(16, 8)))
    both = polarlight.Aurora(fused), polarlight.Aurora(apart)
    w13, (gate, up) = fused.feed_forward.w13, apart.parameters()
    with torch.no_grad():
        gate.copy_(w13[:, 0])
        up.copy_(w13[:, 1])
    for _ in range(3):
        w13.grad = torch.randn_like(w13)
        gate.grad, up.grad = w13.grad[:, 0].clone(), w13.grad[:, 1].clone()
        for optimizer in both:
            optimizer.step()
    torch.testing.assert_close(w13.detach(), torch.stack((gate, up), dim=1), rtol=0, atol=1e-6)


FUSED = [
    # Grouped queries: 4 heads of 6, 2 key heads; blocks are unequal.
    (
        "qkv_proj",
        48,
        RowBlocks((24, 12, 12)),
        RowBlocks((24, 12, 12), (Heads(4), Heads(2), Heads(2))),
    ),
    ("c_attn", 24, RowBlocks((12, 12)), RowBlocks((12, 12), (Heads(2), Heads(2)))),
    (
        "query_key_value",
        48,
        Heads(2, inner=RowBlocks((12, 6, 6))),
        Heads(2, inner=RowBlocks((12, 6, 6), (Heads(2), Whole(), Whole()))),
    ),
    # By that name q, then k, then v, unless the module counts queries per key head (torchtitan).
    (
        "wqkv",
        48,
        RowBlocks((24, 12, 12)),
        RowBlocks((24, 12, 12), (Heads(4), Heads(2), Heads(2))),
    ),
    # Query and output gate of each head in turn.
    ("q_proj", 48, Heads(4, inner=RowBlocks((6, 6))), Heads(4, inner=RowBlocks((6, 6)))),
    ("q_proj", 24, Whole(), Heads(4)),
    ("k_proj", 12, Whole(), Heads(2)),
    # What does not add up is one matrix, and its heads are unknown.
    ("qkv_proj", 50, Whole(), None),
    ("k_proj", 18, Whole(), None),
]


@pytest.mark.parametrize(("name", "rows", "view", "heads"), FUSED)
def test_fused_projections_come_apart_where_the_numbers_agree(name, rows, view, heads):
    model = block(self_attn=Attention(**{name: linear(rows, 8)}))
    (assignment,) = infer_roles(model)
    assert assignment.role is Role.ATTENTION
    assert (assignment.view, assignment.heads) == (view, heads)


def test_a_module_that_counts_queries_per_key_head_has_them_in_turn():
    fused = block(wqkv=linear(48, 8))
    fused.heads_per_kv, fused.head_dim = 2, 6
    found_ = found(block(attention=Attention(qkv_linear=fused)))
    rows = RowBlocks((12, 6, 6))
    assert found_["attention.qkv_linear.wqkv.weight"].view == Heads(2, inner=rows)
    fused.head_dim = 5  # does not add up
    found_ = found(block(attention=Attention(qkv_linear=fused)))
    assert found_["attention.qkv_linear.wqkv.weight"].view != Heads(2, inner=rows)


def test_heads_of_the_output_projection_are_columns():
    model = block(self_attn=Attention(o_proj=linear(8, 24)))
    assert found(model)["self_attn.o_proj.weight"].heads == Heads(4, dim=-1)


def test_kernels_have_views_and_depthwise_ones_a_reason():
    model = block(
        plain=nn.Conv2d(4, 6, 3, bias=False),
        grouped=nn.Conv1d(4, 6, 3, groups=2, bias=False),
        depthwise=nn.Conv1d(4, 4, 3, groups=4, bias=False),
        turned=nn.ConvTranspose1d(4, 6, 3, bias=False),
    )
    views = {name: (a.part, a.view) for name, a in found(model).items()}
    assert views == {
        "plain.weight": (Part.NONE, Flattened((3, 3))),
        "grouped.weight": (Part.NONE, Flattened((3,), Heads(2))),
        "depthwise.weight": (Part.DEPTHWISE, Flattened((3,), Heads(4))),
        "turned.weight": (Part.NONE, Flattened((3,), Transposed())),
    }
    for name, a in found(model).items():
        assert a.view.shapes(a.parameter.shape), name


def test_kernels_of_equal_shape_are_not_mixed():
    """One library flattens a stack of kernels together with its batch dimension."""
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)

    def stepped(kernels, gradients):
        parameters = [nn.Parameter(kernel.clone()) for kernel in kernels]
        view, rule = Flattened((2, 2)), polarlight.rules.muon(polar=polarlight.linalg.ExactPolar())
        optimizer = polarlight.SpectralOptimizer(parameters, rule=rule, view=view)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        return [p.detach() for p in parameters]

    together = stepped(start, gradients)
    apart = [stepped(start[i : i + 1], gradients[i : i + 1])[0] for i in range(2)]
    torch.testing.assert_close(together, apart)


def test_gates_of_recurrent_layers_are_matrices_of_their_own():
    views = {a.name: a.view for a in infer_roles(nn.LSTM(4, 5)) if a.parameter.ndim == 2}
    assert set(views.values()) == {RowBlocks((5, 5, 5, 5))}
    assert infer_roles(nn.RNN(4, 5))[0].view == Whole()


def test_the_features_of_a_foreign_linear_layer_give_its_orientation():
    assert found(block(up=TurnedLinear(8, 32)))["up.weight"].view == Transposed()
    assert found(block(up=block(weight=raw(8, 32))))["up.weight"].role is Role.VECTOR


def test_names_and_shapes_distinguish_gpt2_from_its_transpose():
    names = {
        "h.0.attn.c_attn.weight": (8, 24),
        "h.0.mlp.c_fc.weight": (8, 32),
        "h.0.mlp.c_proj.weight": (32, 8),
    }
    turned = [("wte.weight", raw(20, 8)), *((name, raw(*s)) for name, s in names.items())]
    plain = [("wte.weight", raw(20, 8)), *((n, raw(*s[::-1])) for n, s in names.items())]
    views = [a.view for a in infer_roles(plain)[1:]]
    assert views == [RowBlocks((8, 8, 8)), Whole(), Whole()]
    assert [a.view for a in infer_roles(turned)[1:]] == [Transposed(view) for view in views]


COMPOSED = [
    (RowBlocks((8, 4, 4), (Heads(2), Whole(), Heads(2))), (16, 6)),
    (Heads(2, inner=RowBlocks((5, 3))), (16, 6)),
    (Transposed(Interleaved(2)), (3, 6, 16)),
    (Transposed(RowBlocks((4, 2), (Transposed(), Heads(2)))), (16, 6)),
]


@pytest.mark.parametrize(
    "rule", [polarlight.rules.normuon(), polarlight.rules.aurora(polarlight.rules.WarmPolar())]
)
@pytest.mark.parametrize(("view", "shape"), COMPOSED, ids=str)
def test_a_composed_view_is_its_parts_as_parameters_of_their_own(rule, view, shape):
    generator = torch.Generator().manual_seed(0)

    def random():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    whole = nn.Parameter(random())
    parts = [nn.Parameter(part.clone()) for part in view.split(whole.detach())]
    one = polarlight.SpectralOptimizer([whole], lr=0.1, rule=rule, view=view)
    many = polarlight.SpectralOptimizer(parts, lr=0.1, rule=rule, view=Whole())
    for _ in range(3):
        whole.grad = random()
        for p, gradient in zip(parts, view.split(whole.grad), strict=True):
            p.grad = gradient.clone()
        one.step()
        many.step()
    for seen, part in zip(view.split(whole.detach()), parts, strict=True):
        torch.testing.assert_close(seen, part.detach(), rtol=1e-9, atol=1e-9)
