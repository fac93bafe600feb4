"""Runs the examples at their smallest size, on made-up data or on the mock data of tensorflow_datasets."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from io import StringIO
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from support.scripts import ROOT, import_from

from keras_rdrop import recipes

beam_search, data, distribution, home_assistant, report, scores, training = (
    import_from("examples", f"common.{name}")
    for name in ("beam_search", "data", "distribution", "home_assistant", "report", "scores", "training")
)

SCRIPTS = ["translation", "summarization", "language_modeling", "text_classification", "image_classification"]
PREPARED = [name for name, recipe in recipes.RECIPES.items() if recipe.tfds]
TEXTS = ["a good film", "the bad movie", "good movie", "bad film"] * 40


def three_splits(*columns):
    return dict.fromkeys(("train", "validation", "test"), columns)


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    """Replaces the data that the examples fetch with pip."""
    scripts = {name: importlib.import_module(name) for name in SCRIPTS}
    labels = np.array([1, 0, 1, 0] * 40, "int32")
    snippets = {"classification": (labels, ["negative", "positive"]), "regression": (labels * 2.0 - 1.0, None)}
    monkeypatch.setattr(
        scripts["text_classification"],
        "load_snippets",
        lambda subject, task: (three_splits(TEXTS, snippets[task][0]), snippets[task][1]),
    )
    monkeypatch.setattr(scripts["translation"], "load_messages", lambda *_: three_splits(TEXTS, TEXTS[::-1]))
    monkeypatch.setattr(scripts["summarization"], "load_docstrings", lambda: three_splits(TEXTS, TEXTS))
    images = np.random.default_rng(0).integers(0, 256, (160, 28, 28, 1)).astype("uint8")
    load_images = scripts["image_classification"].load_images
    monkeypatch.setattr(
        scripts["image_classification"],
        "load_images",
        lambda args: load_images(args) if args.dataset else (three_splits(images, labels), ["0", "1"]),
    )
    yield
    keras.config.set_dtype_policy("float32")


def run(script, *argv):
    importlib.import_module(script).main(["--smoke", *map(str, argv)])


def test_minimal(tmp_path, capsys):
    importlib.import_module("minimal").main(str(tmp_path / "digits.keras"))
    accuracy = re.search(r"test accuracy (\S+)", capsys.readouterr().out)[1]
    assert float(accuracy) > 0.95
    trained = keras.models.load_model(tmp_path / "digits.keras")
    assert isinstance(trained, keras.Sequential)
    assert trained.output_shape == (None, 10)


@pytest.mark.parametrize(
    "script",
    [
        # Compiling takes up to a minute per script, except on PyTorch, which does not compile.
        pytest.param(
            name,
            marks=pytest.mark.slow if name != "text_classification" and keras.backend.backend() != "torch" else [],
        )
        for name in SCRIPTS
    ],
)
def test_smoke(script, tmp_path, capsys):
    compare = ["--compare", "--unlabelled", 32] if script == "text_classification" else []
    # Without dropout, the passes differ only if the network has the stochastic depth.
    depth = ["--stochastic-depth", 0.5, "--dropout", 0] if script == "image_classification" else []
    run(script, "--output", tmp_path, *compare, *depth)
    printed = capsys.readouterr().out
    if compare:  # plain trains on 64 labelled rows, R-Drop also on 32 unlabelled rows
        trained = re.findall(r"(.*): (\d+) epochs of (\d+) steps", printed)
        assert trained == [("plain", "1", "2"), ("plain, longer", "2", "2"), ("R-Drop", "1", "3")]
    assert "R-Drop" in printed
    assert "The saved model" in printed
    # `capsys` is no terminal: one line per epoch, without the control characters of a progress bar.
    assert len(re.findall(r"^\d+/\d+ - .*loss", printed, re.MULTILINE)) == 1 + 3 * bool(compare)  # epochs
    assert re.search(r"[\b\r\x1b]", printed) is None
    written = json.loads((tmp_path / "report.json").read_text())
    assert [row["arm"] for row in written["results"]] == (["plain", "plain, longer"] if compare else []) + ["R-Drop"]
    assert all(np.isfinite(value) for row in written["results"] for value in row.values() if value != row["arm"])
    assert min(written["histories"]["R-Drop"]["divergence"]) > 0
    assert written["peak_memory_gb"] > 0.1
    pictures = ["learning_curves.png", *(["mistakes.png"] if script == "image_classification" else [])]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    keras.models.load_model(tmp_path / "model.keras", compile=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_gets_a_progress_bar(terminal, tmp_path, monkeypatch):
    args = importlib.import_module("text_classification").parse_arguments(["--smoke", "--output", str(tmp_path)])
    monkeypatch.setattr("sys.stdout", StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    run = training.Run(args, "R-Drop", (np.zeros((64, 1)), np.zeros(64)))
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(**run.data, verbose=run.verbose)
    assert ("━" in sys.stdout.getvalue()) == terminal


@pytest.mark.parametrize("name", PREPARED)
def test_data_that_are_not_prepared(name, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        pytest.fail("Without a network, tensorflow_datasets tries again for minutes.")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
    recipe = recipes.RECIPES[name]
    with pytest.raises(SystemExit) as error:
        importlib.import_module(recipe.task).main(
            ["--recipe", name, "--data-dir", str(tmp_path), "--output", str(tmp_path / "run")]
        )
    command = re.search(r'python -c "(.*)"', str(error.value))[1]
    assert command == f"import tensorflow_datasets as tfds; tfds.load('{recipe.tfds}', data_dir='{tmp_path}')"


@pytest.mark.parametrize(
    ("script", "recipe"), [("translation", "iwslt14-fr-en"), ("language_modeling", "wikitext-103")]
)
def test_data_that_tfds_does_not_have(script, recipe, tmp_path):
    with pytest.raises(SystemExit, match="--text-dir"):
        run(script, "--recipe", recipe, "--output", tmp_path)
    with pytest.raises(SystemExit, match="There is no file .*--text-dir"):
        run(script, "--recipe", recipe, "--output", tmp_path, "--text-dir", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPARED)
def test_recipes_on_data_of_tfds(name, tmp_path):
    """Calls the real `tfds.load`, on mock data with the features of the real data."""
    recipe = recipes.RECIPES[name]
    with tfds.testing.mock_data(num_examples=24):
        run(recipe.task, "--recipe", name, "--output", tmp_path, "--steps", 2, "--rows", 16, "--test-rows", 4)
    settings = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert settings["dataset"] == recipe.tfds
    assert settings["learning_rate"] == (recipe.learning_rate or 2e-3)


@pytest.mark.slow
def test_wiki40b(tmp_path):
    with tfds.testing.mock_data(num_examples=24):
        run("language_modeling", "--dataset", "wiki40b/en", "--output", tmp_path, "--steps", 2)


@pytest.mark.slow
def test_data_prepared_on_disk(tmp_path):
    """Mocks nothing: tensorflow_datasets writes the files and reads them."""
    features = tfds.builder("glue/rte", data_dir=tmp_path).info.features
    rows = [
        (index, {"sentence1": text, "sentence2": "a film", "label": index % 2, "idx": index})
        for index, text in enumerate(TEXTS)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="glue", version="2.0.0", config="rte", features=features, data_dir=tmp_path,
        split_datasets=dict.fromkeys(("train", "validation", "test"), rows),
    )  # fmt: skip
    run("text_classification", "--recipe", "glue-rte", "--data-dir", tmp_path, "--output", tmp_path, "--steps", 2)
    assert (tmp_path / "model.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["translation", "language_modeling"])
def test_text_files(script, tmp_path):
    names = [f"wiki.{part}.tokens" for part in ("train", "valid", "test")]
    names += [f"{part}.{language}" for part in ("train", "valid", "test") for language in ("de", "en")]
    for name in names:
        (tmp_path / name).write_text("\n".join(TEXTS) + "\n")
    recipe = {"translation": "iwslt14-de-en", "language_modeling": "wikitext-103"}[script]
    run(script, "--recipe", recipe, "--text-dir", tmp_path, "--output", tmp_path, "--steps", 2)
    assert (tmp_path / "report.json").exists()


def test_a_recipe_sets_what_the_paper_used():
    parse = importlib.import_module("summarization").parse_arguments
    args, recipe = parse(["--recipe", "cnn-dailymail", "--epochs", "1"]), recipes.RECIPES["cnn-dailymail"]
    for name in ("alpha", "dropout", "learning_rate", "schedule", "warmup_steps", "steps", "label_smoothing"):
        assert getattr(args, name) == getattr(recipe, name)
    assert args.batch_size * args.sequence_length == recipe.batch_tokens
    assert parse(["--recipe", "cnn-dailymail", "--alpha", "2"]).alpha == 2.0
    assert parse([]).dataset is None
    optimizer = training.build_optimizer(args, args.steps)
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert (optimizer.weight_decay, optimizer.global_clipnorm) == (0.01, 0.1)


def small_translator(args, vocabulary_size):
    """Builds a model that compiles quickly, in place of the transformer."""
    source, target = (keras.Input((args.sequence_length,), dtype="int32", name=name) for name in ("source", "target"))
    embedded = keras.layers.Dropout(0.5)(keras.layers.Embedding(vocabulary_size, 4)(target))
    return keras.Model({"source": source, "target": target}, keras.layers.Dense(vocabulary_size)(embedded))


def test_bleu_is_that_of_the_command_line(tmp_path, monkeypatch):
    script = importlib.import_module("translation")
    references = ["der Film war gut, und er war lang", 'das Buch war "alt" und 3.5 cm dick'] * 4
    translations = [text.replace(" war", "", index % 2) for index, text in enumerate(references)]
    monkeypatch.setattr(script, "load_messages", lambda *_: three_splits(references, references))
    monkeypatch.setattr(script, "translate", lambda *_: translations)
    monkeypatch.setattr(script, "build_translator", small_translator)
    run("translation", "--output", tmp_path, "--test-rows", 8)
    written = json.loads((tmp_path / "report.json").read_text())
    command = [sys.executable, "-m", "sacrebleu", tmp_path / "references.txt", "-i", tmp_path / "translations.txt"]
    done = subprocess.run([*command, "-w", "6"], check=True, capture_output=True, text=True)
    theirs = json.loads(done.stdout)
    assert written["results"][0]["BLEU"] == pytest.approx(theirs["score"], abs=1e-6)
    assert 20 < theirs["score"] < 90
    assert written["signatures"]["BLEU"] == theirs["signature"]


@pytest.mark.slow
def test_regression(tmp_path):
    run("text_classification", "--output", tmp_path, "--task", "regression")
    (row,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert {"Pearson", "Spearman", "RMSE"} <= set(row)


def test_smoothed_labels(tmp_path):
    """The loss is at least the entropy of the labels, which is 0 unless they are smoothed."""
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    losses = {}
    for smoothing in (0, 0.5):
        flags = ["--plain", "--learning-rate", 0.02, "--epochs", 12, "--label-smoothing", smoothing]
        run("text_classification", *flags, "--output", tmp_path)
        history = json.loads((tmp_path / "report.json").read_text())["histories"]["plain"]
        losses[smoothing] = history["val_loss"][-1]
    assert losses[0] < entropy < losses[0.5]
    with pytest.raises(SystemExit, match="--label-smoothing needs labels that are classes"):
        run("text_classification", "--task", "regression", "--label-smoothing", 0.1, "--output", tmp_path)


def test_the_classifier_has_the_weights_of_its_network_with_stochastic_depth(rng):
    script = importlib.import_module("image_classification")
    args = script.parse_arguments(["--smoke", "--dropout", "0"])
    classifier = script.build_classifier(args, script.build_preprocessor(args), classes=2)
    network = script.with_stochastic_depth(classifier, rate=0.5)
    images = rng.normal(size=(8, 8, 8, 1)).astype("float32")
    expected = keras.Model(classifier.input, classifier.output).predict(images)
    np.testing.assert_array_equal(network.predict(images), expected)
    assert not np.allclose(keras.ops.convert_to_numpy(network(images, training=True)), expected, atol=1e-3)
    assert {weight.path for weight in network.trainable_weights} == {w.path for w in classifier.trainable_weights}


def test_small_digits():
    script = importlib.reload(importlib.import_module("image_classification"))
    splits, names = script.load_images(script.parse_arguments(["--small-data", "digits"]))
    images, labels = map(np.concatenate, zip(*splits.values(), strict=True))
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (0, 255)
    assert set(labels) == set(range(len(names)))


def test_titles_and_translations_of_messages(tmp_path, monkeypatch):
    folder = tmp_path / "homeassistant" / "components" / "lamp" / "translations"
    folder.mkdir(parents=True)
    light = {"name": "Turn on lamp", "description": "Turns a lamp on at once."}
    english = {"light": light, "dim": {"title": "Dim it", "description": "Makes a lamp less bright."}}
    english["markup"] = {"name": "Set color", "description": "Sets the {color} of a lamp."}
    english["long"] = {"message": "This message has seven words in it."}
    english["short"] = {"name": "Color", "description": "Sets the color of a lamp."}
    french = {"light": {"name": "Allumer la lampe", "description": "Allume une lampe tout de suite."}}
    french["long"] = {"message": "Ce message a sept mots."}
    for language, messages in (("en", english), ("fr", french)):
        (folder / f"{language}.json").write_text(json.dumps(messages))
    monkeypatch.setattr(home_assistant, "fetch_package", lambda *_, **__: tmp_path)

    def pairs(splits):
        return {pair for columns in splits.values() for pair in zip(*columns, strict=True)}

    titles = {
        (message["description"], title) for message, title in ((light, "Turn on lamp"), (english["dim"], "Dim it"))
    }
    assert pairs(home_assistant.load_titles()) == titles
    translated = {(light[key], french["light"][key]) for key in light}
    assert pairs(home_assistant.load_messages("en", "fr")) == translated


def test_docstrings_of_one_file_are_in_one_split():
    script = importlib.import_module("language_modeling")
    splits = script.load_texts(script.parse_arguments(["--small-data", "docstrings"]))
    lines = {split: {text.partition("\n")[0] for text in texts} for split, (texts,) in splits.items()}
    assert len(set.union(*lines.values())) == sum(map(len, lines.values())) > 1000


def test_the_table_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ("accuracy", "NLL", "ECE", "F1", "Matthews", "row passes", "seconds per step", "seconds")
    rows = [{"arm": arm, **dict.fromkeys(names, value)} for arm, value in [("plain", 0.12345), ("R-Drop", 1234567.8)]]
    report.print_table("Snippets about movies, 1000 test rows, seed 0, tensorflow", rows)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    cells = [re.split(r" *[┃│] *", line)[1:-1] for line in printed.splitlines() if re.search("[┃│]", line)]
    assert cells == [["arm", "plain", "R-Drop"], *[[name, "0.1235", "1,234,568"] for name in names]]


def test_the_comparison_names_each_arm_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arms = {"plain": 0.71, "plain, longer": 0.72, "R-Drop": 0.73}
    passes = {"plain": 800, "plain, longer": 1600, "R-Drop": 1600}
    rows = [
        {"arm": arm, "accuracy": value, "NLL": 1 - value, "F1": value, "row passes": passes[arm]}
        for arm, value in arms.items()
    ]
    report.print_comparison(rows)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert " ".join(printed.split()).startswith(
        "R-Drop has accuracy 0.73 and NLL 0.27 after 1,600 row passes. Plain training has accuracy 0.71 and NLL 0.29 "
        "after 800 row passes, and accuracy 0.72 and NLL 0.28 after 1,600 row passes. One seed proves nothing"
    )


@pytest.mark.slow
def test_resuming_goes_on_from_the_last_epoch(tmp_path, monkeypatch, capsys):
    on_epoch_end = training.Backup.on_epoch_end

    def interrupt(backup, epoch, logs=None):
        on_epoch_end(backup, epoch, logs)
        if epoch == 1 and "R-Drop" in backup.path.name:
            raise KeyboardInterrupt

    argv = ["--output", tmp_path, "--resume", "--epochs", 3, "--compare"]
    with monkeypatch.context() as patch:
        patch.setattr(training.Backup, "on_epoch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("text_classification", *argv)
    capsys.readouterr()
    run("text_classification", *argv)
    printed = capsys.readouterr().out
    assert "plain: 3 epochs" not in printed  # it had already finished, as had the next
    assert "plain, longer: 6 epochs" not in printed
    histories = json.loads((tmp_path / "report.json").read_text())["histories"]
    assert {arm: len(history["loss"]) for arm, history in histories.items()} == {
        "plain": 3,
        "plain, longer": 6,
        "R-Drop": 1,
    }
    run("text_classification", "--output", tmp_path, "--resume", "--epochs", 1, "--plain")
    assert "plain: 1 epochs" in capsys.readouterr().out  # without --compare, a finished arm is trained again


@pytest.mark.slow
def test_mixed_precision_and_tensorboard(tmp_path):
    run("text_classification", "--output", tmp_path, "--mixed-precision", "--tensorboard")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert list((tmp_path / "tensorboard" / "R-Drop").rglob("events.*"))


@pytest.mark.slow
def test_distribution(tmp_path):
    """Trains on two devices, in a new process because the backend reads their number at its start."""
    code = """
