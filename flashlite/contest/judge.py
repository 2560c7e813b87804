"""Judging an entry: its score in either contest, or the one line that says why there is none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashlite.contest import layout
from flashlite.contest.baselines import baselines
from flashlite.contest.layout import Cost, OrderKind
from flashlite.contest.referee import play, score
from flashlite.contest.remote import TIME_LIMIT, Fault, Remote, running
from flashlite.contest.traces import of_layer, read_trace
from flashlite.engine.policies.rules import Foul, check_order
from flashlite.errors import FlashliteError

ENTRY = "your entry"


@dataclass(frozen=True)
class Row:
    """What was read on all traces together.

    cost: what is scored, in neurons
    columns: the same for a token, by what a table calls it
    """

    cost: int
    columns: Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """How the baselines and an entry did: rows by name, and the entry's score, None with a line that says why."""

    rows: Mapping[str, Row]
    score: float | None = None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


class Contest(ABC):
    """A contest on given traces, whose baselines have been played, and which any number of entries can enter.

    graded: files of the traces that are graded
    training: files of traces to learn from; while one of them is graded, it is left out

    Raises FlashliteError if a trace can't be read, or if they are of several models.
    """

    title: str  # of tables and figures
    file: str  # what an entry's file is called
    ends: tuple[str, str]  # the rows whose scores are 0 and 100
    shown: tuple[str, str]  # the column that a figure shows, and how it calls it

    def __init__(self, graded: Sequence[Path], training: Sequence[Path]) -> None:
        self.graded, self.training = list(graded), list(training)
        self.traces = [read_trace(path) for path in self.graded]
        if len({(trace.layers, trace.neurons, trace.record_bytes) for trace in self.traces}) > 1:
            raise FlashliteError(f"the traces in {self.graded[0].parent} are of several models: keep those of one")
        self.tokens = sum(trace.tokens for trace in self.traces)
        self.rows = self.baselines()

    def past(self, graded: Path) -> list[Path]:
        """The files that may be learned from while one is graded."""
        return [path for path in self.training if path.resolve() != graded.resolve()]

    def enter(self, file: Path, time_limit: float = TIME_LIMIT) -> Standing:
        """Let an entry take part, in a process of its own. A fault of it costs it its score, and raises nothing."""
        try:
            if not file.is_file():
                raise Fault(f"{file} is missing")
            with running(file, time_limit) as remote:
                row = self.played(remote)
        except (Fault, Foul) as fault:
            return Standing(self.rows, None, str(fault))
        zero, hundred = (self.rows[name].cost for name in self.ends)
        return Standing({**self.rows, ENTRY: row}, score(row.cost, zero, hundred))

    def drawn(self, standing: Standing, entry: str = ENTRY) -> dict[str, float]:
        """What a figure shows of each row, by name. entry: what it calls the entry."""
        named = {entry if name == ENTRY else name: row for name, row in standing.rows.items()}
        return {name: row.columns[self.shown[0]] for name, row in named.items()}

    @abstractmethod
    def baselines(self) -> dict[str, Row]:
        """The rows that an entry is compared with."""

    @abstractmethod
    def played(self, remote: Remote) -> Row:
        """The row of an entry. Raises Fault or Foul."""


class PolicyContest(Contest):
    """The fewest bytes in the same memory."""

    title = "The fewest bytes in the same memory"
    file = "contest_policy.py"
    ends = ("window", "Belady")
    shown = ("MB a token", "MB read for a token")

    def baselines(self) -> dict[str, Row]:
        """The window, LRU, a decayed frequency, Belady."""
        loads: dict[str, int] = {}
        for trace in self.traces:
            for name, make in baselines(trace).items():
                loads[name] = loads.get(name, 0) + int(play(trace, make).sum())
        return {name: self._row(loaded) for name, loaded in loads.items()}

    def played(self, remote: Remote) -> Row:
        """What the entry's policy loads."""
        played = zip(self.graded, self.traces, strict=True)
        return self._row(sum(int(play(trace, remote.policies(self.past(path))).sum()) for path, trace in played))

    def _row(self, loaded: int) -> Row:
        each = loaded / self.tokens
        megabytes = each * self.traces[0].record_bytes / 1e6
        return Row(loaded, {"neurons a token": each, "MB a token": megabytes})


class LayoutContest(Contest):
    """The cheapest reads of the same neurons."""

    title = "The cheapest reads of the same neurons"
    file = "contest_layout.py"
    ends = ("stored order", "one stretch")
    shown = ("cost a token", "what the reads of a token cost, in neurons that are read in order")

    def baselines(self) -> dict[str, Row]:
        """The stored order, by frequency, a chain of neurons that are needed together, and what no order can reach."""
        self._neurons = self.traces[0].neurons
        self._loads = [layout.loads_of(trace) for trace in self.traces]
        rows = {name: self._row(self._cost(self._learned(make))) for name, make in layout.BASELINES.items()}
        return rows | {self.ends[1]: self._row(sum(map(layout.bound, self._loads), layout.NOTHING))}

    def played(self, remote: Remote) -> Row:
        """What the same loads cost in the entry's order."""
        return self._row(self._cost(lambda layer, files: remote.order(layer, self._neurons, files)))

    def _learned(self, make: OrderKind) -> Callable[[int, Sequence[Path]], np.ndarray]:
        return lambda layer, files: make(layer, self._neurons, of_layer(files, layer, self._neurons))

    def _cost(self, order_of: Callable[[int, Sequence[Path]], np.ndarray]) -> Cost:
        """What all loads cost. order_of: gives the order of a layer that is learned from files."""
        orders: dict[tuple[Path, ...], list[np.ndarray]] = {}
        total = layout.NOTHING
        for path, trace, loads in zip(self.graded, self.traces, self._loads, strict=True):
            files = tuple(self.past(path))
            if files not in orders:
                found = [order_of(layer, files) for layer in range(trace.layers)]
                orders[files] = [check_order(order, i, self._neurons) for i, order in enumerate(found)]
            total += layout.cost(loads, orders[files])
        return total

    def _row(self, cost: Cost) -> Row:
        megabytes = (cost.wanted + cost.gaps) * self.traces[0].record_bytes / 1e6 / self.tokens
        columns = {"reads a token": cost.reads / self.tokens, "gaps a token": cost.gaps / self.tokens}
        return Row(cost.total, {**columns, "MB a token": megabytes, "cost a token": cost.total / self.tokens})


CONTESTS: Mapping[str, type[Contest]] = {"policy": PolicyContest, "layout": LayoutContest}
