"""Plots of training histories: loss, divergence, alpha and metrics."""

import functools
import io
from collections.abc import Callable
from typing import Any

import keras

from keras_rdrop._arguments import check, is_integer


def plot_history(history: Any, alpha: Callable[[int], Any] | None = None, steps_per_epoch: int = 1) -> Any:
    """Plots the logs of `fit`: one panel per quantity, one line per training, dashed lines for validation.

    Training metrics are computed with dropout, so the gap between a solid and a dashed line is not overfitting alone.

    Args:
        history: The `keras.callbacks.History` that `fit` returned, its `history` dict, or a dict from names to either,
            to compare trainings.
        alpha: Optional function that maps a number of steps to alpha, such as a schedule. It gets its own panel.
        steps_per_epoch: Integer `>= 1`. Number of steps per epoch, for `alpha`.

    Returns:
        A `matplotlib.figure.Figure`, which a notebook shows.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If an argument is not as described above, if `history` holds no epoch, or if only some epochs were
            validated, because a history does not say which ones.

    Example:

    ```python
    history = model.fit(x, y, validation_split=0.1, epochs=3)
    keras_rdrop.plot.plot_history(history).savefig("history.png")
    ```
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot_history` requires matplotlib. Install it with `pip install matplotlib`.") from error
    logs_types = (dict, keras.callbacks.History)
    check("history", history, isinstance(history, logs_types), "a `keras.callbacks.History` or a dict")
    check("alpha", alpha, alpha is None or callable(alpha), "a function of the number of steps, or None")
    check("steps_per_epoch", steps_per_epoch, is_integer(steps_per_epoch, 1), "a positive integer")
    is_single = not isinstance(history, dict) or not any(isinstance(logs, logs_types) for logs in history.values())
    by_name = {"": history} if is_single else history
    histories, epochs = {}, {}
    for name, logs in by_name.items():
        histories[name] = dict(getattr(logs, "history", logs))
        start = 1 + (getattr(logs, "epoch", None) or [0])[0]  # a training may continue an earlier one
        epochs[name] = range(start, start + max(map(len, histories[name].values()), default=0))
        for key, values in histories[name].items():
            if len(values) != len(epochs[name]):
                raise ValueError(
                    "Expected a `history` with one value per epoch. With a `validation_freq`, it does not hold the "
                    "epochs of the validation, so leave the names that begin with 'val_' out. "
                    f"Received: {len(values)} values of '{key}' for {len(epochs[name])} epochs"
                )
        if alpha is not None:
            histories[name]["alpha"] = [float(alpha(epoch * steps_per_epoch)) for epoch in epochs[name]]
    logged = {name.removeprefix("val_") for logs in histories.values() for name in logs}
    if not any(epochs.values()):
        raise ValueError(f"Expected a `history` of at least one epoch. Received: history={history!r}")
    first = [name for name in ("loss", "divergence", "alpha") if name in logged]
    panels = [*first, *sorted(logged - {*first, "learning_rate"})]
    figure: Any = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, (name, logs) in enumerate(histories.items()):
            for key, style, part in ((panel, "-", "training"), (f"val_{panel}", "--", "validation")):
                if key in logs:
                    label = f"{name}, {part}" if name else part
                    axes.plot(epochs[name], logs[key], style, marker="o", color=f"C{index}", label=label)
        axes.set(title=panel, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    figure._repr_png_ = functools.partial(_to_png, figure)  # a notebook without pyplot would show no picture
    return figure


def _to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
