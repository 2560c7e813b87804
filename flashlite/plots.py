"""Figures of the course and the command line, readable in greyscale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashlite.probe import Curve

PARTS = (
    ("io_ms", "waiting for flash", "0.25", ""),
    ("memory_ms", "managing memory", "0.55", "//"),
    ("compute_ms", "computing", "0.85", ".."),
)


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure to a file whose ending says the format; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path


def _bytes(size: int) -> str:
    return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


def drive_curve(curve: Curve, axes: Axes | None = None) -> Figure:
    """Throughput of random reads against their size, one line for each number of reads in flight (paper's figure 2)."""
    axes = axes or plt.subplots(figsize=(7, 4))[1]
    shown = [d for d in curve.depths if d in (1, 4, 16, 32, 128)] or list(curve.depths)
    markers = "osv^D*"
    for i, depth in enumerate(shown):
        rates = [row[curve.depths.index(depth)] for row in curve.mb_s]
        shade = str(0.7 - 0.7 * i / max(1, len(shown) - 1))
        axes.plot(curve.sizes, rates, color=shade, marker=markers[i % 6], label=f"{depth} in flight")
    axes.axhline(curve.sequential_mb_s, color="0.4", ls="--", lw=1, label="sequential")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.set_xticks(curve.sizes, [_bytes(size) for size in curve.sizes], rotation=45)
    axes.set_xlabel("size of one read")
    axes.set_ylabel("throughput, MB/s")
    axes.set_title("Small reads are slow unless many are in flight")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def ladder(result: dict[str, Any], axes: Axes | None = None) -> Figure:
    """Stacked bars of a token's time by stage, with the cost model's prediction and the dense model beside them."""
    axes = axes or plt.subplots(figsize=(7.5, 4))[1]
    stages = result["stages"]
    names = [f"{s['stage']} {s['name']}" for s in stages]
    bottom = [0.0] * len(stages)
    for key, label, shade, hatch in PARTS:
        heights = [s[key] for s in stages]
        axes.bar(names, heights, 0.6, bottom, color=shade, hatch=hatch, edgecolor="black", lw=0.6, label=label)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    predicted = [s["predicted_ms"] for s in stages]
    axes.plot(names, predicted, "k_", ms=28, mew=2, label="predicted by the cost model")
    axes.axhline(result["dense"]["total_ms"], color="black", ls=":", lw=1, label="dense, all weights in DRAM")
    for x, (top, stage) in enumerate(zip(bottom, stages, strict=True)):
        axes.annotate(f"{stage['bytes_per_token'] / 1e6:.1f} MB", (x, max(top, predicted[x])), (0, 4),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    axes.set_ylabel("one token, ms")
    axes.set_title(f"{result['model']} in {result['budget_bytes'] / result['weight_bytes']:.0%} of its memory: "
                   "time and bytes read for a token")  # fmt: skip
    axes.legend(fontsize=8)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure
