"""Results as tables: for the terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:  # so that a table of a drive needs no torch
    from flashlite.drive.probe import Curve
    from flashlite.drive.published import Drive
    from flashlite.engine.predictor_file import LayerReport
    from flashlite.engine.timing import CallCost

LADDER_COLUMNS = (
    "stage", "I/O ms", "memory ms", "compute ms", "total ms", "predicted ms", "MB/token", "reads/token", "MB/s",
    "DRAM MB", "peak RSS MB", "same tokens", "agreement",
)  # fmt: skip


def _ladder_row(stage: dict[str, Any]) -> list[str]:
    times = [f"{stage[key]:.2f}" for key in ("io_ms", "memory_ms", "compute_ms", "total_ms", "predicted_ms")]
    reads = [f"{stage['bytes_per_token'] / 1e6:.2f}", f"{stage['reads_per_token']:.0f}", f"{stage['read_mb_s']:.0f}"]
    memory = [f"{stage['dram_bytes'] / 1e6:.1f}", f"{(stage['peak_rss_bytes']) / 1e6:.0f}"]
    checked = "yes" if stage["tokens_equal"] else "NO"
    return [f"{stage['stage']} {stage['name']}", *times, *reads, *memory, checked, f"{stage['agreement']:.0%}"]


def summary_lines(result: dict[str, Any]) -> list[str]:
    """What stands around the table: the machine, the drive's ceiling, the dense model, the memory base."""
    host, ceiling, dense = result["host"], result["ceiling"], result["dense"]
    base, most = result["base"], max(stage["peak_rss_bytes"] for stage in result["stages"])
    budget, weights = result["budget_bytes"], result["weight_bytes"]
    planted = " (planted)" if result.get("planted") else ""
    capped = [_cap_line(result["memory_cap"])] if result["memory_cap"]["bytes"] else []
    ahead = [_ahead_line(stage) for stage in result["stages"] if stage["prefetched_bytes"]]
    return [
        f"{result['model']}{planted} {result['dtype']}, {weights / 1e6:.1f} MB of weights, budget {budget / 1e6:.1f} "
        f"MB ({budget / weights:.0%}), {result['new_tokens']} tokens after a prompt of {result['prompt_tokens']}",
        f"{host['processor']}, {host['cores']} cores, {host['memory_bytes'] / 2**30:.0f} GiB; drive "
        f"{result['drive']['device']}: {ceiling['random_mb_s']:.0f} MB/s in random reads of {ceiling['record_bytes']} "
        f"bytes, {ceiling['depth']} in flight, {ceiling['sequential_mb_s']:.0f} MB/s sequential",
        f"dense, all weights in DRAM: {dense['total_ms']:.2f} ms a token in {dense['dram_bytes'] / 1e6:.0f} MB",
        f"peak RSS {'never passes' if most <= budget + base['total'] else 'PASSES'} budget plus a base of "
        f"{base['total'] / 1e6:.1f} MB: libraries {base['libraries'] / 1e6:.1f}, KV cache "
        f"{base['kv_cache'] / 1e6:.1f}, activations and allocator {base['work'] / 1e6:.1f}",
        *[_work_line(stage, ceiling) for stage in result["stages"] if stage["name"] == "pool"],
        *ahead,
        *capped,
    ]


def _work_line(stage: dict[str, Any], ceiling: dict[str, Any]) -> str:
    """How much of a token is the work that it must be: reads, and products with weights, attention's and the head's."""
    total, work = stage["total_ms"], stage["io_ms"] + stage["product_ms"] + stage["linear_ms"]
    reached = stage["read_mb_s"] / ceiling["random_mb_s"]
    return (
        f"stage {stage['stage']} waits for flash or multiplies weights for {work / total:.0%} of a token, and manages "
        f"memory for {stage['memory_ms'] / total:.1%}; its reads reach {reached:.0%} of the drive's random reads"
    )


def _ahead_line(stage: dict[str, Any]) -> str:
    ahead, wasted = stage["prefetched_bytes"], stage["wasted_bytes"]
    return (
        f"stage {stage['stage']} reads {ahead / 1e6:.2f} MB of a token ahead of the layer that needs it, "
        f"{wasted / ahead:.0%} of that for nothing"
    )


