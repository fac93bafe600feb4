"""Test scores of classification and regression."""

import numpy as np
from scipy import special, stats


def classification_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes the accuracy, the negative log-likelihood in nats, and the expected calibration error.

    Args:
        logits: Array of shape `(rows, classes)`.
        labels: Integer array of shape `(rows,)`.

    Returns:
        Dict from the name of each score to its value.
    """
    log_probabilities = special.log_softmax(np.asarray(logits, "float64"), axis=-1)
    labels = np.asarray(labels)
    return {
        "accuracy": float((log_probabilities.argmax(-1) == labels).mean()),
        "NLL": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "ECE": expected_calibration_error(np.exp(log_probabilities), labels),
    }


def regression_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes the Pearson and Spearman correlations and the root mean squared error.

    Args:
        predicted: Array of shape `(rows,)`.
        labels: Array of shape `(rows,)`.

    Returns:
        Dict from the name of each score to its value.
    """
    predicted = predicted.astype("float64")
    return {
        "Pearson": stats.pearsonr(predicted, labels).statistic,
        "Spearman": stats.spearmanr(predicted, labels).statistic,
        "RMSE": float(np.sqrt(np.mean((predicted - labels) ** 2))),
    }


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Computes the gap between confidence and accuracy, averaged over bins of equal width (Guo et al., 2017)."""
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of_row, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
