"""Labels of channel positions: how views, permutations, slices and tables move and unite them."""

from __future__ import annotations

import numpy as np
import pytest

from vitprune.trace.labels import NONE, Labels, solve
from vitprune.trace.moves import cat, permute, refined, take, view, view_blocks
from vitprune.trace.value import Field, Value


def value_of(labels: Labels, *shape: int, dim: int) -> Value:
    """A tensor with fresh labels along one axis."""
    line = labels.new(shape[dim])
    return Value(shape, (Field(line.reshape([-1 if d == dim else 1 for d in range(len(shape))]), dim),))


def lines(value: Value) -> dict[int, list[object]]:
    """Axis -> its labels, from coarse to fine."""
    return {d: [f.array.squeeze().tolist() for f in value.on(d)] for d in range(len(value.shape)) if value.on(d)}


def test_view_blocks_pairs_the_axes_that_hold_the_same_elements():
    assert view_blocks((2, 12, 5), (2, 3, 4, 5)) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert view_blocks((2, 3, 4, 5), (6, 20)) == [([0, 1], [0]), ([2, 3], [1])]
    assert view_blocks((4, 6), (6, 4)) == [([0, 1], [0, 1])]
    assert refined((2, 6), (2, 2, 3), [1], [1, 2]) == [2, 3]
    assert refined((4, 6), (6, 4), [0, 1], [0, 1]) == [6, 4]


def test_view_splits_an_axis_into_heads_that_cover_their_dims_and_merges_them_back():
    labels = Labels()
    x = value_of(labels, 2, 6, dim=1)
    split = view(labels, x, (2, 2, 3))
    assert lines(split) == {1: [[6, 7]], 2: [[[0, 1, 2], [3, 4, 5]]]}
    merged = view(labels, split, (2, 6))
    assert lines(merged)[1][-1] == [0, 1, 2, 3, 4, 5]
    solved = solve(labels)
    above = {int(n): int(s) for s_, n_ in labels.covers for s, n in zip(s_.ravel(), n_.ravel(), strict=True)}
    assert above == {0: 6, 1: 6, 2: 6, 3: 7, 4: 7, 5: 7}
    assert len(set(solved.cls.tolist())) == labels.count


def test_permute_take_and_cat_move_labels_with_their_axis():
    labels = Labels()
    x, y = value_of(labels, 2, 4, dim=1), value_of(labels, 2, 3, dim=1)
    assert lines(permute(x, [1, 0])) == {0: [[0, 1, 2, 3]]}
    assert lines(take(labels, x, 1, slice(1, 3))) == {1: [[1, 2]]}
    assert lines(cat(labels, [x, y], 1)) == {1: [[0, 1, 2, 3, 4, 5, 6]]}
    fixed = cat(labels, [x, Value((2, 2))], 1)
    assert lines(fixed) == {1: [[0, 1, 2, 3, NONE, NONE]]}
    assert set(solve(labels).frozen) == set(solve(labels).cls[:4].tolist())


def test_a_strided_pick_unites_whole_runs():
    labels = Labels()
    take(labels, value_of(labels, 2, 6, dim=1), 1, slice(0, None, 3))
    cls = solve(labels).cls
    assert cls[0] == cls[1] == cls[2] != cls[3] == cls[4] == cls[5]


def covers_of(labels: Labels, array: np.ndarray) -> set[int]:
    """Classes that cover the labels in `array`."""
    solved = solve(labels)
    return set(solved.covers.of(np.unique(solved.own[array]))[1].tolist())


def test_a_table_that_is_broadcast_over_heads_follows_all_of_them_and_goes_with_none():
    labels = Labels()
    split = view(labels, value_of(labels, 2, 4, dim=1), (2, 2, 2))
    heads, dims = split.on(1)[0].array, split.on(2)[0].array
    table = labels.new(2).reshape(1, 1, 2)
    labels.unify(table, dims)
    cls = solve(labels).cls
    assert cls[dims[0, 0, 0]] == cls[dims[0, 1, 0]] == cls[table[0, 0, 0]] != cls[table[0, 0, 1]]
    assert covers_of(labels, dims) == set(cls[heads.ravel()].tolist())
    assert covers_of(labels, table) == set()


@pytest.mark.parametrize("swapped", [False, True])
def test_the_same_holds_for_pairs_of_dims_in_which_both_sides_have_as_many_labels(swapped):
    """Two heads of two pairs meet a table of four positions."""
    labels = Labels()
    dims = view(labels, value_of(labels, 2, 8, dim=1), (2, 2, 4)).on(2)[0].array  # (1, 2 heads, 4 dims)
    labels.unify(dims[..., ::2], dims[..., 1::2])
    pairs = np.repeat(dims[..., ::2], 2, axis=-1)
    table = labels.new(4).reshape(1, 1, 4)
    labels.unify(*((table, pairs) if swapped else (pairs, table)))
    cls = solve(labels).cls
    assert len(set(cls[table.ravel()].tolist())) == len(set(cls[dims.ravel()].tolist())) == 2
    assert covers_of(labels, table) == set()
