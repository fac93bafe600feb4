"""KerasHub tasks: `RDropModel` accepts the same inputs as the task, and the task works after training."""

import keras
import numpy as np
import pytest
from support.table import row, sparse_ce

from keras_rdrop import RDropModel

TEXTS = ["the the", "the", "the the the", "th the", "he the", "the he"]
LABELS = np.array([0, 1, 2, 0, 1, 2])


def trained_task(task, x, y=None, **options):
    """Trains on the inputs of the task, compares the evaluation with the task's, and returns the model."""
    model = RDropModel(task)
    model.compile("adam", sparse_ce(), **options)
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    history = model.fit(x, y, batch_size=2, epochs=2, verbose=0).history
    assert min(history["divergence"]) > 0
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    task.compile("sgd", sparse_ce(), **options)
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), task.evaluate(x, y, verbose=0), rtol=1e-5)
    return model


@row("KerasHub", "BERT classifier on raw strings", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    model = trained_task(tasks.text_classifier(), TEXTS, LABELS, metrics=["accuracy"])
    assert model.predict(TEXTS, verbose=0).shape == (6, 3)


@row("KerasHub", "RoBERTa classifier on raw strings", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    model = trained_task(tasks.roberta_classifier(), TEXTS, LABELS, metrics=["accuracy"])
    assert model.predict(TEXTS, verbose=0).shape == (6, 3)


@row("KerasHub", "ViT classifier", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    x = rng.uniform(size=(6, 8, 8, 3)).astype("float32")
    model = trained_task(tasks.image_classifier(dropout=0.1), x, LABELS, metrics=["accuracy"])
    assert model.predict(x, verbose=0).shape == (6, 3)


@row("KerasHub", "ViT classifier with its default dropout of 0: a warning", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    model = RDropModel(tasks.image_classifier(dropout=0.0))
    model.compile("sgd", sparse_ce())
    with pytest.warns(UserWarning, match="KerasHub models may default to 0"):
        logs = model.train_on_batch(rng.uniform(size=(6, 8, 8, 3)).astype("float32"), LABELS, return_dict=True)
    assert logs["divergence"] < 1e-9


@row("KerasHub", "CausalLM, fit and generate", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    model = trained_task(tasks.causal_lm(), TEXTS, weighted_metrics=["accuracy"])
    assert isinstance(model.base.generate("the", max_length=6), str)


@row("KerasHub", "Seq2SeqLM, fit and generate", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    data = {"encoder_text": np.array(TEXTS), "decoder_text": np.array(TEXTS[::-1])}
    model = trained_task(tasks.seq2seq_lm(), data, weighted_metrics=["accuracy"])
    assert isinstance(model.base.generate("the the", max_length=6), str)


@row("KerasHub", "LoRA leaves the backbone's weights", kinds=["keras_hub"])
def _(kind, rng):
    from support import tasks

    task = tasks.causal_lm()
    task.backbone.enable_lora(2)
    frozen = [v for v in task.variables if not v.trainable and "float" in v.dtype]
    before = [keras.ops.convert_to_numpy(v) for v in frozen]
    model = trained_task(task, TEXTS, weighted_metrics=["accuracy"])
    assert any("lora" in v.name for v in model.trainable_variables)
    for variable, expected in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected)


@row("KerasHub", "the same objects through keras_nlp", kinds=["keras_hub"])
def _(kind, rng):
    import keras_nlp
    from support import tasks

    model = trained_task(tasks.causal_lm(keras_nlp), TEXTS, weighted_metrics=["accuracy"])
    assert isinstance(model.base.generate("the", max_length=6), str)
