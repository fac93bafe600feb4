"""Tests the recipes, their table, and the conversion of `alpha`."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from keras_rdrop.recipes import RECIPES, __main__, convert_alpha

SOURCED_FIELDS = [
    "alpha",
    "dropout",
    "optimizer",
    "optimizer_arguments",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "batch_size",
    "batch_tokens",
    "steps",
    "label_smoothing",
    "baseline",
    "rdrop",
]


def test_recipes_cover_the_data_sets_of_the_paper():
    families = [recipe.task for recipe in RECIPES.values()]
    assert {family: families.count(family) for family in families} == {
        "translation": 10,
        "summarization": 1,
        "language_modeling": 1,
        "text_classification": 8,
        "image_classification": 2,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_exactly_the_stated_fields_have_a_source(name):
    recipe = RECIPES[name]
    assert set(recipe.sources) == {field for field in SOURCED_FIELDS if getattr(recipe, field) is not None}
    for results in (recipe.baseline, recipe.rdrop):
        assert results is None or len(results) == len(recipe.metric)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.alpha = 1.0


def kl_divergences(logits):
    """Returns KL(P1 || P2) and KL(P2 || P1), each with one value per row."""
    log_p, log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1), (np.exp(log_q) * (log_q - log_p)).sum(-1)


# The loss of each codebase, from the cross-entropy and both KL divergences per row, the alpha `a` of the codebase, and
# the number of classes `c`. Both passes have the same cross-entropy `ce`, because some codebases count only one pass.
CODEBASE_LOSSES = {
    "fairseq": lambda ce, kl, a, c: (2 * ce).mean() + a * (kl[0] + kl[1]).mean() / 2,
    "official-bert": lambda ce, kl, a, c: 2 * ce.mean() + a * (kl[0].sum() + kl[1].sum()) / 2,
    "official-roberta": lambda ce, kl, a, c: 0.5 * ce.mean() + a * (kl[0].sum() + kl[1].sum()) / 2,
    "official-vit": lambda ce, kl, a, c: 2 * ce.mean() + a * (kl[0].sum() + kl[1].sum()),
    "official-readme": lambda ce, kl, a, c: 0.5 * 2 * ce.mean() + a * (kl[0].sum() + kl[1].sum()) / 2,
    "bojone": lambda ce, kl, a, c: ce.mean() + a * (kl[0] + kl[1]).mean() / 4,
    "bert4torch": lambda ce, kl, a, c: ce.mean() + a * (kl[0] / c + kl[1] / c).mean() / 4,
}


@pytest.mark.parametrize("source", CODEBASE_LOSSES)
@pytest.mark.parametrize(("batch_size", "classes"), [(4, 3), (7, 10)])
def test_convert_alpha_matches_the_loss_of_each_codebase(source, batch_size, classes, rng):
    ce = rng.random(batch_size)
    kl = kl_divergences(rng.normal(size=(2, batch_size, classes)))
    codebase_loss = CODEBASE_LOSSES[source](ce, kl, 0.5, classes)
    alpha = convert_alpha(0.5, source, batch_size=batch_size, classes=classes)
    rdrop_loss = (2 * ce + alpha * (kl[0] + kl[1]) / 2).mean()
    # The losses differ by a constant factor, the ratio of their cross-entropy terms.
    scale = 2 * ce.mean() / CODEBASE_LOSSES[source](ce, kl, 0.0, classes)
    np.testing.assert_allclose(codebase_loss * scale, rdrop_loss, rtol=1e-12)


def test_convert_alpha_names_the_invalid_argument():
    with pytest.raises(ValueError, match="Expected `source` to be one of .*'bojone'.*Received: source='mine'"):
        convert_alpha(1.0, "mine")
    with pytest.raises(ValueError, match="Expected `batch_size` to be.*'official-vit'.*Received: batch_size=None"):
        convert_alpha(1.0, "official-vit")
    with pytest.raises(ValueError, match="Expected `classes` to be a positive.*'bert4torch'.*Received: classes=0"):
        convert_alpha(1.0, "bert4torch", classes=0)
    for classes in (1.5, "3"):
        with pytest.raises(ValueError, match=f"Expected `classes` to be a positive.*Received: classes={classes!r}"):
            convert_alpha(1.0, "bert4torch", classes=classes)
    for alpha in (-1.0, float("nan"), "0.5", None, True):
        with pytest.raises(ValueError, match="Expected `alpha` to be a finite float >= 0. Received: alpha="):
            convert_alpha(alpha, "fairseq")
    with pytest.raises(ValueError, match="Expected `source` to be one of"):
        convert_alpha(1.0, ["fairseq"])
    with pytest.raises(ValueError, match="Expected `batch_size` to be.*Received: batch_size=True"):
        convert_alpha(1.0, "official-bert", batch_size=True)
    assert convert_alpha(5.0, "fairseq") == 5.0


def test_the_recipes_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        RECIPES["own"] = RECIPES["cifar100"]


def test_the_table_lists_every_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    __main__.main([])
    printed = capsys.readouterr().out
    for name in RECIPES:
        assert name in printed
    assert all(word in printed for word in ("learning", "0.1,", "0.5,", "300,000", "perplexity", "37.25"))
    assert "A dash marks a number that the sources do not state." in printed
    assert "iwslt14-en-de  5      0.3      0.0005    300,000  BLEU         -       -" in printed
    assert "…" not in printed


def test_the_command_runs_without_a_runtime_warning():
    command = [sys.executable, "-m", "keras_rdrop.recipes"]
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "RuntimeWarning" not in completed.stderr
    assert "cifar100" in completed.stdout


def test_an_unknown_argument_of_the_command_is_an_error(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["cifar10"])
    assert "unrecognized arguments: cifar10" in capsys.readouterr().err
