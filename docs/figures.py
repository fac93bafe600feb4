"""Draws the figures of the documentation: python docs/figures.py"""

from pathlib import Path

import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
ONCE, FIRST, SECOND = "#d9dee8", "#7fb3d5", "#f5b971"
LINE, RED = "#444444", "#aa3333"

# The path of a batch through the code: the module, and the text of its box.
MODULES = ["Keras", "model.py", "_passes/", "_objective/", "_kernels/"]
BATCH = [
    ("Keras", "fit"),
    ("model.py", "RDropModel.train_step"),
    ("_passes/", "PassLayout.widen: y, weights"),
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


def box(axes, x, y, width, text, color, size=11, align="center"):
    place = x if align == "left" else x + width / 2
    axes.text(
        place, y, text, ha=align, va="center", fontsize=size,
        bbox={"boxstyle": "round,pad=0.4", "facecolor": color, "edgecolor": LINE},
    )  # fmt: skip


def arrow(axes, start, end, **style):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": LINE, "linewidth": 1.4, **style})


def new_axes(width, height):
    """Returns a figure and axes in inches. At this width the text is readable on a phone."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def draw_passes():
    """Draws the two passes of a batch, which split at the first dropout."""
    figure, axes = new_axes(6.4, 3.1)
    middle = 1.95
    box(axes, 0.1, middle, 0.75, "batch $x$", ONCE)
    box(axes, 1.15, middle, 1.2, "layers before\nany dropout", ONCE)
    arrow(axes, (0.87, middle), (1.13, middle))
    for y, color, number in ((middle + 0.75, FIRST, 1), (middle - 0.75, SECOND, 2)):
        box(axes, 2.85, y, 0.85, f"dropout,\nmask {number}", color)
        box(axes, 4.1, y, 1.2, "the rest,\nsame weights", color)
        box(axes, 5.75, y, 0.4, f"$P_{number}$", color)
        arrow(axes, (2.4, middle), (2.8, y))
        arrow(axes, (3.72, y), (4.05, y))
        arrow(axes, (5.34, y), (5.74, y))
    arrow(axes, (5.95, middle - 0.5), (5.95, middle + 0.5), arrowstyle="<->", color=RED, linewidth=1.8)
    axes.text(5.8, middle, "symmetric KL, $D$", ha="right", va="center", color=RED, fontsize=11)
    for place, text in (((1.2, middle - 0.5), "once per row"), ((4.5, 0.65), "once per pass, in one batch")):
        axes.text(*place, text, ha="center", va="center", fontsize=11, color="#555555")
    loss = r"objective: mean loss of $P_1$ and $P_2\;+\;\alpha/2 \cdot D$"
    axes.text(4.5, 0.25, loss, ha="center", va="center", fontsize=11)
    figure.savefig(PICTURES / "passes.png", dpi=150)


def draw_batch():
    """Draws the functions that a batch passes, from `fit` to the gradient, from top to bottom."""
    step = 0.36
    figure, axes = new_axes(5.6, step * (len(BATCH) + 1.4))
    colors = dict(zip(MODULES, (ONCE, FIRST, SECOND, "#a8d5a2", "#d7b5d8"), strict=True))
    top = step * (len(BATCH) + 0.8)
    for x, name in zip((0.2, 1.05, 2.2, 3.3, 4.5), MODULES, strict=True):
        box(axes, x, top, 0, name, colors[name], align="left")
    arrow(axes, (0.13, step * len(BATCH)), (0.13, 0.05))
    for row, (name, text) in enumerate(BATCH):
        y = step * (len(BATCH) - row - 0.5)
        box(axes, 0.35 + 0.3 * MODULES.index(name), y, 0, text, colors[name], size=10, align="left")
    figure.savefig(PICTURES / "batch.png", dpi=120)


if __name__ == "__main__":
    draw_passes()
    draw_batch()
