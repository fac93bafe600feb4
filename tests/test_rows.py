"""How rows are repeated, against what the rows of a list would be."""

import math

import numpy as np
import pytest
from keras import ops

from keras_rdrop import rows


@pytest.mark.parametrize("number", [1, 2, 5, 7])
@pytest.mark.parametrize("fraction", [1e-5, 0.01, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("passes", [2, 3])
def test_the_first_rows_are_repeated(passes, fraction, number, rng):
    array = rng.normal(size=(number, 2, 3)).astype("float32")
    repeated = math.ceil(fraction * number)
    expected = [array[row] for row in range(number) for _ in range(passes if row < repeated else 1)]
    found = rows.repeat_rows(ops.convert_to_tensor(array), passes, fraction)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_no_rounding_error_adds_a_row(hundredths):
    assert rows.rows_of_fraction(100, hundredths / 100) == hundredths


def test_numbers_and_none_stay_as_they_are():
    assert rows.repeat_rows(None, 2, 0.5) is None
    number = ops.convert_to_tensor(1.0)
    assert rows.repeat_rows(number, 2, 0.5) is number


def test_a_part_of_what_has_no_slices():
    class Sparse:
        shape = (4, 3)

    with pytest.raises(ValueError, match="Expected dense data, as fraction=0.5 wants it"):
        rows.repeat_rows(Sparse(), 2, 0.5)
