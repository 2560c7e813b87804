"""The ladder as a table, beside what people use today, and what one stage gains over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashlite.bench.row import PeerCost
from flashlite.bench.tables.summary import summary_lines
from flashlite.bench.tables.table import BAD, GOOD, NEARLY, Table, number, numbers, sign

if TYPE_CHECKING:  # so that tables need no torch
    from flashlite.bench.result import Result
    from flashlite.bench.row import MeasuredStage, StageRow, StageRun

SHOWN = ("stage", "I/O ms", "memory ms", "total ms", "MB/token", "same tokens")  # in 80 characters
PUBLISHED = ("stage", "I/O ms", "memory ms", "compute ms", "total ms", "MB/token", "same tokens")
OF_DEVICES = ("copy ms", "device MB")  # columns
PEERS_WIDE = ("prompt, s", "device MB")


def _chosen(columns: dict[str, list[str]], names: Sequence[str] | None) -> Table:
    """The columns of these names, all of them if there are none."""
    names = names or list(columns)
    return Table(names, [list(row) for row in zip(*(columns[name] for name in names), strict=True)])


def _ladder_columns(stages: Sequence[MeasuredStage]) -> dict[str, list[str]]:
    most = max(max(row.total_ms, row.predicted_ms) for row in stages)
    return {
        "stage": [row.title for row in stages],
        "I/O ms": numbers((row.io_ms for row in stages), most),
        "memory ms": numbers((row.memory_ms for row in stages), most),
        "copy ms": numbers((row.copy_ms for row in stages), most),
        "compute ms": numbers((row.compute_ms for row in stages), most),
        "total ms": numbers((row.total_ms for row in stages), most),
        "predicted ms": numbers((row.predicted_ms for row in stages), most),
        "MB/token": numbers(row.bytes_per_token / 1e6 for row in stages),
        "reads/token": [f"{row.reads_per_token:.0f}" for row in stages],
        "MB/s": numbers(row.read_mb_s for row in stages),
        "DRAM MB": numbers(row.dram_bytes / 1e6 for row in stages),
        "peak RSS MB": numbers(row.peak_rss_bytes / 1e6 for row in stages),
        "device MB": [_device_mb(row.device_peak_bytes) for row in stages],
        "same tokens": [_same_tokens(row) for row in stages],
    }


def _same_tokens(row: StageRow) -> str:
    """Whether the oracle's tokens are the dense model's, and how many of the trained predictor's are."""
    nearly = "" if row.agreement == 1 else NEARLY
    return f"{GOOD if row.tokens_equal else BAD} {nearly}{row.agreement:.0%}"


def _device_mb(nbytes: int | None) -> str:
    return "–" if nbytes is None else number(nbytes / 1e6)


def _here(columns: dict[str, list[str]], result: Result) -> dict[str, list[str]]:
    """The columns that say something where the weights lay: a device has some of its own."""
    return {name: cells for name, cells in columns.items() if result.device != "cpu" or name not in OF_DEVICES}


def _names(names: Sequence[str], result: Result) -> list[str]:
    """Columns to show, with the copies beside the reads where there is a bus."""
    at = names.index("I/O ms") + 1
    return [*names[:at], *(["copy ms"] if result.device != "cpu" else []), *names[at:]]


def ladder_table(result: Result, wide: bool = False) -> Table:
    """The ladder for the terminal, times of one token: few columns, or with `wide` all of them."""
    return _chosen(_here(_ladder_columns(result.stages), result), None if wide else _names(SHOWN, result))


def ladder_markdown(result: Result) -> str:
    """The ladder in Markdown, with the lines around it."""
    first, *rest = summary_lines(result)
    table = _chosen(_ladder_columns(result.stages), _names(PUBLISHED, result)).markdown()
    return "\n".join([f"{first}.", "", table, "", *(f"- {line}" for line in rest)])


def _peer_columns(result: Result) -> dict[str, list[str]]:
    """The dense model, which has all the DRAM it wants, flashlite's stages, and the peers that weren't killed."""
    dense = result.dense
    measured: list[tuple[str, StageRun | PeerCost]] = [(f"flashlite, {row.title}", row) for row in result.stages]
    measured += [(peer.name, peer.cost) for peer in result.peers if peer.cost]
    ms = [dense.total_ms, *(row.total_ms for _, row in measured)]
    dense_bytes = float(result.weight_bytes if dense.streamed else 0)
    columns = {
        "beside": [f"{result.dense_title}, no cap", *(name for name, _ in measured)],
        "one token, ms": numbers(ms),
        "of naive" if dense.streamed else "of dense": numbers(each / dense.total_ms for each in ms),
        "prompt, s": numbers(each / 1e3 for each in (dense.prompt_ms, *(row.prompt_ms for _, row in measured))),
        "MB/token": numbers([dense_bytes / 1e6, *(row.bytes_per_token / 1e6 for _, row in measured)]),
        "peak RSS MB": numbers(
            each / 1e6 for each in (dense.dram_bytes, *(row.peak_rss_bytes for _, row in measured))
        ),
        "device MB": [_device_mb(row.device_peak_bytes) for row in (dense, *(row for _, row in measured))],
        "same tokens": [sign(True), *(_same(row) for _, row in measured)],
    }  # fmt: skip
    killed = [peer.name for peer in result.peers if not peer.cost]
    return {
        name: [*cells, *(killed if name == "beside" else [f"{BAD} killed" if "ms" in name else "–"] * len(killed))]
        for name, cells in columns.items()
    }


def _same(row: StageRun | PeerCost) -> str:
    """Whether tokens are the dense model's: those of a stage's oracle, or how many of a peer's."""
    if isinstance(row, PeerCost) and row.agreement < 1:
        return f"{BAD} {row.agreement:.0%}"
    return sign(row.tokens_equal)


def peer_table(result: Result, wide: bool = False) -> Table:
    """What people use today beside the ladder, for the terminal: six columns, or with `wide` all of them."""
    columns = _here(_peer_columns(result), result)
    return _chosen(columns, None if wide else [name for name in columns if name not in PEERS_WIDE])


def peer_markdown(result: Result) -> str:
    """`peer_table` in Markdown, all columns of it."""
    return _chosen(_here(_peer_columns(result), result), None).markdown()


def gain_markdown(rows: Sequence[StageRow], names: Sequence[str] | None = None) -> str:
    """Stages in Markdown, the last one also in parts of the first. names: instead of the stages' own."""
    names = names or [row.title for row in rows]
    most = max(row.total_ms for row in rows)
    values = {
        "I/O ms": [row.io_ms for row in rows],
        "memory ms": [row.memory_ms for row in rows],
        "compute ms": [row.compute_ms for row in rows],
        "total ms": [row.total_ms for row in rows],
        "MB/token": [row.bytes_per_token / 1e6 for row in rows],
        "reads/token": [row.reads_per_token for row in rows],
        "DRAM MB": [row.dram_bytes / 1e6 for row in rows],
    }
    columns = {
        "": [*names, f"*{names[-1]} / {names[0]}*"],
        **{
            title: [*numbers(column, most if "ms" in title else None), _ratio(column[0], column[-1])]
            for title, column in values.items()
        },
        "same tokens": [*(sign(row.tokens_equal) for row in rows), ""],
    }
    return _chosen(columns, None).markdown()


def _ratio(first: float, last: float) -> str:
    return f"*{last / first:.2f}*" if first > 1e-3 else "–"
