"""Figures of large models: on other drives, beside what people use, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from flashlite.bench.result import Result
from flashlite.bench.row import MeasuredStage
from flashlite.plots.style import MARKERS, dots, finish, lines, log_ticks, new_axes, outside_legend

GROUP = 0.8  # height of a drive's dots, of the distance to the next drive
OURS, THEIRS, DENSE = "flashlite, by stage", "what people use today", "all in DRAM, no cap"


def estimates(result: Mapping[str, Any], measured: Result | None = None) -> Figure:
    """A token's time by drive: a group of dots a drive, a dot a stage, and a ring where `bench` has measured."""
    drives, stages = list(result["drives"]), list(result["bytes_per_token"])
    axes = new_axes(width=9.5, height=1.2 + 0.75 * len(drives))
    height = {stage: (i - (len(stages) - 1) / 2) * GROUP / len(stages) for i, stage in enumerate(stages)}
    for i, stage in enumerate(stages):
        seconds = [result["drives"][drive][stage] / 1e3 for drive in drives]
        shade = str(0.9 * (len(stages) - 1 - i) / (len(stages) - 1))
        axes.plot(seconds, [y + height[stage] for y in range(len(drives))], color="black", mfc=shade,
                  marker=MARKERS[i], ms=6, ls="", label=f"{i} {stage}")  # fmt: skip
    if measured:
        y = drives.index(next(name for name in drives if "measured" in name))
        rows = measured.stages
        axes.plot([row.total_ms / 1e3 for row in rows], [y + height[row.name] for row in rows], "o", mfc="none",
                  color="black", ms=12, ls="", label="measured")  # fmt: skip
    for y in range(len(drives) - 1):
        axes.axhline(y + 0.5, color="0.8", lw=0.8)
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    axes.set_yticks(range(len(drives)), [name.replace(": ", "\n") for name in drives], fontsize=9)
    axes.set_ylim(len(drives) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    title = f"{result['model']}: what a token must take, by drive"
    return finish(axes, title, "one token, seconds (logarithmic)", "")


def peers(result: Result) -> Figure:
    """A token's time beside what people use today; what ran out of memory has a name and no dot."""
    times = [(row.title, OURS, row.total_ms) for row in result.stages]
    times += [(peer.name, THEIRS, peer.cost.total_ms) for peer in result.peers if peer.cost]
    times.append((result.dense_title, DENSE, result.dense.total_ms))
    rows = {name: {series: ms} for name, series, ms in sorted(times, key=lambda item: -item[2])}
    killed: dict[str, dict[str, float]] = {f"{peer.name}: out of memory": {} for peer in result.peers if not peer.cost}
    marks = {OURS: ("o", "black"), THEIRS: ("s", "0.8"), DENSE: ("*", "white")}
    marks = {series: mark for series, mark in marks.items() if any(series in values for values in rows.values())}
    title = f"{result.title} in {result.budget_share:.0%} of its memory"
    return dots(killed | rows, marks, title, "one token, ms (logarithmic)")


def budgets(results: Sequence[Result]) -> Figure:
    """What a token of one model costs by the budget that it is given: time and bytes, a curve a stage."""
    shares = [100 * result.budget_share for result in results]
    figure = _time_and_bytes(results, shares, f"{results[0].title}, by budget", "budget, % of the weights")
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    outside_legend(figure, figure.axes[0])
    return figure


def sizes(results: Sequence[Result]) -> Figure:
    """What a token costs by the size of the model, each in the same share of its memory: time and bytes."""
    weights = [result.weight_bytes / 1e9 for result in results]
    title = f"{', '.join(result.model for result in results)}, each in {results[0].budget_share:.0%} of its memory"
    figure = _time_and_bytes(results, weights, title, "weights, GB (logarithmic)")
    times, _ = figure.axes
    dense = [result.dense.total_ms for result in results]
    times.plot(weights, dense, color="black", mfc="white", marker="*", ms=9, ls="", label="dense, all in DRAM")
    for axes in figure.axes:
        axes.set(xscale="log", yscale="log")
        log_ticks(axes.yaxis)
        axes.xaxis.set_minor_formatter("")
        axes.set_xticks(weights, [f"{weight:.1f}" for weight in weights])
    outside_legend(figure, times, columns=4)
    return figure


def _time_and_bytes(results: Sequence[Result], at: Sequence[float], title: str, label: str) -> Figure:
    """Two panels over the same axis, a curve a stage, without a legend yet."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    names = [row.title for row in results[0].stages]
    for key, unit, what, axes in (("total_ms", 1, "one token, ms", panels[0]),
                                  ("bytes_per_token", 1e6, "read for a token, MB", panels[1])):  # fmt: skip
        curves = {name: (at, [getattr(_stage(result, name), key) / unit for result in results]) for name in names}
        lines(curves, "", label, what, legend=False, axes=axes)
    return figure


def _stage(result: Result, name: str) -> MeasuredStage:
    return next(row for row in result.stages if row.title == name)
