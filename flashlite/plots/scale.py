"""Figures of large models: on other drives, beside what people use, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from flashlite.bench.result import Result
from flashlite.bench.row import MeasuredStage
from flashlite.plots.style import DASHES, MARKERS, bars, finish, lines, new_axes


def estimates(result: Mapping[str, Any], measured: Result | None = None) -> Figure:
    """A token's time by drive, a curve a stage; a ring where `bench` has measured."""
    drives, stages = list(result["drives"]), list(result["bytes_per_token"])
    axes = new_axes(width=9.5, height=4.2)
    for i, stage in enumerate(stages):
        times = [result["drives"][drive][stage] for drive in drives]
        shade = str(0.65 * (len(stages) - 1 - i) / (len(stages) - 1))
        axes.plot(drives, times, color=shade, marker=MARKERS[i], ms=4, ls=DASHES[i % 4], lw=1.3, label=f"{i} {stage}")
    if measured:
        drive = next(name for name in drives if "measured" in name)
        times = [row.total_ms for row in measured.stages]
        axes.plot([drive] * len(times), times, "o", mfc="none", color="black", ms=11, ls="", label="measured")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(drives)), [name.replace(": ", "\n") for name in drives], fontsize=8, rotation=20)
    axes.grid(alpha=0.3)
    figure = finish(axes, f"{result['model']}: what a token must take, by drive", "", "one token, ms", legend=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def peers(result: Result) -> Figure:
    """A token's time beside what people use today; those that ran out of memory are named in the title."""
    times = {f"flashlite, {row.title}": row.total_ms for row in result.stages}
    times |= {peer.name: peer.cost.total_ms for peer in result.peers if peer.cost}
    times["transformers in DRAM, no cap"] = result.dense.total_ms
    title = f"{result.title} in {result.budget_share:.0%} of its memory: one token"
    axes = new_axes(height=0.9 + 0.36 * len(times), width=8.5)
    figure = bars(dict(sorted(times.items(), key=lambda item: -item[1])), title, "ms, logarithmic", axes)
    axes.set_xscale("log")
    return figure


def budgets(results: Sequence[Result]) -> Figure:
    """What a token of one model costs by the budget that it is given: time and bytes, a curve a stage."""
    shares = [100 * result.budget_share for result in results]
    names = [row.name for row in results[0].stages]
    figure = _time_and_bytes(results, shares, names, results[0].title, "budget, % of the weights")
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    return figure


def sizes(results: Sequence[Result]) -> Figure:
    """What a token costs by the size of the model, each in the same share of its memory: time and bytes."""
    weights = [result.weight_bytes / 1e9 for result in results]
    names = [row.name for row in results[0].stages]
    title = f"{', '.join(result.model for result in results)} in {results[0].budget_share:.0%}"
    figure = _time_and_bytes(results, weights, names, title, "weights, GB")
    times, read = figure.axes
    dense = [result.dense.total_ms for result in results]
    times.plot(weights, dense, color="black", marker="*", ls="", label="dense, in DRAM")
    times.legend(fontsize=8, loc="center")
    for axes in (times, read):
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_minor_formatter("")
        axes.set_xticks(weights, [f"{weight:.1f}" for weight in weights])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    return figure


def _time_and_bytes(
    results: Sequence[Result], at: Sequence[float], names: Sequence[str], title: str, label: str
) -> Figure:  # fmt: skip
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for key, unit, what, axes in (("total_ms", 1, "ms", panels[0]), ("bytes_per_token", 1e6, "MB read", panels[1])):
        curves = {name: (at, [getattr(_stage(result, name), key) / unit for result in results]) for name in names}
        lines(curves, title, label, f"one token, {what}", axes=axes)
    return figure


def _stage(result: Result, name: str) -> MeasuredStage:
    return next(row for row in result.stages if row.name == name)
