"""Loss under narrow momenta: the arms, and equivalence in the table."""

import json

import pytest

from benchmarks.narrow_momentum_loss import KEPT_IN, RULES, read, recipe, report
from polarlight.lab.train.recipes import recipe_of
from polarlight.stages import InBfloat16, InInt8


@pytest.mark.parametrize("rule", RULES)
def test_an_arm_keeps_the_rules_own_momentum_in_another_dtype(rule):
    own = recipe_of(rule).rule().momentum
    made = {kept_in: recipe(rule, kept_in).rule().momentum for kept_in in KEPT_IN}
    assert made == {"float32": own, "bfloat16": InBfloat16(own), "int8": InInt8(own)}


def test_a_shift_within_the_margin_is_equal_and_one_beyond_it_differs(tmp_path):
    shift = {"float32": 0.0, "bfloat16": 0.002, "int8": 0.03}
    lines = [
        {"rule": rule, "kept in": kept_in, "seed": seed, "loss": 2 + by + 0.001 * (seed % 2)}
        for rule in RULES
        for kept_in, by in shift.items()
        for seed in range(6)
    ]
    lines = [line | {"loss": line["loss"] + 1e-4 * line["seed"] ** 2 % 3e-3} for line in lines]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = report(read(path))
    by_column = [list(column.cells) for column in table.columns]
    assert by_column[3][1] == "+0.0020 (+0.0020 to +0.0020)"
    assert by_column[5][1:3] == ["0.000", "1.000"]
    assert by_column[4][2] == "0.000"