import sys
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    cpu, = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.distribute.MirroredStrategy = lambda real=tf.distribute.MirroredStrategy: real(["CPU:0", "CPU:1"])
import numpy as np, text_classification
texts, labels = ["a good film", "the bad movie"] * 80, np.array([1, 0] * 80, "int32")
splits = dict.fromkeys(("train", "validation", "test"), (texts, labels))
text_classification.load_snippets = lambda subject, task: (splits, ["negative", "positive"])
text_classification.main(["--smoke", "--distribute", "--output", sys.argv[2]])
"""
    backend = keras.backend.backend()
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "examples")]),
    }
    (tmp_path / "example.py").write_text(code)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if backend == "torch" else []
    command = [sys.executable, *launcher, tmp_path / "example.py", backend, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("R-Drop: 1 epochs of 2 steps") == 1  # only the first process prints
    (result,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert result["row passes"] == 2 * 64


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="elsewhere one process has all devices")
def test_processes_of_pytorch(monkeypatch):
    """Without torchrun, the error says how to start. With it, the processes train on different batches."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="torchrun --nproc-per-node 2"):
        run("text_classification", "--distribute")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit, match="--resume backs up one process"):
        run("text_classification", "--distribute", "--resume")

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return index

    import tensorflow as tf

    processes = [SimpleNamespace(rank=rank, processes=2) for rank in range(2)]
    for batches in (Batches(), tf.data.Dataset.range(5)):
        first, second = (distribution.shard(batches, process) for process in processes)
        assert len(first) == len(second) == 2
        taken = [int(batch) for part in (first, second) for batch in itertools.islice(part, 2)]
        assert taken == [0, 2, 1, 3]


