"""The reference of the text tasks of the study: logistic regression on TF-IDF features of the same labelled rows.

    python benchmarks/convergence/reference.py

The scores of all seeds are written to `results/reference.json`.
"""

import datetime
import importlib.metadata
import json
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tasks import TASKS, draw_rows

from common.scores import classification_scores  # isort: skip, `tasks` puts the examples on the path
from common.snippets import load_snippets

RESULTS = Path(__file__).parent / "results" / "reference.json"
ROWS = {"text, 400 labels": 400, "text, 1,600 labels": 1600, "text, all labels": None}


def scores(rows, seed):
    """Returns the test scores of logistic regression on unigrams and bigrams, trained on the rows of a seed.

    The regularization strength is the one with the best validation accuracy.
    """
    splits, _ = load_snippets("movies", "classification")
    texts, labels = (np.array(column) for column in splits["train"])
    texts, labels = draw_rows((texts, labels), rows, seed)
    classifiers = [
        make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=c, max_iter=1000))
        for c in (1.0, 10.0, 100.0)
    ]
    for classifier in classifiers:
        classifier.fit(texts, labels)
    best = max(classifiers, key=lambda classifier: classifier.score(*splits["validation"]))
    texts, labels = splits["test"]
    return classification_scores(best.predict_log_proba(texts), labels)


def main():
    found = {task: [scores(rows, seed) for seed in range(TASKS[task].seeds)] for task, rows in ROWS.items()}
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn")}
    record = {"date": datetime.date.today().isoformat(), "versions": versions, "scores": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    for task, runs in found.items():
        print(task, {name: round(float(np.mean([run[name] for run in runs])), 4) for name in runs[0]})


if __name__ == "__main__":
    main()
