"""Draws the picture of the two passes: python docs/figures.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ONCE, FIRST, SECOND = "#d9dee8", "#7fb3d5", "#f5b971"


def box(axes, x, y, width, text, color):
    axes.text(
        x + width / 2, y, text, ha="center", va="center", fontsize=11,
        bbox={"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "#444444"},
    )  # fmt: skip


def arrow(axes, start, end):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444", "linewidth": 1.4})


def main():
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
    axes.text(1.85, -0.85, "once a row", ha="center", fontsize=11, color="#555555")
    axes.text(5.6, -1.35, "once a pass, in one batch", ha="center", fontsize=11, color="#555555")
    axes.text(8.3, -1.35, r"mean loss $+\;\alpha/2 \cdot D$", ha="center", fontsize=12)
    axes.set_xlim(-0.2, 9.6)
    axes.set_ylim(-1.6, 1.25)
    axes.axis("off")
    figure.savefig(Path(__file__).parent / "pictures" / "passes.png", dpi=130)


if __name__ == "__main__":
    main()
