"""Figures of a token's time, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashlite.bench.result import Result
from flashlite.bench.row import MeasuredStage, StageRow
from flashlite.plots.style import FILLS, finish, new_axes

PARTS = (("io_ms", "waiting for flash"), ("memory_ms", "managing memory"), ("compute_ms", "computing"))


def parts(rows: Sequence[StageRow], title: str, axes: Axes | None = None) -> Figure:
    """Stacked bars of a token's time, a bar a row of `bench` or `compare`, with the bytes that it read."""
    axes = new_axes(axes, width=4.2 + 0.9 * len(rows), height=4)
    names = [row.title for row in rows]
    bottom = [0.0] * len(rows)
    for (key, label), (shade, hatch) in zip(PARTS, FILLS, strict=False):
        heights = [getattr(row, key) for row in rows]
        axes.bar(names, heights, 0.6, bottom, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=label)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for x, (top, row) in enumerate(zip(bottom, rows, strict=True)):
        label = f"{row.bytes_per_token / 1e6:.1f} MB\n{row.reads_per_token:.0f} reads"
        top = max(top, row.predicted_ms if isinstance(row, MeasuredStage) else 0.0)
        axes.annotate(label, (x, top), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.18)
    figure = finish(axes, title, "", "one token, ms", legend=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def ladder(result: Result, axes: Axes | None = None) -> Figure:
    """`parts` of a whole benchmark, with the cost model's prediction and the dense model beside them."""
    axes, stages = new_axes(axes, width=9.6, height=4), result.stages
    names = [row.title for row in stages]
    predicted = [row.predicted_ms for row in stages]
    axes.plot(names, predicted, "w_", ms=30, mew=5, zorder=3)  # so that the stroke shows on dark bars
    axes.plot(names, predicted, "k_", ms=26, mew=2, zorder=4, label="predicted by the cost model")
    axes.axhline(result.dense.total_ms, color="black", ls=":", lw=1, label="dense, all weights in DRAM")
    title = f"{result.title} in {result.budget_share:.0%} of its memory: one token's time and reads"
    return parts(stages, title, axes)
