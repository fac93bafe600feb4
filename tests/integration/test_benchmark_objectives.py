"""The objectives that the benchmarks time have the same values and gradients."""

import pytest
from support.scripts import import_from

objectives = import_from("benchmarks", "objectives")


@pytest.mark.parametrize("passes", [2, 3])
def test_the_kernel_equals_the_separate_terms(passes):
    separate = objectives.objective(optimized=False, passes=passes)
    objectives.check_same(objectives.objective(passes=passes), separate, *objectives.random_batch(8, 300, passes))


def test_the_last_layer_equals_the_separate_terms():
    fused, *inputs = objectives.function_and_inputs("fuse_head=True", 8, 320, features=16)
    separate, *_ = objectives.function_and_inputs("Dense, loss and divergence apart", 8, 320, features=16)
    objectives.check_same(fused, separate, *inputs)