def _cap_line(cap: dict[str, Any]) -> str:
    size = f"memory cap of {cap['bytes'] / 1e6:.1f} MB, the budget and {cap['base_bytes'] / 1e6:.1f} MB for the process"
    if not cap["enforced"]:
        return f"{size}: NOT enforced, for the system grants no control group here"
    most = f"; at most {cap['peak_bytes'] / 1e6:.1f} MB were used" if cap["peak_bytes"] else ""
    dense = "runs as well" if cap["dense_fits"] else "is killed"
    return f"{size}, page cache included, enforced by {cap['how']}{most}; under it the dense model {dense}"


def ladder_table(result: dict[str, Any]) -> Table:
    """The ladder for the terminal; times of one token."""
    table = Table(*LADDER_COLUMNS)
    for stage in result["stages"]:
        table.add_row(*_ladder_row(stage))
    return table


def ladder_markdown(result: dict[str, Any]) -> str:
    """The ladder in Markdown, with the lines around it."""
    first, *rest = summary_lines(result)
    table = _markdown(LADDER_COLUMNS, [_ladder_row(stage) for stage in result["stages"]])
    return "\n".join([f"{first}.", "", table, "", *(f"- {line}" for line in rest)])


PEER_COLUMNS = ("beside", "one token, ms", "of dense", "prompt, s", "MB/token", "peak RSS MB", "same tokens")


def _peer_rows(result: dict[str, Any]) -> list[list[str]]:
    """flashlite's last stages, the dense model that has all the DRAM it wants, and the peers under the same cap."""
    dense = result["dense"]
    rows = [
        ["transformers, all in DRAM, no cap", dense["total_ms"], dense["prompt_ms"], 0.0, dense["dram_bytes"], True]
    ]
    for row in result["stages"]:
        rows.append([f"flashlite, {row['stage']} {row['name']}"] + [row[key] for key in PEER_KEYS])
    rows += [[row["name"]] + [row[key] for key in PEER_KEYS] for row in result["peers"] if not row["killed"]]
    killed = [[row["name"], "killed: out of memory", *[""] * 5] for row in result["peers"] if row["killed"]]
    return [
        [name, f"{ms:.0f}", f"{ms / dense['total_ms']:.2f}", f"{prompt / 1e3:.1f}", f"{nbytes / 1e6:.0f}",
         f"{rss / 1e6:.0f}", "yes" if equal else "NO"] for name, ms, prompt, nbytes, rss, equal in rows
    ] + killed  # fmt: skip


PEER_KEYS = ("total_ms", "prompt_ms", "bytes_per_token", "peak_rss_bytes", "tokens_equal")


def peer_table(result: dict[str, Any]) -> Table:
    """What people use today beside the ladder, for the terminal."""
    table = Table(*PEER_COLUMNS)
    for row in _peer_rows(result):
        table.add_row(*row)
    return table


def peer_markdown(result: dict[str, Any]) -> str:
    """`peer_table` in Markdown."""
    return _markdown(PEER_COLUMNS, _peer_rows(result))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    return "\n".join([head, *("| " + " | ".join(row) + " |" for row in rows)])


def numbers_table(columns: Sequence[str], title: str | None = None, text: int = 0) -> Table:
    """An empty table of numbers, right-aligned and never cut, after `text` columns of text. Fits 80 characters."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        if i < text:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def curve_table(curve: Curve) -> Table:
    """MB/s by size of reads and reads in flight."""
    table = numbers_table(
        ["bytes", *map(str, curve.depths)], "random reads, MB/s, by bytes of a read and reads in flight"
    )
    for size, row in zip(curve.sizes, curve.mb_s, strict=True):
        table.add_row(str(size), *(f"{rate:.0f}" for rate in row))
    return table


def predictor_table(reports: list[LayerReport]) -> Table:
    """How good each layer's predictor is on held-out text."""
    table = numbers_table(
        ["layer", "rank", "active", "predicted", "ratio", "recall", "false\nnegatives", "false\npositives"]
    )
    for i, r in enumerate(reports):
        ratio = r.predicted / r.active if r.active else 0.0
        shares = (f"{share:.2%}" for share in (r.recall, r.false_negatives, r.false_positives))
        table.add_row(str(i), str(r.rank), f"{r.active:.2%}", f"{r.predicted:.2%}", f"{ratio:.2f}", *shares)
    return table


