"""Draws the figures of the documentation: python docs/figures.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
ONCE, FIRST, SECOND = "#d9dee8", "#7fb3d5", "#f5b971"
LINE = "#444444"

# The path of a batch through the code: a column of the figure, and the text in it.
COLUMNS = ["Keras", "model.py", "_passes/", "_objective/", "_kernels/"]
BATCH = [
    ("Keras", "fit"),
    ("model.py", "RDropModel.train_step"),
    ("_passes/", "PassLayout.spread: y, weights"),
    ("_passes/", "CurrentStep.set: a Step"),
    ("Keras", "train_step"),
    ("model.py", "RDropModel.call"),
    ("_passes/", "TrainingGraph, PassLayout.widen"),
    ("model.py", "RDropModel.compute_loss"),
    ("Keras", "compute_loss"),
    ("_objective/", "OutputLoss"),
    ("_objective/", "JointTerms or SeparateTerms"),
    ("_kernels/", "forward: loss and divergence"),
    ("_objective/", "OutputLoss: step.divergences"),
    ("model.py", "loss + alpha / 2 * divergence"),
    ("Keras", "gradient"),
    ("_kernels/", "backward"),
    ("Keras", "optimizer and metrics"),
]


def box(axes, x, y, width, text, color, size=11):
    axes.text(
        x + width / 2, y, text, ha="center", va="center", fontsize=size,
        bbox={"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": LINE},
    )  # fmt: skip


def arrow(axes, start, end, **style):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": LINE, "linewidth": 1.4, **style})


def draw_passes():
    """Draws the two passes of a batch, which part at the first dropout."""
    figure, axes = plt.subplots(figsize=(9.5, 3.2), layout="constrained")
    box(axes, 0.0, 0, 0.8, "batch $x$", ONCE)
    box(axes, 1.7, 0, 1.2, "layers before\nany dropout", ONCE)
    for y, color, number in ((0.75, FIRST, 1), (-0.75, SECOND, 2)):
        box(axes, 4.1, y, 1.0, f"dropout,\nmask {number}", color)
        box(axes, 5.8, y, 1.0, "the rest,\nsame weights", color)
        box(axes, 7.4, y, 0.8, f"$P_{number}$", color)
        arrow(axes, (3.05, 0), (4.05, y))
        arrow(axes, (5.15, y), (5.72, y))
        arrow(axes, (6.9, y), (7.55, y))
    arrow(axes, (0.9, 0), (1.65, 0))
    axes.annotate("", (7.8, -0.5), (7.8, 0.5), arrowprops={"arrowstyle": "<->", "color": "#a33", "linewidth": 1.8})
    axes.text(7.95, 0, r"symmetric KL, $D$", va="center", color="#a33", fontsize=11)
    axes.text(8.2, 0.75, "and $y$: loss", va="center", fontsize=11)
    axes.text(8.2, -0.75, "and $y$: loss", va="center", fontsize=11)
    axes.text(1.85, -0.85, "once per row", ha="center", fontsize=11, color="#555555")
    axes.text(5.6, -1.35, "once per pass, in one batch", ha="center", fontsize=11, color="#555555")
    axes.text(8.3, -1.35, r"mean loss $+\;\alpha/2 \cdot D$", ha="center", fontsize=12)
    axes.set_xlim(-0.2, 9.6)
    axes.set_ylim(-1.6, 1.25)
    axes.axis("off")
    figure.savefig(PICTURES / "passes.png", dpi=130)


def draw_batch():
    """Draws the modules that a batch passes, from `fit` to the gradient."""
    figure, axes = plt.subplots(figsize=(12, 7.6), layout="constrained")
    for column, name in enumerate(COLUMNS):
        axes.text(column, 1.0, name, ha="center", va="center", fontsize=12, weight="bold")
        axes.axvline(column, 0.02, 0.93, color="#dddddd", zorder=0)
    colors = [ONCE, FIRST, SECOND, "#a8d5a2", "#d7b5d8"]
    previous = None
    for row, (name, text) in enumerate(BATCH):
        x, y = COLUMNS.index(name), -row
        if previous is not None:
            side = 0 if x == previous[0] else 0.05 if x > previous[0] else -0.05
            arrow(axes, (previous[0] + side, previous[1] - 0.3), (x - side, y + 0.3), shrinkA=0, shrinkB=0)
        box(axes, x, y, 0, text, colors[x], size=10)
        previous = x, y
    axes.set_xlim(-0.55, len(COLUMNS) - 0.45)
    axes.set_ylim(-len(BATCH) + 0.3, 1.4)
    axes.axis("off")
    figure.savefig(PICTURES / "batch.png", dpi=110)


if __name__ == "__main__":
    draw_passes()
    draw_batch()
