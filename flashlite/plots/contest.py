"""Figures of the contest: what policies and orders read, from what earns 0 to what earns 100, and a class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashlite.plots.style import bars


def contest(
    rows: Mapping[str, float], ends: tuple[str, str], title: str, xlabel: str, axes: Axes | None = None
) -> Figure:
    """What was read, a bar each, under a second axis that tells the score.

    rows: by name, what is scored
    ends: the names of the rows that earn 0 and 100
    """
    figure = bars({name.replace("$", r"\$"): value for name, value in rows.items()}, "", xlabel, axes)
    drawn, (zero, hundred) = figure.axes[0], (rows[name] for name in ends)
    for value in (zero, hundred):
        drawn.axvline(value, color="black", ls=":", lw=1)
    to_score = lambda read: 100 * (zero - np.asarray(read)) / (zero - hundred)  # noqa: E731
    to_read = lambda score: zero - np.asarray(score) * (zero - hundred) / 100  # noqa: E731
    top = drawn.secondary_xaxis("top", functions=(to_score, to_read))
    top.set_ticks([0, 25, 50, 75, 100])
    top.set_xlabel("score")
    drawn.set_title(title, fontsize=11)
    return figure


def leaderboard(scores: Mapping[str, float], title: str, axes: Axes | None = None) -> Figure:
    """A bar for each student, the best first. scores: by name."""
    ordered = sorted(scores.items(), key=lambda row: -row[1])
    figure = bars({name.replace("$", r"\$"): value for name, value in ordered}, title, "score", axes)
    for value in (0, 100):
        figure.axes[0].axvline(value, color="black", ls=":", lw=1)
    return figure
