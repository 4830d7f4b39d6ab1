"""The benchmark of modded-nanoGPT: its numbers, its initial loss, its groups, its resumption."""

import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from polarlight.diagnostics.neurons import NeuronMonitor
from polarlight.lab.commands.app import app
from polarlight.lab.commands.track3 import _setting as track3_setting
from polarlight.lab.train import history
from polarlight.lab.train.folder import SettingsError
from polarlight.lab.train.track3.comparison import in_words
from polarlight.lab.train.track3.loop import Track3Run, assembled
from polarlight.lab.train.track3.model import Model, rotation
from polarlight.lab.train.track3.published import initial_loss
from polarlight.lab.train.track3.settings import (
    PRESETS,
    RULES,
    Track3,
)
from tests.lab.train.tiny import corpus
from tests.reference import track3 as reference

TINY = Track3(
    width=16,
    layers=2,
    head_dim=8,
    context=16,
    tokens_per_step=64,
    micro_batch=2,
    steps=4,
    validation_tokens=64,
    validate_every=2,
)
CPU = torch.device("cpu")
run = CliRunner().invoke


def run_in(folder, setting=TINY, rule="muon"):
    return Track3Run(setting, RULES[rule], corpus(folder), folder / "run", CPU)


def test_the_full_model_has_the_published_size_and_groups():
    model = Model(replace(PRESETS["record-36"], layers=1), 50304, torch.float32)
    hidden = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    shapes = sorted(tuple(p.shape) for p in hidden)
    assert shapes == sorted([(768, 768)] * 4 + [(3072, 768), (768, 3072)])
    block = sum(p.numel() for p in model.blocks.parameters())
    rest = sum(p.numel() for p in model.parameters()) - block
    assert 12 * block + rest == pytest.approx(162e6, rel=0.01)


def test_the_initial_loss_is_that_of_a_head_of_zeros():
    assert initial_loss(50304) == pytest.approx(10.82584, abs=1e-5)  # as in its log
    model = Model(TINY, 50, torch.float32)
    tokens = torch.arange(32).reshape(2, 16)
    assert model(tokens, tokens).item() / 32 == pytest.approx(math.log(50), rel=1e-5)


def test_the_loss_is_that_of_the_reference():
    setting = replace(TINY, head_dim=16, width=32)
    model = Model(setting, 11, torch.float64).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # the initial ones leave half of the model at zero
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator) * 0.5)
    tokens, targets = (torch.randint(11, (2, 9), generator=generator) for _ in range(2))
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    expected = reference.loss(
        weights, tokens.numpy(), targets.numpy(), layers=setting.layers, head_dim=16
    )
    # The angles are float32: 1e-7 of a position.
    assert model(tokens, targets).item() == pytest.approx(expected, rel=1e-5)


def test_the_embedding_has_the_dtype_of_activations_and_nothing_else():
    state = Model(TINY, 50, torch.bfloat16).state_dict()
    narrow = [name for name, x in state.items() if x.dtype == torch.bfloat16]
    assert narrow == ["embed.weight"]
    tokens = torch.zeros(1, 16, dtype=torch.long)
    assert Model(TINY, 50, torch.bfloat16)(tokens, tokens).dtype == torch.float32


def test_initial_weights_are_the_benchmarks():
    model = Model(replace(TINY, width=64, head_dim=32), 50, torch.float32)
    state = model.state_dict()
    for name, x in state.items():
        if name.endswith("gains"):
            assert (x == 1).all()
        elif x.ndim < 2 or "proj" in name:
            assert not x.any()
    assert state["blocks.0.mlp.fc.weight"].std() == pytest.approx((0.33 / 64) ** 0.5, rel=0.03)
    assert state["embed.weight"].std() == pytest.approx(1, rel=0.05)


def test_half_of_the_rotary_frequencies_are_zero():
    cos, sin = rotation(3, 128, CPU)
    assert cos.shape == (3, 64)
    assert (sin[:, 32:] == 0).all()
    assert sin[1, 0] == pytest.approx(math.sin(1))
    assert sin[1, 31] == pytest.approx(math.sin(1 / 1024), rel=1e-4)


