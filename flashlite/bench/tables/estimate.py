"""What drives can do, measured or published, and what a token would take on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flashlite.bench.tables.table import Table

if TYPE_CHECKING:  # so that tables need no torch
    from flashlite.bench.result import Result
    from flashlite.drive.probe import Curve
    from flashlite.drive.published import Drive

MEASURED_DRIVE = "the drive of the measured run"


def curve_table(curve: Curve) -> Table:
    """MB/s by size of reads and reads in flight."""
    columns = ["bytes", *map(str, curve.depths)]
    rows = [[str(size), *(f"{rate:.0f}" for rate in row)] for size, row in zip(curve.sizes, curve.mb_s, strict=True)]
    return Table(columns, rows, "random reads, MB/s, by bytes of a read and reads in flight")


def estimate_table(result: dict[str, Any], measured: Result | None = None) -> Table:
    """Milliseconds a token by drive and stage; what `bench` measured, if given, under the estimate for its drive.

    A published drive, which `estimate` was given as "kind: name", is told by its kind: `drive_lines` names it.
    """
    stages, rows = list(result["bytes_per_token"]), []
    for drive, times in result["drives"].items():
        rows.append([drive.partition(":")[0], *(f"{times[stage]:.0f}" for stage in stages)])
        if measured and drive == MEASURED_DRIVE:
            found = {row.name: row.total_ms for row in measured.stages}
            rows.append(["  measured there", *(f"{found[s]:.0f}" if s in found else "" for s in stages)])
            parts = (f"{times[s] / found[s]:.2f}" if s in found else "" for s in stages)
            rows.append(["  estimate / measured", *parts])
    columns = ["ms a token", *(f"{i} {stage}" for i, stage in enumerate(stages))]
    return Table(columns, rows, estimate_title(result))


def estimate_title(result: dict[str, Any]) -> str:
    """What was estimated, and by which shares of neurons."""
    s = result["sparsity"]
    return (
        f"{result['model']} {result['dtype']}, {result['weight_bytes'] / 1e9:.1f} GB, estimated: {s['active']:.1%} of "
        f"the FFN fire, {s['predicted']:.0%} are predicted, {s['resident']:.0%} resident, {s['new']:.1%} read a token"
    )


def drive_lines(drives: Sequence[Drive]) -> list[str]:
    """Where each published drive's figures come from."""
    return [f"{d.kind}: {d.name}, {'measured' if d.measured else 'as promised'}, {d.source}, {d.url}" for d in drives]
