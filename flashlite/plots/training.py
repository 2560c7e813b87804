"""A figure of relufication: what a model loses with its activation, and wins back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from flashlite.plots.style import lines, plt

if TYPE_CHECKING:
    from flashlite.training.relufy import Relufied


def relufication(result: Relufied) -> Figure:
    """Held-out perplexity by step beside what the model was born with, and the share of zeros, mean over layers."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    steps = [point.step for point in result.log]
    born = [result.born.perplexity] * len(steps)
    perplexity = {"with relu": (steps, [point.perplexity for point in result.log]), result.activation: (steps, born)}
    lines(perplexity, "Perplexity comes back", "steps of training", "held-out perplexity", yscale="log", axes=left)
    zeros = {"with relu": (steps, [100 * sum(point.zeros) / len(point.zeros) for point in result.log])}
    lines(zeros, "Zeros are won", "steps of training", "zeros, % of neurons", axes=right)
    right.set_ylim(0, 100)
    return figure
