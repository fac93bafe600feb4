"""The training step that is running."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from keras_rdrop._keras import Tensor
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._passes.layout import PassLayout


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the optimizer.

    Attributes:
        alpha: Weight of the divergence.
        layout: The layout of the passes in the batch.
        last_layer: The last layer of the base, if it is computed together with the loss. The predictions of the step
            are then the inputs of this layer.
        divergences: The divergence of each output: the mean over the repeated rows, multiplied by its `loss_weights`.
            `OutputLoss` appends to it.
    """

    alpha: float | Tensor
    layout: PassLayout
    last_layer: LastLayer | None = None
    divergences: list[Tensor] = dataclasses.field(default_factory=list)


class CurrentStep(threading.local):
    """Holds the `Step` that a model is running, and whether it evaluates.

    It is thread-local because `tf.distribute` runs each replica of a step in a thread of its own.

    Attributes:
        step: The step that this thread is running, or `None` outside of training.
        is_evaluation: Whether this thread runs an evaluation.
    """

    step: Step | None = None
    is_evaluation: bool = False

    @contextlib.contextmanager
    def set(self, step: Step | None = None, is_evaluation: bool = False) -> Iterator[None]:
        """Sets both until the context ends. `evaluate` runs `test_step`, so contexts may be nested."""
        previous = self.step, self.is_evaluation
        self.step, self.is_evaluation = step, is_evaluation
        try:
            yield
        finally:
            self.step, self.is_evaluation = previous
