"""Tests that a step is set only while it runs, and only in its own thread."""

import dataclasses
import threading

import pytest

from keras_rdrop._passes.layout import PassLayout
from keras_rdrop._passes.step import CurrentStep, Step


def test_the_step_is_set_only_inside_the_context():
    current, step = CurrentStep(), Step(alpha=1.0, layout=PassLayout(2))
    assert current.step is None
    with current.set(step):
        assert current.step is step
    assert current.step is None


def test_an_error_ends_the_step():
    current = CurrentStep()
    with pytest.raises(RuntimeError, match="in the loss"), current.set(Step(alpha=1.0, layout=PassLayout(2))):
        raise RuntimeError("in the loss")
    assert current.step is None


def test_another_thread_does_not_see_the_step():
    """`tf.distribute` runs the replicas of a step in threads."""
    current, seen = CurrentStep(), []
    with current.set(Step(alpha=1.0, layout=PassLayout(2))):
        thread = threading.Thread(target=lambda: seen.append(current.step))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_step_is_frozen_and_collects_its_own_divergences():
    first, second = (Step(alpha=1.0, layout=PassLayout(2)) for _ in range(2))
    first.divergences.append(0.5)
    assert second.divergences == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.alpha = 2.0


def test_an_evaluation_ends_with_the_outermost_context():
    """`evaluate` runs `test_step`."""
    current = CurrentStep()
    assert not current.is_evaluation
    with current.set(is_evaluation=True):
        with current.set(is_evaluation=True):
            assert current.is_evaluation
        assert current.is_evaluation
    assert not current.is_evaluation
