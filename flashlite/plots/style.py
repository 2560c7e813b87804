"""What all figures share: shades and marks that greyscale keeps apart, units, a title that says what to see."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np

os.environ.setdefault("MPLBACKEND", "Agg")  # a notebook has set its own, and a terminal may have no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from flashlite.storage.atomic import new_file

MARKERS = "osv^D*PX"
DASHES = ("-", "--", "-.", ":")
WHITE = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}  # behind a number, so that no line strikes it
BAR = 0.5  # height of a stacked bar, of the distance to the next
LONGEST_BESIDE = 24  # characters of a name in a legend at the right
FILLS = (("0.25", ""), ("0.55", "//"), ("0.85", ".."), ("1.0", "xx"), ("0.7", "--"))


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure to a file whose ending says the format, png if it has none; the file appears only when complete.

    A link, a device or a pipe keeps its place. Returns the path. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.is_symlink() or (path.exists() and not path.is_file())
    with contextlib.nullcontext(path) if kept else new_file(path) as place:
        figure.savefig(place, format=path.suffix[1:].lower() or "png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path


def new_axes(axes: Axes | None = None, width: float = 7.0, height: float = 3.6) -> Axes:
    """The axes given, or those of a new figure, in inches."""
    return axes or plt.subplots(figsize=(width, height), layout="constrained")[1]


def finish(axes: Axes, title: str, xlabel: str, ylabel: str, legend: bool = True) -> Figure:
    """Name a figure and its axes, put the legend beside them, and return the figure."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    if legend:
        outside_legend(figure, axes)
    return figure


def outside_legend(figure: Figure, axes: Axes, columns: int | None = None) -> None:
    """A legend outside of the axes, where it can't cover a point: in columns below them, or at the right if there is a
    single panel, all names are short and no columns were asked for."""
    handles, names = axes.get_legend_handles_labels()
    beside = columns is None and len(figure.axes) == 1 and max(map(len, names), default=0) <= LONGEST_BESIDE
    if names and beside:
        figure.legend(handles, names, fontsize=8, loc="outside right upper")
    elif names:
        figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=columns or 2)


def spoken(value: float) -> str:
    """A number as all figures write it: a count in full, what was measured in three digits, both with commas."""
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(value)
    decimals = 0 if size >= 100 or size == 0 else 1 if size >= 10 else 2
    return f"{value:,.{decimals}f}"


def spoken_bytes(nbytes: float) -> str:
    """Bytes, three digits, in the unit that is a thousand times smaller or none: 13.3 GB, 802 MB, 4.39 MB."""
    unit, factor = next((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)) if nbytes >= f or f == 1)
    return f"{spoken(nbytes / factor)} {unit}"


def bytes_label(size: int) -> str:
    """A size as it is spoken: 512 B, 4 KiB."""
    return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


def log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis: 1, 2, 5, 10, written out."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("")


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str,
    xscale: str = "linear", yscale: str = "linear", marks: bool = True, legend: bool = True, axes: Axes | None = None,
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
            log_ticks(axis)
    axes.grid(alpha=0.3)
    return finish(axes, title, xlabel, ylabel, legend and len(series) > 1)


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
        axes.annotate(spoken(value), (value, i), (4, 0), textcoords="offset points", va="center", fontsize=9,
                      bbox=WHITE)  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.16)
    return finish(axes, title, xlabel, "", legend=False)


def dots(
    rows: Mapping[str, Mapping[str, float]], marks: Mapping[str, tuple[str, str]], title: str, xlabel: str,
    axes: Axes | None = None,
) -> Figure:  # fmt: skip
    """One line of dots a row on a logarithmic axis, where no length can mislead.

    rows: the values of each row by the series that they belong to
    marks: marker and face colour of each series, in the order of the legend
    """
    axes = new_axes(axes, width=8.5, height=1.1 + 0.32 * len(rows))
    for series, (marker, face) in marks.items():
        points = [(values[series], y) for y, values in enumerate(rows.values()) if series in values]
        axes.plot(*zip(*points, strict=True), marker, mfc=face, mec="black", ms=7, ls="", zorder=3, label=series)
    for y, values in enumerate(rows.values()):
        for value in values.values():
            axes.annotate(spoken(value), (value, y), (8, 0), textcoords="offset points", va="center", fontsize=9,
                          bbox=WHITE)  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    everything = [value for values in rows.values() for value in values.values()]
    axes.set_xlim(0.8 * min(everything), 1.6 * max(everything))  # room for the last number
    log_ticks(axes.xaxis)
    axes.grid(axis="y", alpha=0.5, ls=":")
    return finish(axes, title, xlabel, "")


def stacked(
    rows: Mapping[str, Mapping[str, float]], title: str, xlabel: str, numbers: str = "{:.0f}", axes: Axes | None = None
) -> Figure:
    """Horizontal bars made of parts, a number on each; every row has the same parts, in the same order.

    numbers: format of a part. Parts that are too narrow for their numbers have them above and below, in turns.
    """
    axes = new_axes(axes, width=8.5, height=1.1 + 0.55 * len(rows))
    names, left = list(rows), np.zeros(len(rows))
    widest = max(sum(parts.values()) for parts in rows.values())
    narrow = [0] * len(rows)  # parts of each row so far that were too narrow
    for i, part in enumerate(next(iter(rows.values()))):
        widths = np.array([parts[part] for parts in rows.values()])
        shade, hatch = FILLS[i % len(FILLS)]
        axes.barh(names, widths, BAR, left=left, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=part)
        for y, (middle, width) in enumerate(zip(left + widths / 2, widths, strict=True)):
            fits = width > 0.06 * widest
            narrow[y] += not fits
            _write_number(axes, numbers.format(width), middle, y, 0 if fits else 1 if narrow[y] % 2 else -1)
        left += widths
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.margins(x=0.02)
    return finish(axes, title, xlabel, "")


def _write_number(axes: Axes, text: str, x: float, y: int, side: int) -> None:
    """Write a number into the bar y (side 0), above it (1) or below it (-1)."""
    upright = {0: "center", 1: "bottom", -1: "top"}[side]
    axes.text(x, y - side * (BAR / 2 + 0.02), text, ha="center", va=upright, fontsize=8, bbox=None if side else WHITE)


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
