"""Figures of a token's time, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashlite.plots.style import FILLS, finish, model_name, new_axes, outside_legend, plt, spoken_bytes

PARTS = (("io_ms", "waiting for flash"), ("memory_ms", "managing memory"), ("compute_ms", "computing"))
SMALL = 0.2  # of the highest bar: a ladder that ends below it gets a second panel, of the stages below
ZOOMED = 0.35


def parts(rows: Sequence[dict[str, Any]], title: str, axes: Axes | None = None) -> Figure:
    """Stacked bars of a token's time, a bar a row of `bench` or `compare`, with the bytes that it read."""
    axes = new_axes(axes, width=4.2 + 0.9 * len(rows), height=4)
    _draw(axes, rows, rows)
    return finish(axes, title, "", "one token, ms")


def ladder(result: dict[str, Any]) -> Figure:
    """`parts` of a whole benchmark, with the cost model's prediction and the dense model beside them.

    If the last stages are too low to be seen beside the first, a second panel shows them alone.
    """
    stages, dense = result["stages"], result["dense"]["total_ms"]
    highest = max(row["total_ms"] for row in stages)
    low = [row for row in stages if row["total_ms"] < ZOOMED * highest]
    share = result["budget_bytes"] / result["weight_bytes"]
    title = f"{model_name(result)} in {share:.0%} of its memory: one token's time and reads"
    if min(row["total_ms"] for row in stages) >= SMALL * highest:
        axes = new_axes(width=9.6, height=4)
        _predictions(axes, stages, dense)
        _draw(axes, stages, stages)
        return finish(axes, title, "", "one token, ms")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.4), width_ratios=[len(stages), len(low)], layout="constrained"
    )
    for axes, rows in ((left, stages), (right, low)):
        _predictions(axes, rows, dense)
        _draw(axes, rows, labelled=[row for row in rows if axes is right or row not in low])
        finish(axes, "all stages" if axes is left else "the lower ones, larger", "", "one token, ms", legend=False)
    figure.suptitle(title, fontsize=11)
    outside_legend(figure, left, columns=5)
    return figure


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], labelled: Sequence[dict[str, Any]]) -> None:
    names = [f"{row['stage']} {row['name']}" for row in rows]
    bottom = [0.0] * len(rows)
    for (key, label), (shade, hatch) in zip(PARTS, FILLS, strict=False):
        heights = [row[key] for row in rows]
        axes.bar(names, heights, 0.6, bottom, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=label)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for name, top, row in zip(names, bottom, rows, strict=True):
        if row in labelled:
            label = f"{spoken_bytes(row['bytes_per_token'])}\n{row['reads_per_token']:,.0f} reads"
            top = max(top, row.get("predicted_ms", 0.0))
            axes.annotate(label, (name, top), (0, 5), textcoords="offset points", ha="center", fontsize=8, zorder=6,
                          bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"})  # fmt: skip
    axes.margins(y=0.2)
    axes.tick_params(axis="x", labelsize=9)


def _predictions(axes: Axes, rows: Sequence[dict[str, Any]], dense_ms: float) -> None:
    names = [f"{row['stage']} {row['name']}" for row in rows]
    predicted = [row["predicted_ms"] for row in rows]
    axes.plot(names, predicted, "w_", ms=30, mew=5, zorder=3)  # so that the stroke shows on dark bars
    axes.plot(names, predicted, "k_", ms=26, mew=2, zorder=4, label="predicted, cost model")
    axes.axhline(dense_ms, color="black", ls=":", lw=1, zorder=2.5, label="dense, all in DRAM")
