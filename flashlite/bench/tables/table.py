"""A table of text: printed by rich in a terminal, or in Markdown. Nothing in it is ever cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rich.table
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GOOD, BAD, NEARLY = "✓", "✗", "≈"
COLOURS = {GOOD: "green", BAD: "red", NEARLY: "yellow"}


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns. The first column is text, and all others are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table for a terminal. Where that is too narrow, names of columns are broken between words, and no more;
        what is wider than the terminal even so goes beyond its edge."""
        titles = list(self.columns)
        if self._width(titles) > options.max_width:
            titles = ["\n".join(title.split()) for title in titles]
        table = rich.table.Table(title=self.title)
        for i, title in enumerate(titles):
            table.add_column(Text(title), justify="right" if i else "left", vertical="bottom")
        for row in self.rows:
            table.add_row(*map(_coloured, row))
        yield from console.render(table, options.update_width(max(options.max_width, self._width(titles))))

    def _width(self, titles: Sequence[str]) -> int:
        """Characters of a line of the table under these titles: each column has a border and two blanks."""
        columns = [[*title.split("\n"), *(row[i] for row in self.rows)] for i, title in enumerate(titles)]
        return 1 + sum(3 + max(map(len, column)) for column in columns)

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
