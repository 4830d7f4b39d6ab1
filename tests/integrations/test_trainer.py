"""Hugging Face Trainer: routed, watched, saved and resumed bit for bit."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import polarlight
from polarlight.integrations.trainer import clip_gradients, factory, watch
from tests.integrations.running import assert_equal_weights, example


class Stub:
    """As much of a Trainer as `watch` touches."""

    def __init__(self, optimizer):
        self.callbacks, self.logged, self.optimizer = [], [], optimizer
        self.global_step = 0
        self.log_history = [{}]

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def log(self, values):
        self.logged.append(values)

    def call(self, event):
        for callback in self.callbacks:
            getattr(callback, event)(None, self, None, optimizer=self.optimizer)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(8, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 32),
        nn.ReLU(),
        nn.Linear(32, 8),
        nn.Linear(8, 8),
    )


def step(model, optimizer):
    tokens = torch.arange(8)
    nn.functional.cross_entropy(model(tokens), (tokens + 1) % 8).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_factory_takes_classes_and_recipes():
    model = mlp()
    built = factory(polarlight.Aurora)()(model, lr=0.01, aux_lr=1e-3)
    assert isinstance(built, polarlight.Aurora)
    assert built.param_groups[0]["lr"] in (0.01, 1e-3)
    recipe = factory(polarlight.recipes.muon_with_adamw)()(model, lr=4e-3)
    assert isinstance(recipe, polarlight.SpectralOptimizer)
    assert {g["rule"].name for g in recipe.param_groups} == {"muon", "adamw"}


def test_watching_hands_records_to_the_trainers_log():
    model = mlp()
    optimizer = polarlight.Aurora(model, lr=0.01)
    trainer = Stub(optimizer)
    watched = watch(trainer, every=2)
    trainer.call("on_init_end")  # an event that nothing is done for
    trainer.call("on_train_begin")
    for _ in range(4):
        step(model, optimizer)
        trainer.call("on_step_end")
    trainer.call("on_train_end")
    step(model, optimizer)
    trainer.call("on_step_end")
    assert len(trainer.logged) == 2
    assert trainer.logged[0].keys() == {"starved_rows", "row_spread"}
    assert "aurora x 4" in watched.check.report()
    assert not hasattr(watched, "elsewhere")


def test_watching_another_optimizer_is_refused():
    trainer = Stub(torch.optim.AdamW(mlp().parameters()))
    watch(trainer)
    with pytest.raises(ValueError, match="got AdamW"):
        trainer.call("on_train_begin")


def test_an_optimizer_class_without_names_raises_with_the_fix():
    """Trainer passes an Optimizer subclass two groups without names."""
    groups = [{"params": list(mlp().parameters()), "weight_decay": 0.0}]
    with pytest.raises(ValueError, match="Pass the model"):
        polarlight.Aurora(groups, lr=0.01)


class Clipping(Stub):
    """As much of a Trainer as `clip_gradients` touches."""

    def __init__(self, optimizer, max_grad_norm):
        super().__init__(optimizer)
        self.args = SimpleNamespace(max_grad_norm=max_grad_norm)
        self.accelerator, self.unscaled = self, 0

    def unscale_gradients(self):
        self.unscaled += 1


def test_clipping_replaces_the_trainers_and_leaves_matrices_alone():
    model = mlp()
    trainer = Clipping(polarlight.Muon(model), max_grad_norm=0.5)
    callback = clip_gradients(trainer)
    assert trainer.args.max_grad_norm == 0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    trainer.call("on_pre_optimizer_step")
    trainer.call("on_step_end")  # an event without a method here
    assert trainer.unscaled == 1
    matrix, embedding = model[2].weight.grad, model[0].weight.grad
    assert torch.equal(matrix, torch.ones_like(matrix))
    assert embedding.max() < 0.5
    rest = [p for g in trainer.optimizer.param_groups for p in g["params"] if g["role"] != "hidden"]
    entries = sum(p.numel() for p in rest if p is not model[2].weight)
    assert float(callback.norm) <= entries**0.5


@pytest.mark.parametrize("norm", [0.0, -1.0])
def test_clipping_by_no_positive_norm_is_refused_with_the_value(norm):
    with pytest.raises(ValueError, match=f"max_norm must be > 0, got {norm}"):
        clip_gradients(Clipping(polarlight.Muon(mlp()), max_grad_norm=norm))


@dataclass
class Arguments:
    """The two numbers of `TrainingArguments`, with its defaults."""

    learning_rate: float = 5e-5
    weight_decay: float = 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (Arguments(learning_rate=2e-5), "learning_rate = 2e-05 is not read .lr: 0.003, 0.02"),
        (Arguments(weight_decay=0.1), "weight_decay = 0.1 is not read"),
        (Arguments(1e-3, 0.1), "learning_rate = 0.001 .*weight_decay = 0.1 .*give lr, aux_lr"),
    ],
)
def test_arguments_that_are_not_read_are_warned_about(arguments, said):
    with pytest.warns(UserWarning, match=said):
        factory(polarlight.Aurora, arguments)()(mlp(), lr=0.02)
    trainer = Stub(polarlight.Aurora(mlp(), lr=0.02))
    watch(trainer)
    with pytest.warns(UserWarning, match=said):
        trainer.callbacks[0].on_train_begin(arguments, trainer, None, optimizer=trainer.optimizer)
    # A second time says nothing: warnings are errors here.
    trainer.callbacks[0].on_train_begin(arguments, trainer, None, optimizer=trainer.optimizer)


@pytest.mark.parametrize("arguments", [None, Arguments(), Arguments(0.02, 0.1), Arguments(3e-3)])
def test_arguments_at_their_defaults_or_equal_to_the_optimizers_are_not_warned_about(arguments):
    """Warnings are errors in these tests."""
    optimizer = factory(polarlight.Aurora, arguments)()(mlp(), lr=0.02, weight_decay=0.1)
    trainer = Stub(optimizer)
    watch(trainer)
    trainer.callbacks[0].on_train_begin(arguments, trainer, None, optimizer=optimizer)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: polarlight.Muon(nn.Linear(4, 8)), "a Muon"),
        (lambda: "Muon", "'Muon'"),
        (lambda: nn.Linear(4, 8), "Linear"),
        (lambda: None, "None"),
    ],
    ids=["optimizer", "text", "model", "None"],
)
def test_a_factory_of_something_else_is_refused_at_the_call(wrong, named):
    with pytest.raises(TypeError, match=rf"takes an optimizer's class or a recipe.*got {named}"):
        factory(wrong())


def test_the_factory_puts_matrices_first_and_loads_states_in_another_order():
    """Trainer logs the rate of the first group; the embedding's would come first otherwise."""
    model = mlp()
    plain, made = polarlight.Aurora(model, lr=0.02), factory(polarlight.Aurora)()(model, lr=0.02)
    assert plain.param_groups[0]["rule"].name == "adamw"
    assert made.param_groups[0]["rule"].name == "aurora"
    step(model, plain)
    made.load_state_dict(plain.state_dict())
    for p in model.parameters():
        assert all(torch.equal(made.state[p][key], x) for key, x in plain.state[p].items())
    again = factory(polarlight.Aurora)()(model, lr=0.02)
    again.load_state_dict(made.state_dict())


