"""Owners of matrices: balanced, local where possible, equal on all processes."""

import random

import pytest

from polarlight.execution.sharded.assignment import loads, owners


@pytest.mark.parametrize("processes", [1, 2, 7, 64])
def test_many_matrices_are_spread_evenly(processes):
    costs = random.Random(0).choices([1.0, 3.0, 3.5, 14.0], k=20 * processes)
    found = owners(costs, [None] * len(costs), processes)
    total = loads(costs, found, processes)
    assert max(total) <= 1.1 * sum(total) / processes


def test_graham_bound_holds_where_matrices_are_few():
    costs = [5.0, 5.0, 4.0, 4.0, 3.0, 3.0, 3.0]  # the classic worst case: 11 against 9
    assert max(loads(costs, owners(costs, [None] * 7, 3), 3)) == 11


def test_a_matrix_is_owned_by_a_process_that_holds_it_in_full():
    assert owners([1.0] * 4, [(3,), (2,), (1,), (0,)], 4) == [3, 2, 1, 0]
    assert owners([9.0, 1.0], [(1,), (1,)], 2) == [1, 0]


def test_a_matrix_leaves_a_holder_whose_load_exceeds_the_limit():
    found = owners([1.0] * 8, [(0,)] * 8, 4)
    assert loads([1.0] * 8, found, 4) == [2, 2, 2, 2]


def test_of_several_holders_the_least_loaded_owns_the_matrix():
    assert sorted(owners([1.0] * 2, [(0, 2), (0, 2)], 4)) == [0, 2]


def test_no_matrices_have_no_owners():
    assert owners([], [], 4) == []
    assert owners([0.0, 0.0], [None, ()], 2) == [0, 0]


def test_a_matrix_stays_among_the_processes_that_hold_a_part_of_it_up_to_the_limit():
    parts = [[0, 1]] * 4 + [[2, 3]] * 4
    found = owners([1.0] * 8, [[]] * 8, 4, transfer_costs=[0.5] * 8, part_holders=parts)
    assert all(owner in part for owner, part in zip(found, parts, strict=True))
    crowded = owners([1.0] * 8, [[]] * 8, 4, transfer_costs=[0.5] * 8, part_holders=[[0, 1]] * 8)
    assert sorted(crowded) == [0, 0, 1, 1, 2, 2, 3, 3]
