"""Tests `plot_history`."""

import sys

import keras
import numpy as np
import pytest
from IPython.core.formatters import PNGFormatter

from keras_rdrop import RDropModel
from keras_rdrop.plot import plot_history


def get_line_data(figure):
    """Returns the data of each line, by panel title and label."""
    return {
        axes.get_title(): {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
        for axes in figure.axes
    }


def test_plot_shows_the_logs_of_fit(rng, tmp_path):
    alpha = keras.optimizers.schedules.PolynomialDecay(0.0, 8, 1.0)
    base = keras.Sequential([keras.layers.Dropout(0.3), keras.layers.Dense(3)])
    model = RDropModel(base, alpha=alpha)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    history = model.fit(x, y, validation_split=0.2, batch_size=8, epochs=2, verbose=0)
    figure = plot_history(history, alpha=alpha, steps_per_epoch=2)
    logs = history.history
    assert get_line_data(figure) == {
        "loss": {"training": logs["loss"], "validation": logs["val_loss"]},
        "divergence": {"training": logs["divergence"]},
        "alpha": {"training": [0.25, 0.5]},
        "accuracy": {"training": logs["accuracy"], "validation": logs["val_accuracy"]},
    }
    figure.savefig(tmp_path / "history.png")


def test_a_training_that_continues_starts_at_its_first_epoch():
    history = keras.callbacks.History()
    history.epoch, history.history = [4, 5], {"loss": [0.3, 0.2]}
    loss, alpha = plot_history(history, alpha=lambda step: step / 10, steps_per_epoch=2).axes
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), [5, 6])
    np.testing.assert_allclose(alpha.lines[0].get_ydata(), [1.0, 1.2])


def test_validation_after_some_epochs_only_raises_an_error():
    history = {"loss": [3.0, 2.0, 1.0, 0.5], "val_loss": [2.0, 1.0]}  # `validation_freq=2`
    with pytest.raises(ValueError, match="one value per epoch.*Received: 2 values of 'val_loss' for 4 epochs"):
        plot_history({"R-Drop": history})


@pytest.mark.parametrize("kind", [tuple, np.array])
def test_the_values_of_a_loaded_history_may_be_tuples_or_arrays(kind):
    assert get_line_data(plot_history({"loss": kind([2.0, 1.0])})) == {"loss": {"training": [2.0, 1.0]}}


@pytest.mark.parametrize(
    "arguments", [{"history": None}, {"alpha": 1.0}, {"steps_per_epoch": 0}, {"steps_per_epoch": 2.5}]
)
def test_invalid_arguments_raise_an_error(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Expected `{name}` to be .*Received: {name}="):
        plot_history(**{"history": {"loss": [1.0]}, **arguments})


def test_a_notebook_shows_the_plot():
    """Without pyplot, nothing tells the notebook how to draw a figure."""
    assert PNGFormatter()(plot_history({"loss": [2.0, 1.0]})).startswith(b"\x89PNG")


def test_several_histories_share_the_panels():
    plain, rdrop = {"loss": [2.0, 1.0], "learning_rate": [0.1, 0.1]}, {"loss": [3.0], "divergence": [0.5]}
    assert get_line_data(plot_history({"plain": plain, "R-Drop": rdrop})) == {
        "loss": {"plain, training": [2.0, 1.0], "R-Drop, training": [3.0]},
        "divergence": {"R-Drop, training": [0.5]},
    }


def test_an_empty_history_or_missing_matplotlib_raises_an_error(monkeypatch):
    with pytest.raises(ValueError, match="Expected a `history` of at least one epoch. Received: history={}"):
        plot_history({})
    with pytest.raises(ValueError, match="Expected a `history` of at least one epoch"):
        plot_history({"loss": []}, alpha=lambda step: step)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_history({"loss": [1.0]})
