"""Data-parallel training in several processes on PyTorch, for Keras versions before 3.16."""

import os
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_rdrop._keras import distributes_torch
from keras_rdrop._passes.randomness import offset_seeds


class TorchDataParallel(keras.callbacks.Callback):
    """Synchronizes the `fit` calls of the processes that `torchrun` started, on PyTorch.

    Every process trains a copy of the model on its own rows, in batches of the global batch size divided by the number
    of processes. All copies start from the weights of process 0. Gradients are averaged during the backward pass, so
    the copies stay equal. If every process has the same number of rows, an update equals that of the global batch, for
    a loss that is averaged over the rows. The logs of each epoch are averaged too, for all callbacks after this one.
    Each process draws different random numbers, even if all processes use the same seed.

    This callback works for any Keras model, with and without R-Drop. On JAX, and on PyTorch from Keras 3.16
    on, use `keras.distribution` instead. On TensorFlow, use `tf.distribute`.

    It reads the environment that `torchrun` sets, and starts `torch.distributed` unless it is already running: with
    NCCL on GPUs, with gloo on CPUs. Create it before the layers of the model, so that each process creates them on a
    GPU of its own.

    Attributes:
        rank: Integer, the number of this process.
        processes: Integer, the number of processes.

    Raises:
        RuntimeError: If the backend is not PyTorch, if `torchrun` did not start the process, or if the installed Keras
            averages gradients in `fit` itself, as it does from 3.16.
        ValueError: In `fit`, if the processes have different numbers of steps, which would deadlock.

    Example:

    ```python
    from keras_rdrop import TorchDataParallel

    parallel = TorchDataParallel()
    model = keras_rdrop.RDropModel(build_base())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*parallel.shard((x, y)), batch_size=32 // parallel.processes, callbacks=[parallel])
    if parallel.rank == 0:
        model.base.save("model.keras")
    ```
    """

    def __init__(self) -> None:
        super().__init__()
        if keras.backend.backend() != "torch":
            use = "Use `keras.distribution` on JAX and `tf.distribute` on TensorFlow."
            raise RuntimeError(
                f"Expected the PyTorch backend. Received: the backend '{keras.backend.backend()}'. {use}"
            )
        if distributes_torch():
            raise RuntimeError(
                "Expected a version of Keras whose `fit` does not average the gradients of several processes. "
                f"Received: Keras {keras.__version__}. Use `keras.distribution` instead."
            )
        import torch

        self._torch, self._distributed = torch, torch.distributed
        if torch.cuda.is_available():  # Keras creates tensors on the current device
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        if not self._distributed.is_initialized():
            if "RANK" not in os.environ:
                raise RuntimeError(
                    "Expected a process that `torchrun` started, as with `torchrun --nproc-per-node=2 train.py`. "
                    "Received: a process without the environment variable RANK."
                )
            self._distributed.init_process_group()
        self.rank: int = self._distributed.get_rank()
        self.processes: int = self._distributed.get_world_size()
        self._hooks: list[Any] = []
        self._reductions: list[Any] = []

    def shard(self, data: Any) -> Any:
        """Returns the rows of this process: every n-th row for `n` processes, the same number in each of them.

        Args:
            data: Array of shape `(rows, ...)`, or a structure of such arrays.

        Returns:
            The same structure, of arrays of shape `(rows // processes, ...)`.

        Raises:
            ValueError: If a leaf of the structure is not an array, as in a list of texts.

        Example:

        ```python
        x, y = keras_rdrop.TorchDataParallel().shard((x, y))
        ```
        """

        def shard(array: Any) -> Any:
            if array is not None and not hasattr(array, "shape"):
                raise ValueError(f"Expected `data` to be an array or a structure of arrays. Received: a leaf {array!r}")
            return None if array is None else array[self.rank :: self.processes][: len(array) // self.processes]

        return tree.map_structure(shard, data)

    def on_train_begin(self, logs: Any = None) -> None:
        self.on_train_end()  # removes the hooks of a training that ended with an error
        steps: list[Any] = [None] * self.processes
        self._distributed.all_gather_object(steps, self.params["steps"])
        if len(set(steps)) > 1:
            use = "Use `shard`, which gives all processes the same number of rows."
            raise ValueError(f"Expected the same number of steps in every process. Received: steps={steps}. {use}")
        for variable in [*self.model.variables, *self.model.optimizer.variables]:
            variable.value.data = variable.value.data.contiguous()  # NCCL accepts no other layout
            self._distributed.broadcast(variable.value.detach(), src=0)
        seed = [int(self._torch.randint(2**62, ()))]  # `initial_seed` would start each `fit` alike
        self._distributed.broadcast_object_list(seed, src=0)
        self._torch.manual_seed(seed[0] + self.rank)
        offset_seeds(self.model, self.rank)
        parameters = [variable.value for variable in self.model.trainable_variables]
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._average) for parameter in parameters]

    def on_train_end(self, logs: Any = None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._reductions.clear()  # a failed backward pass may leave some

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found: list[Any] = [None] * self.processes
        self._distributed.all_gather_object(found, dict(logs))
        for name in dict.fromkeys(name for process in found for name in process):
            logs[name] = np.mean([process[name] for process in found if name in process], axis=0)

    def _average(self, parameter: Any) -> None:
        if not self._reductions:
            # Hooks cannot see the end of the backward pass. A callback of its engine can, and is queued while it runs.
            self._torch.autograd.Variable._execution_engine.queue_callback(self._wait)
        parameter.grad /= self.processes
        self._reductions.append(self._distributed.all_reduce(parameter.grad, async_op=True))

    def _wait(self) -> None:
        for reduction in self._reductions:
            reduction.wait()
        self._reductions.clear()
