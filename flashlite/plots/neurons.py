"""Figures of neurons: when they fire, how they lie on flash, where they live in DRAM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flashlite.plots.style import FILLS, finish, new_axes, plt


def raster(trace: Sequence[np.ndarray], fresh: Sequence[np.ndarray], title: str, axes: Axes | None = None) -> Figure:
    """Neurons by token, a mark for each that a token needs: a dark square if it is read, a light dot if it is in DRAM.

    trace: [n] int64 for each token; fresh: the part of each that is read.
    """
    axes = new_axes(axes, width=8.5, height=4.2)
    for arrays, shade, mark, label in ((trace, "0.72", "o", "in DRAM already"), (fresh, "0.0", "s", "read from flash")):
        tokens = np.repeat(np.arange(len(arrays)), [len(a) for a in arrays])
        axes.scatter(tokens, np.concatenate(list(arrays)), s=9, color=shade, marker=mark, lw=0, label=label)
    return finish(axes, title, "token", "neuron of the layer")


UNGATED = {"u": "row of the up projection", "d": "column of the down projection"}
GATED = {"g": "row of the gate projection", "d": "column of the down projection", "u": "row of the up projection"}


def layouts(wanted: Sequence[int], neurons: int = 8, gated: bool = False) -> Figure:
    """How `neurons` neurons of one layer lie on flash in both layouts, and which bytes the wanted ones need."""
    parts = GATED if gated else UNGATED
    figure, rows = plt.subplots(2, 1, figsize=(9, 2.8), layout="constrained")
    split = [(f"{part}{i}", i) for part in parts for i in range(neurons)]
    bundled = [(f"{part}{i}", i) for i in range(neurons) for part in parts]
    each = f"{'three' if gated else 'two'} reads for each"
    for axes, cells, name, count in (
        (rows[0], split, "split", each), (rows[1], bundled, "bundled", "one read for each"),
    ):  # fmt: skip
        for x, (label, neuron) in enumerate(cells):
            chosen = neuron in wanted
            axes.add_patch(Rectangle((x, 0), 1, 1, fc="0.6" if chosen else "white", ec="black", lw=0.6))
            axes.text(x + 0.5, 0.5, label, ha="center", va="center", fontsize=8, weight="bold" if chosen else "normal")
        axes.set_xlim(0, len(cells))
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_xticks([])
        axes.set_title(f"{name}: {count} of the neurons {', '.join(map(str, wanted))}", fontsize=10, loc="left")
    meanings = "   ".join(f"{part}: {meaning}" for part, meaning in parts.items())
    rows[1].set_xlabel(f"bytes of the file →   {meanings}")
    return figure


def pool_steps(steps: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], capacity: int) -> Figure:
    """A pool's rows after each step: its name, the neurons of the used rows, the rows just read and just moved."""
    figure, panels = plt.subplots(
        1, len(steps), figsize=(2.1 * len(steps), 0.5 + 0.42 * capacity), layout="constrained"
    )
    following = [set(neurons) for _, neurons, _, _ in steps[1:]] + [set(steps[-1][1])]
    for axes, (name, neurons, read, moved), stay in zip(panels, steps, following, strict=True):
        for row in range(capacity):
            used = row < len(neurons)
            shade, hatch = FILLS[1] if row in read else ("0.85", "..") if row in moved else ("white", "")
            axes.add_patch(Rectangle((0, row), 1, 0.9, fc=shade, hatch=hatch, ec="black" if used else "0.75", lw=0.8))
            leaves = " (leaves)" if used and neurons[row] not in stay else ""
            text = f"neuron {neurons[row]}{leaves}" if used else "free"
            axes.text(0.5, row + 0.45, text, ha="center", va="center", fontsize=9, color="black" if used else "0.6",
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"})  # fmt: skip
        axes.axhline(len(neurons) - 0.05, color="black", lw=2)
        axes.set_xlim(0, 1)
        axes.set_ylim(capacity, -0.1)
        axes.set_xticks([])
        axes.set_yticks([row + 0.45 for row in range(capacity)], [str(row) for row in range(capacity)], fontsize=8)
        axes.set_title(name, fontsize=9)
    panels[0].set_ylabel("row")
    figure.supxlabel("hatched: read from flash   dotted: moved inside DRAM   thick line: num_used", fontsize=8)
    return figure