def test_the_padding_of_the_language_model_is_not_its_end():
    """Otherwise `generate` would take the padding after the prompt for the end token, and stop there."""
    script = importlib.import_module("language_modeling")
    tokenizer = script.build_tokenizer(SimpleNamespace(vocabulary_size=300), TEXTS)
    assert tokenizer.pad_token_id != tokenizer.end_token_id
    assert tokenizer.detokenize(tokenizer("a good film")) == "a good film"


def test_the_small_model_reads_the_text_from_the_start():
    """Otherwise the decoder ignores the text, and writes the same summary for all texts."""
    script = importlib.import_module("summarization")
    args = script.parse_arguments(["--smoke"])
    preprocessor = script.build_preprocessor(args, (TEXTS, TEXTS))
    model = script.build_summarizer(args, preprocessor)
    inputs, *_ = preprocessor({"encoder_text": ["a good film", "the bad movie"], "decoder_text": ["film"] * 2})
    first, second = keras.ops.convert_to_numpy(model(inputs))
    assert np.std(first - second) > 0.05 * np.std(first)


def test_beam_search_without_pruning_equals_exhaustive_search(rng):
    length, tokens, beams = 4, 4, 64  # one beam per possible sequence, so that nothing is pruned
    start, end = 0, 1
    table = np.log(rng.dirichlet(np.ones(tokens), (2, tokens, length)))  # by row, last token and position

    def log_probabilities(prefixes, step):
        rows = np.arange(len(prefixes)) // beams
        return table[rows, prefixes[:, step], step]

    found = beam_search.beam_search(log_probabilities, 2, length, beams, start, end)
    for row in range(2):
        best = (-np.inf, None)
        for words in range(length):
            for sequence in itertools.product((2, 3), repeat=words):
                path = [start, *sequence, end]
                score = sum(table[row, path[i], i, path[i + 1]] for i in range(words + 1)) / (words + 1)
                best = max(best, (score, list(sequence)))
        assert found[row] == best[1]


def test_expected_calibration_error(rng):
    probabilities = rng.dirichlet(np.ones(3), 500)
    labels = rng.integers(0, 3, 500)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = [row for row in range(500) if low <= probabilities[row].max() < low + 1 / 15]
        if inside:
            accuracy = np.mean([probabilities[row].argmax() == labels[row] for row in inside])
            expected += len(inside) / 500 * abs(accuracy - np.mean([probabilities[row].max() for row in inside]))
    assert scores.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("decay", "middle", "end"),
    [("cosine", 0.5, 0), ("linear", 0.5, 0), ("inverse_sqrt", 0.4264, 0.3162), ("constant", 1, 1)],
)
def test_warm_up(decay, middle, end):
    schedule = training.WarmUp(2.0, 10, 100, decay)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0, 1, 2, 2 * middle, 2 * end], atol=1e-4)


def test_fetch_package_offline_says_what_to_do_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="Could not download no-such-package==1.0"):
        data.fetch_package("no-such-package==1.0", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_fetch_package_reads_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    (tmp_path / f"package==1.0-{'0' * 12}").mkdir()
    assert data.fetch_package("package==1.0", "0" * 64) == tmp_path / f"package==1.0-{'0' * 12}"
