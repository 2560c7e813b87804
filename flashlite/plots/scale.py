"""Figures of large models: on other drives, beside what people use, and how cost grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from flashlite.plots.style import DASHES, MARKERS, bars, finish, lines, model_name, new_axes

Result = Mapping[str, Any]


def estimates(result: Result, measured: Result | None = None) -> Figure:
    """A token's time by drive, a curve a stage; a ring where `bench` has measured."""
    drives, stages = list(result["drives"]), list(result["bytes_per_token"])
    axes = new_axes(width=9.5, height=4.2)
    for i, stage in enumerate(stages):
        times = [result["drives"][drive][stage] for drive in drives]
        shade = str(0.65 * (len(stages) - 1 - i) / (len(stages) - 1))
        axes.plot(drives, times, color=shade, marker=MARKERS[i], ms=4, ls=DASHES[i % 4], lw=1.3, label=f"{i} {stage}")
    if measured:
        drive = next(name for name in drives if "measured" in name)
        times = [row["total_ms"] for row in measured["stages"]]
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
    times = {f"flashlite, {row['stage']} {row['name']}": row["total_ms"] for row in result["stages"]}
    times |= {row["name"]: row["total_ms"] for row in result["peers"] if not row["killed"]}
    times["transformers, all in DRAM, no cap"] = result["dense"]["total_ms"]
    title = f"{model_name(result)} in {result['budget_bytes'] / result['weight_bytes']:.0%} of its memory: one token"
    axes = new_axes(height=0.9 + 0.36 * len(times), width=8.5)
    figure = bars(dict(sorted(times.items(), key=lambda item: -item[1])), title, "ms, logarithmic", axes)
    axes.set_xscale("log")
    return figure


def growth(by_size: Sequence[Result], by_budget: Sequence[Result]) -> Figure:
    """How a token's time and bytes grow with the model, all in half of its memory, and shrink with the budget."""
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 3.8), layout="constrained")
    models = "planted models" if by_size[0].get("planted") else "models"
    sizes = [result["weight_bytes"] / 1e9 for result in by_size]
    names = [row["name"] for row in by_size[0]["stages"]]
    times = {name: (sizes, [_stage(result, name)["total_ms"] for result in by_size]) for name in names}
    dense = (sizes, [result["dense"]["total_ms"] for result in by_size])
    lines({**times, "dense in DRAM": dense}, f"{models}: time", "weights, GB", "one token, ms",
          xscale="log", yscale="log", axes=panels[0])  # fmt: skip
    nbytes = {name: (sizes, [_stage(result, name)["bytes_per_token"] / 1e6 for result in by_size]) for name in names}
    lines(nbytes, f"{models}: bytes", "weights, GB", "read for one token, MB", "log", "log", axes=panels[1])
    shares = [100 * result["budget_bytes"] / result["weight_bytes"] for result in by_budget]
    model, least = model_name(by_budget[0]), [row["name"] for row in by_budget[0]["stages"]]
    costs = {name: (shares, [_stage(result, name)["total_ms"] for result in by_budget]) for name in least}
    reads = (shares, [_stage(result, least[-1])["bytes_per_token"] / 1e6 for result in by_budget])
    lines({**{f"{name}, ms": cost for name, cost in costs.items()}, f"{least[-1]}, MB": reads},
          f"{model} by budget", "budget, % of the weights", "one token, ms or MB", axes=panels[2])  # fmt: skip
    return figure


def _stage(result: Result, name: str) -> Mapping[str, Any]:
    return next(row for row in result["stages"] if row["name"] == name)
