"""`python -m tests.isa`: what a machine cannot run, and one table of several machines."""

import json

import pytest

from tests import isa

AVX2 = {"cpu_name": "EPYC", "sse4_2": True, "avx2": True}
WIDE = AVX2 | {"avx512_bw": True}
WIDEST = WIDE | {"avx512_bf16": True}


def machine(name, lines, **changed):
    found = {"machine": name, "torch": "2.13.0", "combinations": {"avx2-AVX2-AVX2-1": [10, 0]}}
    return found | {"skipped": {}, "failed": [], "lines": lines} | changed


@pytest.mark.parametrize(
    ("has", "count", "lacks"),
    [(AVX2, 4, "AVX512, AVX512-BF16"), (WIDE, 6, "AVX512-BF16"), (WIDEST, 10, "")],
)
def test_a_combination_beyond_the_cpu_is_skipped_with_the_reason(has, count, lacks):
    reasons = [isa.missing(combination, has) for combination in isa.COMBINATIONS]
    assert reasons.count("") == count
    assert isa.missing(("avx512", "AVX512", "AVX512_CORE_BF16", "1"), has) == lacks


def test_every_value_of_the_combinations_has_its_instruction_set():
    values = {value for combination in isa.COMBINATIONS for value in combination[:3]}
    assert values - set(isa.NEEDS) == {"default"}
    assert set(isa.NEEDS.values()) == set(isa.SETS)


def test_a_machine_is_named_by_its_widest_set():
    names = [isa.machine_of(has).split(", ")[:2] for has in (AVX2, WIDE, WIDEST)]
    assert names == [["EPYC", "AVX2"], ["EPYC", "AVX512"], ["EPYC", "AVX512-BF16"]]


def test_the_tightest_value_over_all_machines_is_shown_with_its_machine():
    one = {"tests/a.py:1": [False, "t", 0.1, 1.0, 0.0], "tests/a.py:2": [False, "t", 0.2, 1, 1e-3]}
    two = {"tests/a.py:1": [False, "t", 0.4, 1.0, 1e-9], "tests/b.py:9": [True, "t", 0.9, 1, 0.5]}
    found = isa.merged([machine("one", one), machine("two", two)])
    assert {place: (line[2], line[6]) for place, line in found.items()} == {
        "tests/a.py:1": (0.4, 2),
        "tests/a.py:2": (0.2, 1),
        "tests/b.py:9": (0.9, 2),
    }
    skipped = {"avx512-AVX512-AVX512_CORE-1": "AVX512"}
    machines = [machine("one", one, skipped=skipped), machine("two", two)]
    text = "\n".join(isa.table(machines, 9))
    assert "| 1 | one, torch 2.13.0 | avx2-AVX2-AVX2-1 | 10 | 0 |" in text
    assert "avx512-AVX512-AVX512_CORE-1 | skipped: the CPU lacks AVX512 |" in text
    assert "3 lines with numeric bounds, 1 with too little margin:" in text
    assert "| `a.py:1` | 0.4 | 1 | 0.40 | 1e-09 | 2 |" in text
    assert "| `b.py:9` **too little** | 0.9 |" in text


def test_the_table_goes_into_the_page_between_its_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{isa.BEGIN}\nold\n{isa.END}\nafter\n")
    results, out = tmp_path / "results", tmp_path / "out"
    for name, value in {"PAGE": page, "RESULTS": results, "OUT": out}.items():
        monkeypatch.setattr(isa, name, value)
    isa.keep(machine("EPYC, AVX2", {"tests/a.py:1": [False, "t", 0.4, 1.0, 1e-9]}))
    assert [path.name for path in results.iterdir()] == ["epyc--avx2.json"]
    assert isa.report(9, write=True) == 1  # this machine has run nothing
    text = page.read_text()
    assert text.startswith(f"before\n{isa.BEGIN}\n| | machine |")
    assert text.endswith(f"{isa.END}\nafter\n")
    assert "old" not in text


def test_the_files_of_machines_hold_what_the_table_needs():
    for path in isa.RESULTS.glob("*.json"):
        found = json.loads(path.read_text())
        assert set(found) == set(machine("", {})), path
        assert found["lines"]
        assert all(len(line) == 5 for line in found["lines"].values())
