"""The rated snippets of vaderSentiment: reviews, editorials and tweets, each rated by 20 people."""

import tarfile

import numpy as np

from common.data import fetch_package

VADER = ("vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
FILES = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}


def load_snippets(subject: str, task: str) -> tuple[dict[str, tuple[list[str], np.ndarray]], list[str] | None]:
    """Loads texts and labels in three splits, and the class names. Downloads the data once with pip.

    Args:
        subject: One of the keys of `FILES`.
        task: `"classification"`: the label is 1 for a mean rating of at least 0.5 and 0 for at most -0.5, and the
            snippets between are left out. `"regression"`: the label is the mean rating, and there are no class names.

    Returns:
        A tuple of a dict from each split to its texts and labels, and the list of class names or `None`.
    """
    folder = fetch_package(*VADER, sdist=True)
    name = f"hutto_ICWSM_2014/{FILES[subject]}_GroundTruth.txt"
    with tarfile.open(folder / "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz") as archive:
        lines = archive.extractfile(name).read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t") for line in lines]
    ratings = np.array([float(rating) for _, rating, _ in rows], "float32")
    kept = np.flatnonzero(np.abs(ratings) >= 0.5) if task == "classification" else np.arange(len(rows))
    order = np.random.default_rng(0).permutation(kept)
    texts = [rows[index][2] for index in order]
    labels = (ratings[order] > 0).astype("int32") if task == "classification" else ratings[order]
    bounds = {"test": slice(1000), "validation": slice(1000, 1500), "train": slice(1500, None)}
    class_names = ["negative", "positive"] if task == "classification" else None
    return {split: (texts[rows], labels[rows]) for split, rows in bounds.items()}, class_names
