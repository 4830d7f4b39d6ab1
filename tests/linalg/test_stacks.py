"""Tensors put together: clones in one launch, and stacks found in tensors that are parts of one."""

import pytest
import torch

from polarlight.linalg import stacks
from tests.matrices import gaussian


def test_clones_of_equal_shape_are_parts_of_one_stack_in_their_order():
    mixed = [gaussian(2, 3), gaussian(4), gaussian(2, 3, seed=1), gaussian(4, seed=2).float()]
    clones = stacks.clone_together(mixed)
    assert all(torch.equal(x, y) for x, y in zip(mixed, clones, strict=True))
    found = stacks.stack_of([clones[0], clones[2]])
    assert torch.equal(found, torch.stack([mixed[0], mixed[2]]))
    found.zero_()
    assert not clones[0].any()
    assert not clones[2].any()
    assert mixed[0].all()
    assert clones[1].all()


def test_clones_while_compiling_are_the_compilers_business(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    clones = stacks.clone_together([gaussian(2, 3), gaussian(2, 3)])
    assert clones[0]._base is None
    assert stacks.stack_of(list(gaussian(2, 3).unbind())) is None


WHOLE = torch.arange(24.0).view(4, 2, 3)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (list(WHOLE.unbind()), WHOLE),
        (list(WHOLE.unbind())[1:3], WHOLE[1:3]),
        (list(WHOLE.mT.unbind()), WHOLE.mT),
        (list(WHOLE.view(-1)[2:5].unbind()), WHOLE.view(-1)[2:5]),
        (list(WHOLE.unbind())[::-1], None),
        (list(WHOLE.unbind())[::2], None),
        ([WHOLE[0], WHOLE[1].mT.reshape(2, 3)], None),
        ([WHOLE[0], gaussian(2, 3)], None),
        ([gaussian(2, 3), gaussian(2, 3)], None),
        ([WHOLE[0], WHOLE[1, :1]], None),
        ([WHOLE[0], WHOLE[0]], None),
        (list(WHOLE.view(4, 6)[:, :3].unbind()), None),  # gaps between the parts
    ],
)
def test_a_stack_is_found_where_tensors_are_its_consecutive_parts(parts, found):
    stack = stacks.stack_of(parts)
    assert (stack is None) is (found is None)
    if found is not None:
        assert torch.equal(stack, found)
        assert stack.untyped_storage().data_ptr() == WHOLE.untyped_storage().data_ptr()


def test_tensors_that_are_no_stack_are_copied_into_one():
    apart = [gaussian(2, 3), gaussian(2, 3, seed=1)]
    assert torch.equal(stacks.stacked(apart), torch.stack(apart))


def test_a_vector_is_multiplied_with_a_stack_as_a_column():
    factors = stacks.as_column(torch.arange(4.0), 2)
    assert factors.shape == (4, 1, 1)
    assert torch.equal((WHOLE * factors)[2], 2 * WHOLE[2])
