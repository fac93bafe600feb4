"""Training in several processes on PyTorch, for which Keras 3.15 has nothing."""

from typing import Any

import keras
from keras import tree

from keras_rdrop.randomness import part_seeds


class TorchDataParallel(keras.callbacks.Callback):
    """Joins the `fit` of the processes that `torchrun` started into one training, on PyTorch.

    Every process trains a copy of the model on rows of its own, in batches of the global batch size divided by the
    number of processes. All copies start from the weights of process 0. Gradients are averaged while the backward pass
    is still running, so the copies stay equal: with as many rows in every process, an update is that of the global
    batch. The logs of every epoch are averaged as well, for all callbacks after this one. Random numbers differ between
    the processes, whatever their seeds.

    It works for any Keras model and knows nothing of R-Drop. On JAX and TensorFlow, use `keras.distribution` and
    `tf.distribute` instead; where `keras.distribution` knows PyTorch, use that.

    Reads the environment that `torchrun` sets, and starts `torch.distributed` if nothing else did: with NCCL on GPUs,
    with gloo on CPUs.

    Raises:
        RuntimeError: If the backend is not PyTorch.
        ValueError: In `fit`, if the processes have different numbers of steps, of which some would wait for ever.

    Example:

    ```python
    parallel = TorchDataParallel()
    model.fit(*parallel.shard((x, y)), batch_size=32, callbacks=[parallel])
    if parallel.rank == 0:
        model.base.save("model.keras")
    ```
    """

    def __init__(self) -> None:
        super().__init__()
        if keras.backend.backend() != "torch":
            raise RuntimeError(
                f"Expected the PyTorch backend. Received: the backend '{keras.backend.backend()}', for which "
                "`keras.distribution` or `tf.distribute` is made."
            )
        import torch

        self._torch = torch
        self._distributed = torch.distributed
        if not self._distributed.is_initialized():
            self._distributed.init_process_group()
        self.rank: int = self._distributed.get_rank()
        self.processes: int = self._distributed.get_world_size()
        self._hooks: list[Any] = []
        self._reductions: list[Any] = []

    def shard(self, data: Any) -> Any:
        """The rows of this process: every so many-th, and as many as in the other processes.

        Args:
            data: Array of shape `(rows, ...)`, or a structure of such arrays.

        Returns:
            The structure of arrays of shape `(rows // processes, ...)`.
        """

        def rows_of(array: Any) -> Any:
            return None if array is None else array[self.rank :: self.processes][: len(array) // self.processes]

        return tree.map_structure(rows_of, data)

    def on_train_begin(self, logs: Any = None) -> None:
        self._check_steps()
        for variable in [*self.model.variables, *self.model.optimizer.variables]:
            self._distributed.broadcast(variable.value.detach(), src=0)
        self._torch.manual_seed(self._agreed(self._torch.initial_seed()) + self.rank)
        part_seeds(self.model, self.rank)
        self._hooks = [
            variable.value.register_post_accumulate_grad_hook(self._average)
            for variable in self.model.trainable_variables
        ]

    def on_train_end(self, logs: Any = None) -> None:
        for hook in self._hooks:
            hook.remove()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        means = self._torch.tensor([float(value) for value in logs.values()], dtype=self._torch.float64)
        means = means.to(keras.ops.zeros(()).device)
        self._distributed.all_reduce(means)
        logs.update(zip(logs, (means / self.processes).tolist(), strict=True))

    def _average(self, parameter: Any) -> None:
        if not self._reductions:
            # The hooks of PyTorch do not tell when the backward pass ends; its engine does, and only while it runs.
            self._torch.autograd.Variable._execution_engine.queue_callback(self._wait)
        parameter.grad /= self.processes
        self._reductions.append(self._distributed.all_reduce(parameter.grad, async_op=True))

    def _wait(self) -> None:
        for reduction in self._reductions:
            reduction.wait()
        self._reductions.clear()

    def _check_steps(self) -> None:
        steps: list[Any] = [None] * self.processes
        self._distributed.all_gather_object(steps, self.params["steps"])
        if len(set(steps)) > 1:
            raise ValueError(
                f"Expected as many steps in every process: `shard` gives all of them as many rows. Received: {steps}"
            )

    def _agreed(self, value: int) -> int:
        """The value of process 0."""
        values = [value]
        self._distributed.broadcast_object_list(values, src=0)
        return values[0]
