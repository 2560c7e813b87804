"""Write README.md's tables and figures from results/, and its house: python tools/update_readme.py [--check].

--check    change nothing; fail if README.md isn't what results/ and the modules give
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from house import house

from flashlite import plots
from flashlite.bench.cost import io_ms
from flashlite.bench.result import Result
from flashlite.bench.tables import Table, ladder_markdown, peer_markdown, summary_lines
from flashlite.bench.tables.table import sign
from flashlite.course import paper
from flashlite.drive.published import find_drive

ROOT = Path(__file__).parent.parent
MINI, SCALE, INT8 = "bench-opt-mini-fp32", "bench-opt-6.7b-bf16", "bench-opt-6.7b-int8"
LARGER = "bench-opt-30b-int8"
SIZES = ("bench-opt-1.3b-bf16", "bench-opt-2.7b-bf16", SCALE)
SLOWER = "Samsung 870 EVO"


def updated(text: str) -> str:
    """The README with what the newest results say between their markers, and every module in its house."""
    texts = {
        "scale": beside(result(SCALE)),
        "families": families(),
        "int8": few_lines(beside(result(INT8)), 3),
        "larger": few_lines(beside(result(LARGER)), 3),
        "results": few_lines(ladder_markdown(result(MINI))),
        "slower": predictor_line(result(MINI)),
        "verified": verified_line(),
    }
    for marker, new in texts.items():
        begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        before, others = text.split(begin)
        gap = "\n\n" if "\n" in new else ""  # a sentence stands within a paragraph
        text = f"{before}{begin}{gap}{new}{gap}{end}{others.split(end)[1]}"
    above, below = text.split("## The house")
    said, tree, after = below.split("```", 2)
    return f"{above}## The house{said}```\n{house(tree, ROOT)}\n```{after}"


def beside(measured: Result) -> str:
    """A benchmark with what people use today: its table, and the lines around it."""
    first, *rest = summary_lines(measured)
    return "\n".join([f"{first}.", "", peer_markdown(measured), "", *(f"- {line}" for line in rest)])


def result(name: str) -> Result:
    """A benchmark's result by the name of its file."""
    return Result.from_json(json.loads((ROOT / f"results/{name}.json").read_text(encoding="utf-8")))


def families() -> str:
    """Each model of the paper's table 3: what was measured of one of its shape, beside the paper's gain."""
    columns = (
        "model", "budget", "dense, ms", "0 naive, ms", "5 pool, ms", "6 overlap, ms", "naive / pool", "the paper's",
        "wasted at 6", "same tokens",
    )  # fmt: skip
    totals = {(row.model, row.system): row.total_ms for row in paper.TABLE_3}
    rows = []
    for theirs, name in paper.MEASURED.items():
        gain = f"{totals[f'{theirs} CPU', 'naive'] / totals[f'{theirs} CPU', 'all']:.1f}"
        path = ROOT / f"results/bench-{name}-bf16.json"
        ours = (
            measured_cells(result(path.stem), gain) if path.exists() else ["not measured yet", *[""] * 5, gain, "", ""]
        )
        rows.append([theirs, *ours])
    return Table(columns, rows).markdown()


def measured_cells(measured: Result, gain: str) -> list[str]:
    """A model's row of `families`. gain: the paper's."""
    stages = {stage.name: stage for stage in measured.stages}
    naive, pool, overlap = (stages[name] for name in ("naive", "pool", "overlap"))
    times = (measured.dense.total_ms, naive.total_ms, pool.total_ms, overlap.total_ms)
    wasted = f"{overlap.wasted_bytes / max(1, overlap.prefetched_bytes):.0%}"
    same = sign(all(stage.tokens_equal for stage in measured.stages))
    ours = f"{naive.total_ms / pool.total_ms:.1f}"
    return [f"{measured.budget_share:.0%}", *(f"{ms:,.0f}" for ms in times), ours, gain, wasted, same]


def few_lines(table: str, most: int = 2) -> str:
    """A table with the first of the lines below it: where it was measured, and the dense model's time."""
    lines = table.splitlines()
    below = [line for line in lines if line.startswith("- ")]
    return "\n".join(line for line in lines if line not in below[most:])


def predictor_line(measured: Result) -> str:
    """Whether stage 2 waits longer than stage 1, why, and what the same reads would take on a drive slower in order."""
    resident, predictor = measured.stages[1:3]
    fewer = resident.bytes_per_token / predictor.bytes_per_token
    slower = resident.read_mb_s / predictor.read_mb_s
    drive = find_drive(SLOWER)
    curve = drive.curve()
    there = [
        io_ms(curve, row.reads_per_token, row.bytes_per_token, row.batches_per_token) for row in (resident, predictor)
    ]
    pieces = predictor.bytes_per_token / there[1] / 1e3  # MB/s
    question = f"Why does stage 2 {'lose to' if predictor.total_ms > resident.total_ms else 'gain on'} stage 1 here?"
    return (
        f"{question} It reads {fewer:.0f} times fewer bytes, but in pieces of half a neuron, "
        f"which this drive gives at {predictor.read_mb_s:,.0f} MB/s instead of {resident.read_mb_s:,.0f}, "
        f"{slower:.0f} times more slowly. What decides is how far these two rates lie apart, not how fast a drive is. "
        f"On a {drive.name} ({drive.kind}, {drive.sequential_mb_s:,.0f} MB/s in order and {pieces:,.0f} in such "
        f"pieces) the same reads would keep a token waiting {there[0]:.0f} ms at stage 1 and {there[1]:.0f} ms at "
        "stage 2, says the cost model."
    )


def verified_line() -> str:
    """What comparing every record with its checksum costs."""
    verified = json.loads((ROOT / "results/verified-reads.json").read_text(encoding="utf-8"))
    plain_ms, verified_ms = verified["plain_ms"], verified["verified_ms"]
    return (
        f"A token of opt-mini then takes {verified_ms:.1f} ms instead of {plain_ms:.1f} at stage {verified['stage']}, "
        f"{verified_ms / plain_ms - 1:.0%} more."
    )


def draw() -> None:
    """The README's figures."""
    for name in (MINI, SCALE):
        plots.save(plots.ladder(result(name)), ROOT / f"results/{name}.png")
    plots.save(plots.peers(result(SCALE)), ROOT / "results/peers-opt-6.7b-bf16.png")
    plots.save(plots.sizes([result(name) for name in SIZES]), ROOT / "results/sizes-bf16.png")


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv:
        sys.exit(
            0
            if text == updated(text)
            else "README.md isn't what results/ and the modules give: run python tools/update_readme.py"
        )
    readme.write_text(updated(text))
    draw()


if __name__ == "__main__":
    main()
