"""What all figures share: shades and marks that greyscale keeps apart, units, a title that says what to see."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("MPLBACKEND", "Agg")  # a notebook has set its own, and a terminal may have no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

MARKERS = "osv^D*PX"
DASHES = ("-", "--", "-.", ":")
FILLS = (("0.25", ""), ("0.55", "//"), ("0.85", ".."), ("1.0", "xx"), ("0.7", "--"))


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure to a file whose ending says the format; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path


def new_axes(axes: Axes | None = None, width: float = 7.0, height: float = 3.6) -> Axes:
    """The axes given, or those of a new figure, in inches."""
    return axes or plt.subplots(figsize=(width, height), layout="constrained")[1]


def finish(axes: Axes, title: str, xlabel: str, ylabel: str, legend: bool = True) -> Figure:
    """Name a figure and its axes, and return it."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if legend:
        axes.legend(fontsize=8)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def bytes_label(size: int) -> str:
    """A size as it is spoken: 512 B, 4 KiB."""
    return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str,
    xscale: str = "linear", yscale: str = "linear", marks: bool = True, axes: Axes | None = None,
) -> Figure:  # fmt: skip
    """Curves, by name: x and y of each."""
    axes = new_axes(axes)
    for i, (name, (x, y)) in enumerate(series.items()):
        shade = str(0.65 * (len(series) - 1 - i) / max(1, len(series) - 1))
        mark = MARKERS[i % len(MARKERS)] if marks else None
        axes.plot(x, y, color=shade, marker=mark, ms=4, ls=DASHES[i % len(DASHES)], lw=1.4, label=name)
    axes.set(xscale=xscale, yscale=yscale)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    return finish(axes, title, xlabel, ylabel)


def scatter(
    x: Sequence[float], y: Sequence[float], title: str, xlabel: str, ylabel: str, axes: Axes | None = None
) -> Figure:
    """A dot for each pair; the vertical axis is logarithmic above 1, and has a place for 0."""
    axes = new_axes(axes)
    axes.scatter(x, y, s=12, color="0.25")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    return finish(axes, title, xlabel, ylabel, legend=False)


def bars(values: Mapping[str, float], title: str, xlabel: str, axes: Axes | None = None) -> Figure:
    """One horizontal bar a name, with its value."""
    axes = new_axes(axes, height=0.7 + 0.4 * len(values))
    names = list(values)
    axes.barh(names, list(values.values()), color="0.55", edgecolor="black", lw=0.6)
    for i, value in enumerate(values.values()):
        axes.annotate(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", (value, i), (4, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.16)
    return finish(axes, title, xlabel, "", legend=False)


def stacked(
    rows: Mapping[str, Mapping[str, float]], title: str, xlabel: str, numbers: str = "{:.0f}", axes: Axes | None = None
) -> Figure:
    """Horizontal bars made of parts; every row has the same parts, in the same order. numbers: format of a part."""
    axes = new_axes(axes, height=1.1 + 0.42 * len(rows))
    names, left = list(rows), np.zeros(len(rows))
    widest = max(sum(parts.values()) for parts in rows.values())
    for i, part in enumerate(next(iter(rows.values()))):
        widths = np.array([parts[part] for parts in rows.values()])
        shade, hatch = FILLS[i % len(FILLS)]
        axes.barh(names, widths, left=left, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=part)
        for y, (begin, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.06 * widest:
                axes.text(begin + width / 2, y, numbers.format(width), ha="center", va="center", fontsize=8,
                          bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"})  # fmt: skip
        left += widths
    axes.invert_yaxis()
    figure = finish(axes, title, xlabel, "", legend=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def heat(
    values: np.ndarray, title: str, xlabel: str, ylabel: str, unit: str, xticks: Sequence[str] | None = None,
    axes: Axes | None = None,
) -> Figure:  # fmt: skip
    """A table of numbers [rows, columns] as shades, darker for more; xticks: a name for each column."""
    axes = new_axes(axes, width=10.0, height=3.0)
    image = axes.imshow(values, aspect="auto", cmap="Greys", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(values)))
    if xticks is not None:
        axes.set_xticks(range(len(xticks)), xticks, rotation=90, fontsize=7)
    figure = finish(axes, title, xlabel, ylabel, legend=False)
    figure.colorbar(image, ax=axes, label=unit)
    return figure