def test_logits_do_not_see_the_future():
    model = Model(TINY, 50, torch.float64).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                0.1
                * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
            )
    tokens = torch.arange(16).reshape(1, 16)
    other = tokens.clone()
    other[0, -1] = 40
    short = [model(x[:, :15], x[:, :15]) for x in (tokens, other)]
    assert short[0] == short[1]


def test_every_parameter_has_the_benchmarks_optimizer():
    optimizer = assembled(Model(TINY, 50, torch.float32), TINY, RULES["muon"]).optimizer
    by_name = {n: g for g in optimizer.param_groups for n in g["param_names"]}
    assert by_name["embed.weight"]["lr"] == 0.7
    assert by_name["proj.weight"]["lr"] == 0.004
    vectors = ["proj.bias", "norm1.gains", "blocks.0.norm1.gains", "blocks.1.mlp.fc.bias"]
    assert {by_name[n]["lr"] for n in vectors} == {0.015}
    matrices = [n for n, g in by_name.items() if g["rule"] == RULES["muon"]]
    assert len(matrices) == 2 * 6
    assert all(by_name[n]["lr"] == 0.025 and by_name[n]["weight_decay"] == 0.05 for n in matrices)
    assert len(by_name) == len(list(Model(TINY, 50, torch.float32).parameters()))


def test_losses_are_summed_over_the_batch_and_all_micro_batches(tmp_path):
    trained = run_in(tmp_path)
    seen = {}
    trained.optimizer.register_step_pre_hook(
        lambda *_: seen.update(g=trained.model.proj.bias.grad.clone())
    )
    trained._advance()
    model = Model(TINY, 256, torch.float32)
    for micro in range(2):
        model(*trained.batch(0, micro)).backward()
    torch.testing.assert_close(seen["g"], model.proj.bias.grad)


def test_data_is_read_in_order_and_wraps_around(tmp_path):
    trained = run_in(tmp_path)
    first, second = trained.batch(0, 0)[0], trained.batch(0, 1)[0]
    stream = trained.corpus.train.read(0, 64)
    assert torch.equal(torch.cat([first, second]).flatten(), stream)
    assert torch.equal(trained.batch(0, 0)[1].flatten(), trained.corpus.train.read(1, 32))
    windows = (len(trained.corpus.train) - 1) // 32
    assert torch.equal(trained.batch(windows, 0)[0], trained.batch(0, 0)[0])


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_and_zero_gradients_of_the_start_move_nothing(tmp_path, rule):
    trained = run_in(tmp_path, replace(TINY, steps=30), rule)
    before = trained.model.blocks[0].mlp.fc.weight.clone()
    trained._advance()  # behind a zero projection: no gradient, only weight decay
    torch.testing.assert_close(trained.model.blocks[0].mlp.fc.weight, before * (1 - 0.025 * 0.05))
    losses = [r["loss"] for r in trained.records() if r["kind"] == "validation"]
    assert losses[-1] < math.log(256) - 1


def test_the_neuron_monitor_sees_the_mlps(tmp_path):
    trained = run_in(tmp_path)
    monitor = NeuronMonitor(every=1)
    trained.optimizer.observe(monitor)
    trained._advance()
    assert set(monitor.history[0][1]) == {f"blocks.{i}.mlp.fc.weight" for i in range(2)}


def test_a_stopped_run_resumes(tmp_path):
    straight = list(run_in(tmp_path / "a").records())
    first = run_in(tmp_path / "b")
    records = first.records()
    while first.step < 2 or not (first.folder / "checkpoint.pt").exists():
        next(records)
    records.close()
    again = run_in(tmp_path / "b")
    assert again.step == 2
    list(again.records())
    assert history.read_records(again.metrics) == straight
    assert list(run_in(tmp_path / "b").records()) == []
    with pytest.raises(SettingsError, match="lr"):
        run_in(tmp_path / "b", replace(TINY, lr=0.1))


