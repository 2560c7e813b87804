"""A figure of who works when: the processor and the drive, moment by moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from flashlite.plots.style import BAR, FILLS, finish, new_axes

Moment = tuple[str, float, float]  # what is done, its beginning and its end in ms


def timeline(lanes: Mapping[str, Sequence[Moment]], title: str) -> Figure:
    """What is done on each lane over time, a bar for each moment; the lanes are named from the top.

    Each kind of work has its own shade, in the order in which it first occurs; its name is in the legend.
    """
    axes = new_axes(width=9.0, height=1.3 + 0.45 * len(lanes))
    kinds = list(dict.fromkeys(what for moments in lanes.values() for what, _, _ in moments))
    for y, moments in enumerate(lanes.values()):
        for what, begin, end in moments:
            shade, hatch = FILLS[kinds.index(what) % len(FILLS)]
            axes.barh(y, end - begin, BAR, left=begin, color=shade, hatch=hatch, edgecolor="black", lw=0.6)
    for kind in kinds:
        shade, hatch = FILLS[kinds.index(kind) % len(FILLS)]
        axes.barh(0, 0, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=kind)
    axes.set_yticks(range(len(lanes)), list(lanes))
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    return finish(axes, title, "ms", "")
