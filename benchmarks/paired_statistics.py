"""Statistics of paired differences between two arms: one difference for each seed that both were run with."""

import numpy as np
from scipy import stats


def t_interval(differences):
    """95 % interval of the mean by Student's t distribution, as a tuple `(low, high)`."""
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval()
    return float(low), float(high)


def t_test(differences):
    """p-value of the two-sided t-test that the mean is 0; 1.0 if all differences are 0."""
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if np.any(differences) else 1.0


def bootstrap_interval(differences):
    """95 % percentile bootstrap interval of the mean, as a tuple `(low, high)`. Always the same for the same data."""
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    result = stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = result.confidence_interval
    return float(low), float(high)


def wilcoxon_test(differences):
    """p-value of the two-sided Wilcoxon signed-rank test; 1.0 if all differences are 0."""
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm_correction(p_values):
    """p-values after Holm's correction for multiple tests, in the same order."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return corrected
