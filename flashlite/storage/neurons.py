"""Neurons of a packed model, read from flash into rows of DRAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flashlite.drive.backends import Backend
from flashlite.drive.flash import Counters, Ticket
from flashlite.storage.bundle import FFNShape, pieces

if TYPE_CHECKING:
    from flashlite.storage.store import Store


class NeuronFile:
    """The FFN's neurons on flash in one of the layouts. A row in DRAM is always [up | down | padding].

    store, layout: where they are; "split" needs two reads for a neuron, "bundled" one.
    backend: how reads are carried out; None is the process's own.
    pieces: the matrices that the layout stores for each layer.
    begins: begins[layer] lists where each piece begins in the file, in bytes.

    Raises StoreError if the store lacks the layout.
    """

    def __init__(self, store: Store, layout: str, backend: Backend | None = None) -> None:
        self._store, self._layout = store, layout
        self.shape: FFNShape = store.shape
        self.file = store.open_ffn(layout, backend)
        self.pieces = pieces(layout, store.shape)
        names = [piece.name for piece in self.pieces]
        self.begins = [[store.piece_offset(layout, layer, name) for name in names] for layer in range(store.layers)]

    def reopen(self, backend: Backend) -> NeuronFile:
        """The same neurons, read by another backend and counted apart."""
        return NeuronFile(self._store, self._layout, backend)

    @property
    def counters(self) -> Counters:
        """The reads so far."""
        return self.file.counters

    def submit(self, layer: int, neurons: np.ndarray, buffer: np.ndarray, rows: np.ndarray) -> list[Ticket]:
        """Start reading: neuron `neurons[i]` lands in `buffer[rows[i]]`.

        neurons, rows: [n] int64; buffer: [rows, record_bytes] uint8.
        """
        return [
            self.file.submit(begin + neurons * piece.nbytes, piece.nbytes, buffer, rows, piece.column)
            for begin, piece in zip(self.begins[layer], self.pieces, strict=True)
        ]

    def read(self, layer: int, neurons: np.ndarray, buffer: np.ndarray, rows: np.ndarray) -> None:
        """`submit` and wait. Raises ReadError if any read fails."""
        wait_all(self.submit(layer, neurons, buffer, rows))


def wait_all(tickets: Sequence[Ticket]) -> None:
    """Wait for reads. Raises ReadError if any failed, once all have ended."""
    failed = None
    for ticket in tickets:
        try:
            ticket.wait()
        except OSError as error:
            failed = failed or error
    if failed:
        raise failed
