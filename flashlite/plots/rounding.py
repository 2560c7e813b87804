"""A figure of rounding: weights between the steps that int8 has for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from flashlite.plots.style import finish, outside_legend, plt


def steps(weights: np.ndarray, scales: Mapping[str, float], title: str) -> Figure:
    """Some weights of a row, and the steps that they are rounded to: a panel for each size of a step.

    weights: [n]
    scales: the size of a step, by the panel's name
    """
    figure, panels = plt.subplots(1, len(scales), figsize=(4.9 * len(scales), 3.8), sharey=True, layout="constrained")
    figure.suptitle(title, fontsize=11)
    columns, highest = np.arange(len(weights)), float(np.abs(weights).max())
    for axes, (name, scale) in zip(np.atleast_1d(panels), scales.items(), strict=True):
        most = int(highest / scale) + 1
        for k in range(-most, most + 1):
            axes.axhline(k * scale, color="0.85", lw=0.6, zorder=0)
        rounded = scale * np.rint(weights / scale)
        axes.vlines(columns, weights, rounded, color="black", lw=1)
        axes.plot(columns, rounded, "s", color="black", ms=3.5, ls="", label="rounded to a whole step")
        axes.plot(columns, weights, "o", mfc="none", mec="black", ms=6, ls="", zorder=3, label="weight")
        finish(axes, f"{name}: steps of {scale:.2g}", "weight of the row", "", legend=False)
        axes.set_ylim(-1.1 * highest, 1.1 * highest)
    outside_legend(figure, np.atleast_1d(panels)[0])
    return figure