def test_the_schedule_is_flat_and_then_falls():
    setting = Track3()
    assert [setting.lr_factor(s) for s in (0, 974)] == [1, 1]
    assert setting.lr_factor(3249) == pytest.approx(1 / 3250 / 0.7)
    assert setting.lr_factor(3250 - 1137) == pytest.approx(1137 / 3250 / 0.7)
    assert [s for s in range(2900, 3251) if setting.validates(s)][:4] == [2925, 2950, 2975, 3000]
    assert setting.accumulate == 8


def test_record_12_stops_before_its_rates_reach_zero():
    """In its log rates fall over 3350 steps; the last step is 3325."""
    setting = PRESETS["record-12"]
    assert (setting.steps, setting.schedule_steps) == (3325, 3350)
    assert [setting.lr_factor(s) for s in (0, 1005)] == [1, 1]
    assert setting.lr_factor(1006) < 1
    assert setting.lr_factor(3324) == pytest.approx(26 / 3350 / 0.7)
    extra = [s for s in range(3326) if setting.validates(s) and s % 125]
    assert extra[0] == 3025
    assert setting.validates(3325)


def test_a_horizon_before_the_end_is_refused():
    with pytest.raises(ValueError, match="horizon must be >= steps = 4, got 3"):
        replace(TINY, horizon=3)


def test_another_number_of_steps_has_its_own_schedule():
    setting = track3_setting("record-12", 0, None, None, 100)
    assert (setting.steps, setting.schedule_steps) == (100, 100)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="head_dim must divide width"):
        replace(TINY, head_dim=12)
    with pytest.raises(ValueError, match="multiple of micro_batch"):
        replace(TINY, tokens_per_step=65)


def test_the_command_trains_and_writes_records(tmp_path):
    result = run(app, ["track3", "--preset", "record-36", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "cached_fineweb10B.py" in result.stderr
    for wrong in (["--preset", "huge"], ["--optimizer", "symmetric"], ["--optimizer", "nobody"]):
        assert run(app, ["track3", *wrong]).exit_code == 2
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of {i * i % 97}\n" for i in range(3000)))
    options = ["--data", str(text), "--steps", "1", "--out", str(tmp_path / "run")]
    result = run(app, ["track3", "--optimizer", "aurora-wide", *options])
    assert result.exit_code == 0, result.output
    assert "step 0: validation 5.5452" in result.output  # ln 256


def test_finished_runs_are_compared_with_muon_seed_by_seed(tmp_path, monkeypatch):
    corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "small", TINY)
    more = ["track3", "--data", "text.txt", "--device", "cpu"]
    said = run(app, [*more, "--optimizer", "aurora-tall"]).output
    assert "run the same command with --optimizer muon" in said
    for seed in ("0", "1"):
        last = run(app, [*more, "--seed", seed])
        assert last.exit_code == 0, last.output
    assert "with one seed, which gives no interval. For one, run both with --seed 1 to 3" in (
        last.output
    )
    last = run(app, [*more, "--optimizer", "aurora-tall", "--seed", "1"])
    assert "n = 2, paired" in last.output
    assert "track 3's rule" not in last.output  # a rule of the full size
    unlike = run(app, [*more, "--steps", "2", "--seed", "5"])  # another setting has no partner
    assert "For a comparison, run the same command with another --optimizer" in unlike.output


def test_the_benchmarks_own_rule_stands_beside_ours_at_full_size():
    losses = {"muon": {0: 3.280, 1: 3.279}, "aurora-wide": {0: 3.2755, 1: 3.2765}}
    said = in_words(losses, "record-36", "nats/token")
    assert "n = 2, paired" in said[0]
    assert said[1] == "  track 3's rule: statistic 0.0035, does not count (0.004 is needed)"
    losses["aurora-wide"] = {0: 3.2805, 1: 3.2915}
    assert "counts as higher" in in_words(losses, "record-36", "nats/token")[1]
    assert len(in_words(losses, "small", "nats/token")) == 1
