"""Figures of what a drive can do."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashlite.drive.probe import Curve
from flashlite.plots.style import DASHES, MARKERS, bytes_label, finish, new_axes


def drive_curve(curve: Curve, axes: Axes | None = None) -> Figure:
    """Throughput of random reads against their size, one line for each number of reads in flight (paper's figure 2)."""
    axes = new_axes(axes, height=4)
    shown = [d for d in curve.depths if d in (1, 4, 16, 32, 128)] or list(curve.depths)
    for i, depth in enumerate(shown):
        rates = [row[curve.depths.index(depth)] for row in curve.mb_s]
        shade = str(0.7 - 0.7 * i / max(1, len(shown) - 1))
        axes.plot(
            curve.sizes,
            rates,
            color=shade,
            marker=MARKERS[i % 6],
            ls=DASHES[-i % len(DASHES)],
            label=f"{depth} in flight",
        )
    axes.axhline(curve.sequential_mb_s, color="0.4", ls="--", lw=1, label="sequential")
    axes.set_yscale("log", base=10)
    _size_axis(axes, curve)
    axes.grid(alpha=0.3)
    return finish(axes, "Small reads are slow unless many are in flight", "size of one read", "throughput, MB/s")


def read_times(curve: Curve, fixed_us: float, mb_s: float, axes: Axes | None = None) -> Figure:
    """Microseconds of one read, alone on the drive, against its size, beside fixed_us + size / mb_s."""
    axes = new_axes(axes)
    sizes = np.array(curve.sizes)
    measured = [size / row[0] for size, row in zip(curve.sizes, curve.mb_s, strict=True)]
    axes.plot(sizes, measured, "ko", label="measured, one in flight")
    dense = np.geomspace(sizes[0], sizes[-1], 100)
    axes.plot(dense, fixed_us + dense / mb_s, "--", color="0.4", label=f"{fixed_us:.0f} µs + size / ({mb_s:.0f} MB/s)")
    axes.axhline(fixed_us, color="0.7", lw=1, ls=":", label="what even an empty read costs")
    axes.set_ylim(0)
    _size_axis(axes, curve)
    return finish(axes, "A small read is nearly all waiting", "size of one read", "time of one read, µs")


def _size_axis(axes: Axes, curve: Curve) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(curve.sizes, [bytes_label(size) for size in curve.sizes], rotation=45)
