"""Figures of the course and the command line, readable in greyscale."""

from flashlite.plots.contest import contest, leaderboard
from flashlite.plots.drive import drive_curve, read_times
from flashlite.plots.ladder import ladder, parts
from flashlite.plots.neurons import layouts, pool_steps, raster
from flashlite.plots.rounding import steps
from flashlite.plots.scale import budgets, estimates, peers, sizes
from flashlite.plots.style import bars, dots, heat, lines, save, scatter, stacked
from flashlite.plots.timeline import timeline
from flashlite.plots.training import relufication

__all__ = [
    "bars", "budgets", "contest", "dots", "drive_curve", "estimates", "heat", "ladder", "layouts", "leaderboard",
    "lines", "parts", "peers", "pool_steps", "raster", "read_times", "relufication", "save", "scatter", "sizes",
    "stacked", "steps", "timeline",
]  # fmt: skip
