"""Options of `compile` and `RDropModel`, and optimizers."""

import keras
import numpy as np
import pytest
from support.bases import CLASSES, Unsupported, build, dense_stack, example_data
from support.table import BACKEND, check, compiled_model, plain_keras, row, sparse_ce

from keras_rdrop import RDropModel

for _name, (_loss, _units, _activation, _targets) in {
    'loss="crossentropy", binary': ("crossentropy", 1, "sigmoid", lambda y: (y > 0)[:, None]),
    'loss="crossentropy", integers': ("crossentropy", CLASSES, "softmax", lambda y: y),
    'loss="CE", one-hot': ("CE", CLASSES, "softmax", lambda y: np.eye(CLASSES)[y]),
    'loss="bce"': ("bce", 1, "sigmoid", lambda y: (y > 0)[:, None]),
    'loss="MeanSquaredError"': ("MeanSquaredError", CLASSES, None, lambda y: np.eye(CLASSES)[y]),
}.items():

    @row("compile", _name, kinds=["functional", "subclassed"], slow=True)
    def _loss_row(kind, rng, loss=_loss, units=_units, activation=_activation, targets=_targets):
        x, y = example_data(kind, rng)
        check(lambda: build(kind, lambda: dense_stack(units, None, activation)), x, targets(y), loss=loss)


for _name, _options in {
    "jit_compile=False": {"jit_compile": False},
    "run_eagerly": {"run_eagerly": True},
    "metrics and weighted_metrics": {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]},
}.items():

    @row("compile", _name)
    def _compile_row(kind, rng, options=_options):
        check(lambda: build(kind), *example_data(kind, rng), np.ones(8, "float32"), **options)


@row("compile", 'jit_compile="auto"', kinds=["functional", "subclassed"], slow=True)
def _(kind, rng):
    check(lambda: build(kind), *example_data(kind, rng), jit_compile="auto")


@row("compile", "jit_compile=True", slow=True)
def _(kind, rng):
    if BACKEND == "torch":
        import torch

        torch.compiler.reset()  # otherwise PyTorch stops compiling after eight models
        plain = build(kind)
        plain.compile("sgd", sparse_ce(), metrics=[], jit_compile=True)
        with plain_keras():
            keras.Model.train_on_batch(plain, *example_data(kind, rng))
    check(lambda: build(kind), *example_data(kind, rng), jit_compile=True)


@row("compile", "steps_per_execution")
def _(kind, rng):
    plain = build(kind)
    plain.compile("sgd", sparse_ce(), metrics=[], steps_per_execution=2)
    with plain_keras():
        keras.Model.fit(plain, *example_data(kind, rng), batch_size=2, verbose=0)
    model, x, y = compiled_model(kind, rng, steps_per_execution=2)
    assert model.fit(x, y, batch_size=2, verbose=0).history["divergence"][0] > 0
    assert int(model.optimizer.iterations) == 4


for _policy in ("mixed_float16", "mixed_bfloat16"):

    @row("compile", _policy)
    def _policy_row(kind, rng, policy=_policy):
        keras.config.set_dtype_policy(policy)
        try:
            model = check(lambda: build(kind), *example_data(kind, rng), rtol=3e-2)
            assert model.dtype_policy.name == policy
            scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
            assert scaled == (policy == "mixed_float16")
        finally:
            keras.config.set_dtype_policy("float32")


@row("compile", "float64")
def _(kind, rng):
    if BACKEND == "jax":
        raise Unsupported("JAX has no float64 unless it is enabled at startup")
    keras.config.set_dtype_policy("float64")
    try:
        check(lambda: build(kind), *example_data(kind, rng))
    finally:
        keras.config.set_dtype_policy("float32")


@row("compile", "RematScope")
def _(kind, rng):
    def stack():
        with keras.RematScope(mode="full"):
            # On TensorFlow and JAX, Keras 3.15 cannot rematerialize layers that take `training`.
            rematerialized = [keras.layers.LayerNormalization(), keras.layers.Activation("relu")]
        first, dropout, last = dense_stack()
        return [first, dropout, *rematerialized, last]

    check(lambda: build(kind, stack), *example_data(kind, rng))


@row("compile", "auto_scale_loss=False", kinds=["functional"])
def _(kind, rng):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = check(lambda: build(kind), *example_data(kind, rng), rtol=3e-2, auto_scale_loss=False)
        assert not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    finally:
        keras.config.set_dtype_policy("float32")


@row("compile", "a second time, with another loss")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng)
    model.train_on_batch(x, y)
    model.compile("sgd", "mse")
    logs = model.train_on_batch(x, np.eye(CLASSES)[y], return_dict=True)
    assert logs["divergence"] > 0
    assert model.loss == "mse"


for _name, _optimizer in {
    "gradient accumulation": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    "EMA": lambda: keras.optimizers.SGD(0.1, use_ema=True),
    "clipping and weight decay": lambda: keras.optimizers.AdamW(0.1, clipnorm=0.1, weight_decay=0.1),
}.items():

    @row("Optimizer", _name)
    def _optimizer_row(kind, rng, optimizer=_optimizer):
        # TensorFlow clips the gradient of an embedding by the norm of its slices, before it adds up those of one token.
        # With a shared prefix the embedding runs once per row, so that norm would differ from plain Keras.
        check(lambda: build(kind), *example_data(kind, rng), optimizer=optimizer, share_prefix=False)


@row("Optimizer", "frozen layers")
def _(kind, rng):
    base = build(kind)
    frozen = base.backbone if kind == "keras_hub" else base.layers[1 if kind in ("functional", "nested") else 0]
    frozen.trainable = False
    before = frozen.get_weights()
    model = RDropModel(base)
    model.compile("sgd", sparse_ce())
    model.fit(*example_data(kind, rng), verbose=0)
    for weight, expected in zip(frozen.get_weights(), before, strict=True):
        if "int" not in str(expected.dtype):  # seed generators advance
            np.testing.assert_array_equal(weight, expected)


@row("Optimizer", "LossScaleOptimizer skips an overflow")
def _(kind, rng):
    model, x, y = compiled_model(kind, rng, optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.train_on_batch(x, y, np.full(8, np.inf, "float32"))
    for variable, expected in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected)
    assert int(model.optimizer.iterations) == 0


@row("Options", "share_prefix=False")
def _(kind, rng):
    check(lambda: build(kind), *example_data(kind, rng), share_prefix=False)


@row("Options", "fuse_head=True")
def _(kind, rng):
    if kind in ("functional", "sequential", "keras_hub"):
        check(lambda: build(kind), *example_data(kind, rng), fuse_head=True)
        return
    with pytest.raises(ValueError, match="Expected a `base` whose last layer can be computed with the loss"):
        check(lambda: build(kind), *example_data(kind, rng), fuse_head=True)
    raise Unsupported("the last layer is nested or called in code: an error before training says so")
