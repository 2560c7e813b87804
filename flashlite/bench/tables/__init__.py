"""What is measured as tables and lines of text: for the terminal, and in Markdown for the README and the chapters."""

from flashlite.bench.tables.card import model_card
from flashlite.bench.tables.estimate import MEASURED_DRIVE, curve_table, drive_lines, estimate_table, estimate_title
from flashlite.bench.tables.ladder import gain_markdown, ladder_markdown, ladder_table, peer_markdown, peer_table
from flashlite.bench.tables.model import (
    calibrated_line,
    planted_line,
    predictor_table,
    relufied_line,
    zeros_table,
)
from flashlite.bench.tables.summary import LEGEND, summary_lines
from flashlite.bench.tables.table import Table, number, numbers

__all__ = [
    "LEGEND", "MEASURED_DRIVE", "Table", "calibrated_line", "curve_table", "drive_lines", "estimate_table",
    "estimate_title", "gain_markdown", "ladder_markdown", "ladder_table", "model_card", "number", "numbers",
    "peer_markdown", "peer_table", "planted_line", "predictor_table", "relufied_line", "summary_lines", "zeros_table",
]  # fmt: skip
