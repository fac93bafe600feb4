"""Checks of the arguments that users pass."""

import numbers
from typing import Any

import numpy as np


def check(argument: str, value: Any, is_valid: bool, expected: str) -> None:
    """Raises a `ValueError` that names the argument, unless it is valid."""
    if not is_valid:
        raise ValueError(
            f"Expected `{argument}` to be {expected}. Received: {argument}={value!r} of type {type(value)}"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy. A bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a real number, and as a float32 neither infinite nor NaN."""
    return is_number(value) and abs(value) <= float(np.finfo("float32").max)
