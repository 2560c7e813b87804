"""A table of text: printed by rich in a terminal, or in Markdown. Nothing in it is ever cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

GOOD, BAD, NEARLY = "✓", "✗", "≈"
WIDEST = 1000  # characters that no table needs
COLOURS = {GOOD: "green", BAD: "red", NEARLY: "yellow"}


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns. The first column is text, and all others are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table for a terminal. Where that is too narrow, names of columns are broken between words, and then the
        text of the first column; what is wider even so goes beyond the terminal's edge."""
        table, unbounded = self._drawn(broken=False), options.update_width(WIDEST)
        if Measurement.get(console, unbounded, table).maximum > options.max_width:
            table = self._drawn(broken=True)
        least = Measurement.get(console, unbounded, table).minimum
        yield from console.render(table, options.update_width(max(least, options.max_width)))

    def _drawn(self, broken: bool) -> rich.table.Table:
        """The table as rich draws it. broken: whether each word of a column's name has a line of its own."""
        table = rich.table.Table(title=self.title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for i, title in enumerate(self.columns):
            words = Text("\n".join(title.split()) if broken and i else title)
            widest = max((cell_len(row[i]) for row in self.rows), default=0)  # rich would cut cells of several words
            table.add_column(
                words, justify="right" if i else "left", no_wrap=i > 0, min_width=widest if i else None,
                vertical="bottom",
            )  # fmt: skip
        for row in self.rows:
            table.add_row(*map(_coloured, row))
        return table

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _coloured(cell: str) -> Text:
    text = Text(cell)
    for sign, colour in COLOURS.items():
        text.highlight_words([sign], colour)
    return text


def sign(good: bool | None) -> str:
    """Whether something is right, as a sign and a word: neither needs colour."""
    return f"{GOOD} yes" if good else f"{BAD} NO"


def numbers(values: Iterable[float], largest: float | None = None) -> list[str]:
    """Numbers of one column or of one unit, all with the same decimals: 2 below 100, 1 below 1000, none above that.

    largest: what decides on the decimals; the largest of these values unless given.
    """
    values = list(values)
    top = max(map(abs, values), default=0.0) if largest is None else largest
    decimals = 2 if top < 100 else 1 if top < 1000 else 0
    return [f"{value:.{decimals}f}" for value in values]


def number(value: float) -> str:
    """A number that stands alone, with the decimals of `numbers`."""
    return numbers([value])[0]
