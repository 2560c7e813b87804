"""A drive that takes its time, for the tests of what is read while something else is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashlite.errors import ReadError

Array = np.ndarray


class Ticket:
    """A read that lands when it is waited for, and not before, unless the drive hurries. If it fails, it never does."""

    def __init__(self, flash: Flash, neurons: Array, target: Array, rows: Array) -> None:
        self.neurons, self.rows = neurons.copy(), rows.copy()
        self._flash, self._target = flash, target
        self._fails, self._landed = flash.fails and len(neurons) > 0, False
        target[rows] = 255  # in every dtype NaN: what a row under way holds is worth nothing
        if flash.hurries:
            self._land()

    def wait(self) -> None:
        """Land. Raises ReadError, each time, if the read fails."""
        if self in self._flash.under_way:
            self._flash.under_way.remove(self)
            self._land()
        if self._fails:
            raise ReadError("slow flash: a read failed, as the test wants it")

    def _land(self) -> None:
        if not self._landed and not self._fails:
            self._target[self.rows] = self._flash.rows[self.neurons]
            self._landed = True


class Flash:
    """A layer's neurons on a drive that takes its time.

    rows: [neurons, record_bytes] uint8, what is on it

    loaded: the neurons of each submit
    under_way: the tickets that nobody has waited for
    fails, hurries: whether reads that are submitted from now on fail, or land at once
    """

    def __init__(self, rows: Array) -> None:
        self.rows, self.loaded, self.under_way = rows, list[Array](), list[Ticket]()
        self.fails = self.hurries = False

    def columns(self, buffer: Array) -> list[Array]:
        """A bundle fills a whole row."""
        return [buffer]

    def submit(self, layer: int, neurons: Array, matrices: Sequence[Array], rows: Array) -> list[Ticket]:
        """Begin to read."""
        self.loaded.append(neurons.copy())
        self.under_way.append(Ticket(self, neurons, matrices[0], rows))
        return self.under_way[-1:]

    def read(self, layer: int, neurons: Array, buffer: Array, rows: Array) -> None:
        """Read at once."""
        for ticket in self.submit(layer, neurons, [buffer], rows):
            ticket.wait()
