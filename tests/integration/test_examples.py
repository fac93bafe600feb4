"""The examples at their smallest, as a user runs them."""

import json

import common
import keras
import keras_hub
import pytest
import text_classification


@pytest.fixture
def snippets(monkeypatch):
    texts = text_classification.np.array(["a good film", "the bad movie", "good movie", "bad film"] * 40)
    labels = text_classification.np.array([1, 0, 1, 0] * 40)
    monkeypatch.setattr(text_classification, "load_snippets", lambda: (texts, labels))


def test_text_classification(snippets, tmp_path, capsys):
    text_classification.main(["--smoke", "--compare", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "R-Drop" in printed
    assert "seconds a step" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row[""] for row in report["results"]] == ["plain", "R-Drop"]
    assert "divergence" in report["histories"]["R-Drop"]
    assert "divergence" not in report["histories"]["plain"]
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is keras_hub.models.BertTextClassifier


def test_fetch_package_offline_says_what_to_do_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CACHE", tmp_path)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="Could not download no-such-package==1.0"):
        common.fetch_package("no-such-package==1.0", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_fetch_package_reads_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CACHE", tmp_path)
    (tmp_path / f"package==1.0-{'0' * 12}").mkdir()
    assert common.fetch_package("package==1.0", "0" * 64) == tmp_path / f"package==1.0-{'0' * 12}"