def token_line(calls: Sequence[CallCost], budget_bytes: int, seconds: float) -> str:
    """One line: what the tokens after the prompt cost on average."""
    decoded = [call for call in calls if call.tokens == 1] or calls

    def mean(field: str) -> float:
        return sum(getattr(call, field) for call in decoded) / len(decoded)

    split = f"I/O {mean('io_ms'):.1f} + memory {mean('memory_ms'):.1f} + compute {mean('compute_ms'):.1f} ms"
    return (
        f"[{len(calls)} calls in {seconds:.1f} s; a token: {split}, {mean('bytes') / 1e6:.2f} MB in "
        f"{mean('reads'):.0f} reads; budget {budget_bytes / 1e6:.1f} MB]"
    )


def planted_line(planted: dict[str, Any]) -> str:
    """What a planted model reached, as shares of the FFN."""
    share = {name: f"{planted[name]:.2%}" for name in ("active", "predicted", "recall", "new", "resident", "ahead")}
    return (
        f"for a token {share['active']} of the FFN fire, {share['predicted']} are predicted, recall {share['recall']}; "
        f"with a window of {planted['window']} {share['new']} are read and {share['resident']} resident; "
        f"{share['ahead']} of what a layer is predicted to need is told by the input of the layer before"
    )


GAIN_COLUMNS = (
    ("I/O ms", "io_ms", 1.0), ("memory ms", "memory_ms", 1.0), ("compute ms", "compute_ms", 1.0),
    ("total ms", "total_ms", 1.0), ("MB/token", "bytes_per_token", 1e6), ("reads/token", "reads_per_token", 1.0),
    ("DRAM MB", "dram_bytes", 1e6),
)  # fmt: skip


def gain_markdown(rows: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> str:
    """Rows of `compare` in Markdown, the last one also in parts of the first; `names` instead of the stages'."""
    names = names or [f"{row['stage']} {row['name']}" for row in rows]
    head = "| | " + " | ".join(title for title, _, _ in GAIN_COLUMNS) + " | same tokens |"
    lines = [head, "|---" * (len(GAIN_COLUMNS) + 2) + "|"]
    for name, row in zip(names, rows, strict=True):
        cells = [f"{row[key] / unit:.{0 if 'reads' in title else 2}f}" for title, key, unit in GAIN_COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if row['tokens_equal'] else 'NO'} |")
    ratios = [f"{rows[-1][key] / rows[0][key]:.2f}" if rows[0][key] > 1e-3 else "–" for _, key, _ in GAIN_COLUMNS]
    lines.append(f"| *{names[-1]} / {names[0]}* | {' | '.join(f'*{ratio}*' for ratio in ratios)} | |")
    return "\n".join(lines)


MEASURED_DRIVE = "the drive of the measured run"


def estimate_table(result: dict[str, Any], measured: dict[str, Any] | None = None) -> Table:
    """Milliseconds a token by drive and stage; what `bench` measured, if given, under the estimate for its drive."""
    stages = list(result["bytes_per_token"])
    columns = ["ms a token", *(f"{i}\n{stage}" for i, stage in enumerate(stages))]
    table = numbers_table(columns, estimate_title(result), text=1)
    for drive, times in result["drives"].items():
        table.add_row(drive, *(f"{times[stage]:.0f}" for stage in stages))
        if measured and drive == MEASURED_DRIVE:
            found = {row["name"]: row["total_ms"] for row in measured["stages"]}
            table.add_row("  measured there", *(f"{found[s]:.0f}" if s in found else "" for s in stages))
            table.add_row(
                "  estimate / measured", *(f"{times[s] / found[s]:.2f}" if s in found else "" for s in stages)
            )
    return table


def estimate_title(result: dict[str, Any]) -> str:
    """What was estimated, and by which shares of neurons."""
    s = result["sparsity"]
    return (
        f"{result['model']} {result['dtype']}, {result['weight_bytes'] / 1e9:.1f} GB, estimated: {s['active']:.1%} of "
        f"the FFN fire, {s['predicted']:.0%} are predicted, {s['resident']:.0%} resident, {s['new']:.1%} read a token"
    )


def drive_lines(drives: Sequence[Drive]) -> list[str]:
    """Where each published drive's figures come from."""
    return [f"{d.name}: {'measured' if d.measured else 'as promised'}, {d.source}, {d.url}" for d in drives]
