"""Tests that a step is set only while it runs, and only in its own thread."""

import dataclasses
import threading

import pytest

from keras_rdrop._passes.layout import Passes
from keras_rdrop._passes.step import RunningStep, Step


def test_the_step_is_set_only_inside_the_context():
    running, step = RunningStep(), Step(alpha=1.0, passes=Passes(2))
    assert running.step is None
    with running.run(step):
        assert running.step is step
    assert running.step is None


def test_an_error_ends_the_step():
    running = RunningStep()
    with pytest.raises(RuntimeError, match="in the loss"), running.run(Step(alpha=1.0, passes=Passes(2))):
        raise RuntimeError("in the loss")
    assert running.step is None


def test_another_thread_does_not_see_the_step():
    """`tf.distribute` runs the replicas of a step in threads."""
    running, seen = RunningStep(), []
    with running.run(Step(alpha=1.0, passes=Passes(2))):
        thread = threading.Thread(target=lambda: seen.append(running.step))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_step_is_frozen_and_collects_its_own_divergences():
    first, second = (Step(alpha=1.0, passes=Passes(2)) for _ in range(2))
    first.divergences.append(0.5)
    assert second.divergences == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.alpha = 2.0
