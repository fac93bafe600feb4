"""The training step that is running."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from keras_rdrop._keras import Tensor
from keras_rdrop._kernels.last_layer import LastLayer
from keras_rdrop._passes.layout import Passes


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the optimizer.

    Attributes:
        alpha: Weight of the divergence.
        passes: The layout of the passes in the widened batch.
        rows: Number of rows in the batch before it was widened, or `None` if all rows go through all passes.
        last_layer: The last layer of the base, if it is computed together with the loss. The predictions of the step
            are then the features that this layer takes.
        divergences: The divergence of each output, multiplied by its `loss_weights`. The losses append to it.
    """

    alpha: float | Tensor
    passes: Passes
    rows: int | Tensor | None = None
    last_layer: LastLayer | None = None
    divergences: list[Tensor] = dataclasses.field(default_factory=list)


class RunningStep(threading.local):
    """Holds the `Step` of a model while it runs.

    It is thread-local because `tf.distribute` runs the replicas of a step in threads that take turns.

    Attributes:
        step: The step that runs in this thread, or `None` outside of training.
    """

    step: Step | None = None

    @contextlib.contextmanager
    def run(self, step: Step) -> Iterator[None]:
        self.step = step
        try:
            yield
        finally:
            self.step = None
