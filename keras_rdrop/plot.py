"""Plots of training histories: loss, divergence, alpha and metrics."""

import functools
import io
from collections.abc import Callable
from typing import Any

import keras


def plot_history(history: Any, alpha: Callable[[int], Any] | None = None, steps_per_epoch: int = 1) -> Any:
    """Plots the logs of `fit`: one panel per quantity, one line per training, dashed lines for validation.

    Training metrics are computed with dropout, so the gap between a solid and a dashed line is not overfitting alone.

    Args:
        history: The `keras.callbacks.History` that `fit` returned, its `history` dict, or a dict from names to either,
            to compare trainings.
        alpha: Optional function that maps a number of steps to alpha, such as a schedule. It gets its own panel.
        steps_per_epoch: Integer. Number of steps per epoch, for `alpha`.

    Returns:
        A `matplotlib.figure.Figure`, which a notebook shows.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `history` holds no epoch.

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
    is_single = isinstance(history, keras.callbacks.History) or all(isinstance(v, list) for v in history.values())
    by_name = {"": history} if is_single else history
    # A training may continue an earlier one, with its `initial_epoch`.
    starts = {name: 1 + (getattr(logs, "epoch", None) or [0])[0] for name, logs in by_name.items()}
    histories = {name: dict(getattr(logs, "history", logs)) for name, logs in by_name.items()}
    if alpha is not None:
        for name, logs in histories.items():
            epochs = range(starts[name], starts[name] + len(next(iter(logs.values()), [])))
            logs["alpha"] = [float(alpha(epoch * steps_per_epoch)) for epoch in epochs]
    logged = {name.removeprefix("val_") for logs in histories.values() for name in logs}
    if not logged - {"alpha"}:
        raise ValueError(f"Expected a `history` of at least one epoch. Received: history={history!r}")
    first = [name for name in ("loss", "divergence", "alpha") if name in logged]
    panels = [*first, *sorted(logged - {*first, "learning_rate"})]
    figure: Any = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, (name, logs) in enumerate(histories.items()):
            for key, style, part in ((panel, "-", "training"), (f"val_{panel}", "--", "validation")):
                if key in logs:
                    epochs = range(starts[name], starts[name] + len(logs[key]))
                    label = f"{name}, {part}" if name else part
                    axes.plot(epochs, logs[key], style, marker="o", color=f"C{index}", label=label)
        axes.set(title=panel, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    figure._repr_png_ = functools.partial(_to_png, figure)  # a notebook without pyplot would show no picture
    return figure


def _to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