def test_watching_logs_the_matrices_learning_rate_of_the_step():
    model = mlp()
    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3)
    trainer = Stub(optimizer)
    watch(trainer)
    trainer.call("on_train_begin")
    step(model, optimizer)
    trainer.call("on_optimizer_step")
    for group in optimizer.param_groups:
        group["lr"] *= 0.5  # the scheduler's, for the next step
    logs = {"loss": 1.0, "learning_rate": 3e-3}
    trainer.log_history = [dict(logs)]
    trainer.callbacks[0].on_log(None, trainer, None, logs=logs)
    assert logs == trainer.log_history[0] == {"loss": 1.0, "learning_rate": 0.02}


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: an optimizer around another, with its groups."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def defaults(self):
        return self.optimizer.defaults


def test_explain_unwraps_optimizers():
    optimizer = polarlight.Aurora(mlp(), lr=0.02)
    assert "given by the caller" not in str(polarlight.explain(optimizer))
    assert str(polarlight.explain(Wrapper(Wrapper(optimizer)))) == str(
        polarlight.explain(optimizer)
    )


def test_explain_unwraps_accelerates_optimizer():
    accelerate = pytest.importorskip("accelerate")
    optimizer = polarlight.Aurora(mlp(), lr=0.02)
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert wrapped is not optimizer
    assert str(polarlight.explain(wrapped)) == str(polarlight.explain(optimizer))


@pytest.fixture
def trainer_example():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    return example("trainer")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # transformers' and accelerate's own
def test_the_example_trains_logs_and_resumes_bit_for_bit(trainer_example, tmp_path, capsys):
    whole = trainer_example.main(tmp_path / "whole")
    history = whole.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    assert any("starved_rows" in entry for entry in history)
    assert "BROKEN" not in capsys.readouterr().out
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert max(rates) > 3e-3  # the matrices', whose peak is 0.02, and not the embedding's
    (tmp_path / "half").mkdir()
    (tmp_path / "whole" / "checkpoint-10").rename(tmp_path / "half" / "checkpoint-10")
    resumed = trainer_example.main(tmp_path / "half", resume=True)
    assert_equal_weights(whole.model, resumed.model)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_optimizer_that_is_given_trains_as_the_factorys(trainer_example, tmp_path):
    from transformers import Trainer, TrainingArguments

    made = trainer_example.main(tmp_path / "factory", steps=4)
    model = trainer_example.model()
    arguments = TrainingArguments(
        output_dir=tmp_path / "given",
        max_steps=4,
        per_device_train_batch_size=8,
        lr_scheduler_type="cosine",
        warmup_steps=4,
        report_to="none",
        use_cpu=True,
    )
    optimizer = polarlight.Aurora(model, lr=0.02, aux_lr=3e-3)
    data = trainer_example.text()
    given = Trainer(model=model, args=arguments, train_dataset=data, optimizers=(optimizer, None))
    given.train()
    assert_equal_weights(made.model, given.model)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # transformers' and accelerate's own
def test_the_fine_tuning_example_evaluates_and_resumes_bit_for_bit(tmp_path):
    pytest.importorskip("transformers")
    tuning = example("trainer_finetune")
    whole = tuning.main(tmp_path / "whole")
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert losses[1] < losses[0]
    frozen = tuning.pretrained().model.embed_tokens.weight
    assert torch.equal(whole.model.model.embed_tokens.weight, frozen)
    (tmp_path / "half").mkdir()
    (tmp_path / "whole" / "checkpoint-6").rename(tmp_path / "half" / "checkpoint-6")
    assert_equal_weights(whole.model, tuning.main(tmp_path / "half", resume=True).model)
