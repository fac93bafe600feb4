"""Compares the layout of the widened batch with lists of rows."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_rdrop._keras import get_mask, set_mask
from keras_rdrop._passes.layout import PassLayout, count_rows


def as_numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [2, 3])
def test_widen_repeats_the_first_rows(count, fraction, rows, rng):
    array = rng.normal(size=(rows, 2, 3)).astype("float32")
    repeated = math.ceil(fraction * rows)
    expected = [array[row] for row in range(rows) for _ in range(count if row < repeated else 1)]
    actual = PassLayout(count, fraction).widen(ops.convert_to_tensor(array))
    np.testing.assert_array_equal(as_numpy(actual), expected)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("count", [2, 3])
def test_complete_repeats_the_remaining_rows(count, fraction, rng):
    array = ops.convert_to_tensor(rng.normal(size=(7, 3)).astype("float32"))
    layout = PassLayout(count, fraction, rows=7)
    actual = layout.complete(layout.widen(array))
    np.testing.assert_array_equal(as_numpy(actual), np.repeat(as_numpy(array), count, axis=0))


def test_complete_repeats_the_mask_too():
    layout = PassLayout(2, 0.5, rows=4)
    masked = layout.complete(set_mask(ops.arange(6), ops.convert_to_tensor([True, False, True, True, True, False])))
    np.testing.assert_array_equal(as_numpy(masked), [0, 1, 2, 3, 4, 4, 5, 5])
    np.testing.assert_array_equal(as_numpy(get_mask(masked)), [True, False, True, True, True, True, False, False])


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.3), (3, 0.3), (3, 0.9), (2, 1.0)])
def test_merge_adds_up_the_weights_of_the_copies(count, fraction, rng):
    layout = PassLayout(count, fraction, rows=7)
    values, weights = rng.normal(size=layout.widen(np.zeros(7)).shape), rng.normal(size=7 * count)
    expected = np.sum(as_numpy(layout.complete(ops.convert_to_tensor(values))) * weights)
    merged = as_numpy(layout.merge(ops.convert_to_tensor(weights)))
    assert np.sum(values * merged) == pytest.approx(expected, rel=1e-5)


def test_zero_single_rows_sets_the_other_rows_to_0():
    values = ops.arange(1, 7)
    np.testing.assert_array_equal(as_numpy(PassLayout(2, 0.5, rows=4).zero_single_rows(values)), [1, 2, 3, 4, 0, 0])
    assert PassLayout(2, rows=3).zero_single_rows(values) is values


def test_vectors_are_widened(rng):
    """Such as labels."""
    vector = ops.convert_to_tensor(rng.integers(0, 5, 3))
    first, second, third = as_numpy(vector)
    np.testing.assert_array_equal(as_numpy(PassLayout(2).widen(vector)), [first, first, second, second, third, third])
    np.testing.assert_array_equal(as_numpy(PassLayout(2, 0.5).widen(vector)), [first, first, second, second, third])


@pytest.mark.parametrize("count", [2, 3])
def test_group_collects_the_copies_from_repeat_all(count, rng):
    array = rng.normal(size=(4, 2)).astype("float32")
    groups = as_numpy(PassLayout(count).group(PassLayout(count).repeat_all(ops.convert_to_tensor(array))))
    assert groups.shape == (4, count, 2)
    for index in range(count):
        np.testing.assert_array_equal(groups[:, index], array)


def test_split_returns_the_rows_of_each_pass(rng):
    rows = rng.normal(size=(4, 2)).astype("float32")
    layout = PassLayout(3)
    for rows_of_pass in layout.split(layout.repeat_all(rows)):
        np.testing.assert_array_equal(rows_of_pass, rows)
    first, second = PassLayout(2).split(np.array([1, 2, 3, 4]))
    np.testing.assert_array_equal(first, [1, 3])
    np.testing.assert_array_equal(second, [2, 4])
    assert layout.split(None) == [None] * 3
    assert layout.split(np.float32(2.0)) == [2.0] * 3


def test_group_keeps_the_order_of_rows_and_passes():
    groups = as_numpy(PassLayout(3).group(ops.arange(6)))
    np.testing.assert_array_equal(groups, [[0, 1, 2], [3, 4, 5]])


def test_group_fills_up_the_rows_that_went_through_one_pass():
    two_repeated, one_repeated = PassLayout(3, 0.4, rows=5), PassLayout(3, 0.2, rows=5)
    groups = as_numpy(two_repeated.group(ops.arange(1, 10)))
    np.testing.assert_array_equal(groups, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    groups = as_numpy(one_repeated.group(ops.arange(1, 8)))
    np.testing.assert_array_equal(groups, [[1, 2, 3], [4, 5, 6], [7, 0, 0]])


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("count", "fraction", "rows"), [(3, 1.0, 2), (3, 0.2, 5), (2, 0.5, 4), (2, 0.3, 6)])
def test_ungroup_is_the_inverse_of_group(count, fraction, rows, shape, rng):
    layout = PassLayout(count, fraction, rows)
    array = layout.widen(ops.convert_to_tensor(rng.normal(size=(rows, *shape)).astype("float32")))
    np.testing.assert_array_equal(as_numpy(layout.ungroup(layout.group(array))), as_numpy(array))


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 2.0), ("sum_over_batch_size", 6.0), (None, 6.0)])
def test_mean_divides_by_the_passes_only_after_a_sum(reduction, expected):
    assert PassLayout(3).mean_over_passes(6.0, keras.losses.MeanSquaredError(reduction)) == expected


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_rounding_errors_do_not_add_a_row(hundredths):
    assert PassLayout(2, hundredths / 100).repeated_rows(100) == hundredths


def test_divergence_scale_is_the_ratio_of_all_rows_to_repeated_rows():
    assert PassLayout(2, rows=10).divergence_scale() == 1.0
    assert float(PassLayout(2, 0.3, rows=10).divergence_scale()) == pytest.approx(10 / 3)
    assert float(PassLayout(4, 0.3, rows=5).divergence_scale()) == pytest.approx(5 / 2)  # 1.5 rows are rounded up


def test_the_divergence_scale_of_no_rows_is_finite():
    """Under `tf.distribute`, the last batch may leave a replica without rows."""
    assert float(PassLayout(2, 0.5, rows=0).divergence_scale()) == 0.0


def test_count_rows_skips_scalars_and_none():
    assert count_rows({"a": None, "b": np.float32(1.0), "c": np.zeros((4, 2)), "d": np.zeros((7,))}) == 4
    with pytest.raises(ValueError, match="Expected a tensor with one row for each row of the batch"):
        count_rows([None, np.float32(1.0)])


def test_scalars_and_none_are_returned_unchanged():
    scalar = ops.convert_to_tensor(1.0)
    for fraction in (0.5, 1.0):
        passes = PassLayout(2, fraction)
        assert passes.widen(None) is passes.repeat_all(None) is None
        assert passes.widen(scalar) is passes.repeat_all(scalar) is scalar


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has ragged tensors")
def test_ragged_tensors_are_widened_unless_fraction_is_below_1():
    import tensorflow as tf

    ragged = tf.ragged.constant([[1, 2], [], [3]])
    assert PassLayout(2).widen(ragged).to_list() == [[1, 2], [1, 2], [], [], [3], [3]]
    with pytest.raises(ValueError, match="Expected dense data, because `fraction` is below 1"):
        PassLayout(2, 0.5).widen(ragged)


def test_fraction_below_1_rejects_data_that_cannot_be_sliced():
    class Sparse:
        shape = (4, 3)

    with pytest.raises(ValueError, match="Expected dense data, because `fraction` is below 1. .* fraction=0.5"):
        PassLayout(2, 0.5).widen(Sparse())


def test_a_layout_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PassLayout(2).passes = 3
