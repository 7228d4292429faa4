"""A bar chart of rates."""

from collections.abc import Mapping
from pathlib import Path

COLOURS = ("#1f6f8b", "#e07a5f", "#9aa5b1", "#81b29a", "#3d405b")


def draw(path: Path, title: str, series: Mapping[str, Mapping[str, float]]) -> None:
    """Writes a PNG with a group of bars for each operation, one bar for each series.

    :param series: requests per second by operation, by name of the series
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    names = list(dict.fromkeys(name for rates in series.values() for name in rates))
    height = 0.8 / len(series)
    figure, axes = plt.subplots(figsize=(9, 0.35 * len(names) * len(series) + 1.2))
    for index, (label, rates) in enumerate(series.items()):
        places = [place + index * height for place in range(len(names))]
        bars = axes.barh(
            places, [rates.get(name, 0) for name in names], height, label=label, color=COLOURS[index % 5]
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=7)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names)
    axes.set_ylim(len(names) - 0.1, -0.3)
    axes.set_xlabel("requests per second")
    axes.set_title(title)
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
