"""A search goes beyond an end that is best, remembers, and goes on where it was."""

from math import inf, log

import pytest
import torch

import polarlight
from polarlight.lab.tuning import find_lr


def silent(*_):
    pass


class Training:
    """Losses of a parabola in log lr; infinite from `limit` on; remembers what it was asked."""

    def __init__(self, best, limit=inf):
        self.best, self.limit, self.asked = best, limit, []

    def __call__(self, lr):
        self.asked.append(lr)
        return log(lr / self.best) ** 2 if lr < self.limit else inf


@pytest.mark.parametrize("best", [0.003, 0.03, 0.3])
def test_the_optimum_is_found_inside_and_beyond_the_ends(best):
    train = Training(best)
    found = find_lr(train, [0.04, 0.01, 0.02], extend=4, follow=silent)
    assert found.optimum.lr == pytest.approx(best)
    assert len(train.asked) == len(set(train.asked)) <= 7


def test_the_ends_are_extended_up_to_the_limit_with_a_note():
    train = Training(10.0)
    found = find_lr(train, [0.01, 0.02], extend=2, follow=silent)
    assert found.rates == pytest.approx((0.01, 0.02, 0.04, 0.08))
    assert found.optimum.edge == "high"
    assert find_lr(train, [0.01, 0.02], extend=0, follow=silent).rates == (0.01, 0.02)


def test_a_search_extends_down_if_all_rates_diverge():
    found = find_lr(Training(1e-3, limit=0.005), [0.01, 0.02], extend=5, follow=silent)
    assert found.optimum.lr == pytest.approx(1e-3, rel=0.3)
    with pytest.raises(ValueError, match="every run diverged"):
        find_lr(Training(1, limit=0.0), [0.01, 0.02], extend=1, follow=silent)


def test_an_interrupted_search_resumes(tmp_path):
    record, seen = tmp_path / "deep" / "lr.jsonl", []

    def stops(lr):
        if lr == 0.04:
            raise KeyboardInterrupt
        return Training(0.3)(lr)

    with pytest.raises(KeyboardInterrupt):
        find_lr(stops, [0.01, 0.02, 0.04], record=record, follow=silent)
    with record.open("a") as file:
        file.write('{"lr": 0.04, "lo')  # a crash in the middle of a line
    train = Training(0.3)
    found = find_lr(train, [0.01, 0.02, 0.04], record=record, follow=lambda *a: seen.append(a))
    assert train.asked[0] == 0.04
    assert not {0.01, 0.02} & set(train.asked)
    assert found == find_lr(Training(0.3), [0.01, 0.02, 0.04], follow=silent)
    assert [done for _, _, done, _ in seen] == list(range(1, len(found.rates) + 1))
    again = Training(0.3)
    assert find_lr(again, [0.01, 0.02, 0.04], record=record, follow=silent) == found
    assert again.asked == []


def test_a_damaged_record_is_refused_by_its_line(tmp_path):
    record = tmp_path / "lr.jsonl"
    record.write_text('{"lr": 0.1, "loss": 2}\nnothing\n')
    with pytest.raises(ValueError, match="line 2 is no result"):
        find_lr(Training(1), [0.1, 0.2], record=record)


@pytest.mark.parametrize(
    ("rates", "extend", "said"),
    [
        ([0.1], 1, "two rates or more"),
        ([0.1, 0.1], 1, "two rates or more"),
        ([0.0, 0.1], 1, "all > 0"),
        ([0.1, 0.2], -1, "extend must be >= 0, got -1"),
    ],
)
def test_invalid_arguments_raise_with_their_value(rates, extend, said):
    with pytest.raises(ValueError, match=said):
        find_lr(Training(1), rates, extend=extend)


def test_each_result_is_a_line_on_stderr(capsys):
    find_lr(Training(0.02), [0.01, 0.02, 0.04])
    assert "find_lr 2/3: lr 0.02, loss 0" in capsys.readouterr().err


def test_a_real_training_is_searched():
    """A closure as a user writes it: too low learns nothing, too high forgets."""

    def train(lr):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8, bias=False)
        optimizer = polarlight.Muon([layer.weight], lr=lr)
        x = torch.randn(64, 8)
        for _ in range(20):
            loss = (layer(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    found = find_lr(train, [0.002, 0.02, 0.2], follow=silent)
    assert found.optimum.edge is None
    assert 0.01 < found.optimum.lr < 0.5
