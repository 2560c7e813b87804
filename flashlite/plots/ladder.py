"""Figures of a token's time, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashlite.bench.result import Result
from flashlite.bench.row import MeasuredStage, StageRow
from flashlite.plots.style import FILLS, WHITE, finish, new_axes, outside_legend, plt, spoken_bytes

PARTS = (("io_ms", "waiting for flash"), ("memory_ms", "managing memory"), ("compute_ms", "computing"))
SMALL = 0.2  # of the highest bar: a ladder with a bar below it gets a second panel,
LOW = 0.35  # of the bars below this


def parts(rows: Sequence[StageRow], title: str, axes: Axes | None = None) -> Figure:
    """Stacked bars of a token's time, a bar a row of `bench` or `compare`, with the bytes that it read."""
    axes = new_axes(axes, width=4.2 + 0.9 * len(rows), height=4)
    _draw(axes, rows, rows)
    figure = finish(axes, title, "", "one token, ms", legend=False)
    outside_legend(figure, axes, columns=3)
    return figure


def ladder(result: Result) -> Figure:
    """`parts` of a whole benchmark, with the cost model's prediction and the dense model beside them.

    If the last stages are too low to be seen beside the first, a second panel shows them alone.
    """
    stages = result.stages
    highest, lowest = (pick(row.total_ms for row in stages) for pick in (max, min))
    panels = {"": stages}
    if lowest < SMALL * highest:
        panels = {
            "all stages": stages,
            "the lower ones, larger": [row for row in stages if row.total_ms < LOW * highest],
        }
    figure, grid = plt.subplots(
        1, len(panels), figsize=(8 + 1.6 * len(panels), 4.4), width_ratios=list(map(len, panels.values())),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    *_, last = panels.values()
    for axes, (name, rows) in zip(grid[0], panels.items(), strict=True):
        _predictions(axes, rows)
        if not result.dense.streamed:
            axes.axhline(result.dense.total_ms, color="black", ls=":", lw=1, zorder=2.5, label="dense, all in DRAM")
        _draw(axes, rows, labelled=[row for row in rows if rows is last or row not in last])
        finish(axes, name, "", "one token, ms", legend=False)
    title = f"{result.title} in {result.budget_share:.0%} of its memory: one token's time and reads"
    figure.suptitle(title, fontsize=11)
    outside_legend(figure, grid[0][0], columns=5)
    return figure


def _draw(axes: Axes, rows: Sequence[StageRow], labelled: Sequence[StageRow]) -> None:
    names = [row.title for row in rows]
    bottom = [0.0] * len(rows)
    for (key, label), (shade, hatch) in zip(PARTS, FILLS, strict=False):
        heights = [getattr(row, key) for row in rows]
        axes.bar(names, heights, 0.6, bottom, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=label)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for name, top, row in zip(names, bottom, rows, strict=True):
        if row in labelled:
            label = f"{spoken_bytes(row.bytes_per_token)}\n{row.reads_per_token:,.0f} reads"
            top = max(top, row.predicted_ms if isinstance(row, MeasuredStage) else 0.0)
            axes.annotate(label, (name, top), (0, 5), textcoords="offset points", ha="center", fontsize=8, zorder=6,
                          bbox=WHITE)  # fmt: skip
    axes.margins(y=0.2)
    axes.tick_params(axis="x", labelsize=9)


def _predictions(axes: Axes, rows: Sequence[MeasuredStage]) -> None:
    names = [row.title for row in rows]
    predicted = [row.predicted_ms for row in rows]
    axes.plot(names, predicted, "w_", ms=30, mew=5, zorder=3)  # so that the stroke shows on dark bars
    axes.plot(names, predicted, "k_", ms=26, mew=2, zorder=4, label="predicted, cost model")
