"""Draws the results: one picture per script, with one panel per processor and command.

    python benchmarks/plot.py

A bar shows the score that arms are compared by: the last column of the table that the script printed. Where the table
has a standard deviation over the seeds, a point with an error bar shows both. The vertical line is the baseline. If a
command was run several times on a backend, the latest record counts.
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke
from records import BACKENDS, latest

HERE = Path(__file__).parent
PICTURES = HERE.parent / "docs" / "pictures"
COLORS = dict(zip(BACKENDS, ("C0", "C1", "C2"), strict=True))


def draw_curves(records, axes):
    """Draws a line for each arm and backend."""
    for backend, record in records.items():
        for style, (arm, curve) in zip(("--", "-"), record["curves"].items(), strict=False):
            (x, x_values), (y, y_values) = curve.items()
            axes.plot(x_values, y_values, style, color=COLORS[backend], label=f"{BACKENDS[backend]}, {arm}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])


def draw_bars(records, axes):
    """Draws a bar, or a point with an error bar, for each arm and backend."""
    arms = list(dict.fromkeys(row["arm"] for record in records.values() for row in record["rows"]))
    backends = [backend for backend in BACKENDS if backend in records]
    height = 0.8 / len(backends)
    baseline = 1.0  # all bars are ratios
    for offset, backend in enumerate(backends):
        rows = {row["arm"]: row for row in records[backend]["rows"]}
        column = list(records[backend]["rows"][0])[-1]
        style = {"label": BACKENDS[backend], "color": COLORS[backend]}
        positions = [index + (offset - (len(backends) - 1) / 2) * height for index in range(len(arms))]
        values = [rows[arm][column] if arm in rows else float("nan") for arm in arms]
        if "deviation" in records[backend]["rows"][0]:
            deviations = [rows[arm]["deviation"] for arm in arms]
            axes.errorbar(values, positions, xerr=deviations, fmt="o", capsize=3, **style)
            baseline = values[0]
        else:
            bars = axes.barh(positions, values, height, **style)
            labels = axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
            plt.setp(labels, zorder=3, path_effects=[withStroke(linewidth=3, foreground="white")])
    axes.axvline(baseline, color="black", linewidth=1)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(column)


def has_curves(records):
    return "curves" in next(iter(records.values()))


def height_of(records):
    """Returns the height of the axes, in inches, at which the labels of the bars do not overlap."""
    if has_curves(records):
        return 2.5
    bars = len({row["arm"] for record in records.values() for row in record["rows"]}) * len(records)
    return max(0.14 * bars + 0.2, 0.8)


def draw(title, records, axes):
    (draw_curves if has_curves(records) else draw_bars)(records, axes)
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, 60, break_on_hyphens=False)]
    axes.set_title("\n".join(lines), fontsize=10, x=1, ha="right")


def main():
    for path in sorted((HERE / "results").glob("*.jsonl")):
        commands = {
            f"{path.stem}.py {settings}\n{hardware}": records
            for hardware, by_settings in latest(path).items()
            for settings, records in by_settings.items()
        }
        heights = [height_of(records) for records in commands.values()]
        # At this width the text is readable on a phone. Title and labels of a panel take an inch.
        size = 5.6, sum(heights) + len(heights) + 0.4
        figure, panels = plt.subplots(
            len(heights), figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
        )
        for (title, records), axes in zip(commands.items(), panels.flat, strict=True):
            draw(title, records, axes)
        lines = {
            name: line for axes in panels.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(lines.values(), lines, loc="outside upper center", ncols=3, fontsize=9)
        figure.savefig(PICTURES / f"{path.stem}.png", dpi=120)
        plt.close(figure)


if __name__ == "__main__":
    main()
