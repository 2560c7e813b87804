"""Neurons of a packed model, read from flash into rows of DRAM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flashlite.drive.backends import Backend
from flashlite.drive.direct import aligned_buffer
from flashlite.drive.flash import Counters, Ticket
from flashlite.storage.bundle import FFNShape, pieces
from flashlite.storage.int8.rounding import dequantize

if TYPE_CHECKING:
    from flashlite.storage.store import Store


SCAN_BYTES = 1 << 20
SCALED_BYTES = 1 << 18  # of rows in int8 that are float32 at a time


class NeuronFile:
    """The FFN's neurons on flash in one of the layouts. A row in DRAM is always [up | down | padding], see bundle.py.

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
        self._columns = [(slice(None), piece.columns) for piece in self.pieces]
        names = [piece.name for piece in self.pieces]
        self.begins = [[store.piece_offset(layout, layer, name) for name in names] for layer in range(store.layers)]

    def reopen(self, backend: Backend) -> NeuronFile:
        """The same neurons, read by another backend and counted apart."""
        return NeuronFile(self._store, self._layout, backend)

    @property
    def counters(self) -> Counters:
        """The reads so far."""
        return self.file.counters

    def columns(self, buffer: np.ndarray) -> list[np.ndarray]:
        """Where each piece belongs in rows [up | down | padding]: views of buffer [rows, record_bytes] uint8."""
        return list(map(buffer.__getitem__, self._columns))

    def submit(self, layer: int, neurons: np.ndarray, matrices: Sequence[np.ndarray], rows: np.ndarray) -> list[Ticket]:
        """Start reading: piece p of neuron `neurons[i]` lands in `matrices[p][rows[i]]`.

        neurons, rows: [n] int64
        matrices: one [rows, bytes of the piece] uint8 for each piece; pieces after the last of them are not read

        Returns a ticket a piece, on which the caller waits. (Paper: section 3.2)
        """
        tickets = []
        for begin, piece, matrix in zip(self.begins[layer], self.pieces, matrices, strict=False):
            tickets.append(self.file.submit(begin + neurons * piece.nbytes, piece.nbytes, matrix, rows))
        return tickets

    def read(self, layer: int, neurons: np.ndarray, buffer: np.ndarray, rows: np.ndarray) -> None:
        """Read whole neurons: `neurons[i]` is in `buffer[rows[i]]` afterwards, as [up | down | padding].

        neurons, rows: [n] int64; buffer: [rows, record_bytes] uint8. Raises ReadError if any read fails.
        """
        wait_all(self.submit(layer, neurons, self.columns(buffer), rows))

    def first_rows(self, layer: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """A layer's rows of the matrix that decides which neurons fire, read part by part through SCAN_BYTES of DRAM.

        dtype: of the rows: the store's, or float32 where the store's is int8, whose rows are then the scaled ones

        Yields neurons, and their rows [n, d_model], a view that holds until the next part is asked for. In the split
        layout nothing else is read.
        """
        scaled = self._store.dtype == torch.int8 != dtype
        scale = self.first_scale(layer) if scaled else None
        nbytes = self.pieces[0].nbytes  # of a row, or of the bundle that begins with it
        size = min(self.shape.neurons, max(1, SCAN_BYTES // nbytes))
        step = max(1, SCALED_BYTES // (self.shape.d_model * dtype.itemsize)) if scaled else size
        buffer = aligned_buffer(size, nbytes)
        rows = torch.from_numpy(buffer).view(torch.int8 if scaled else dtype)[:, : self.shape.d_model]
        for begin in range(0, self.shape.neurons, size):
            part = np.arange(begin, min(begin + size, self.shape.neurons))
            wait_all(self.submit(layer, part, [buffer], part - begin))
            for first in range(0, len(part), step):
                found = rows[first : min(first + step, len(part))]
                neurons = slice(begin + first, begin + first + len(found))
                yield neurons, found if scale is None else dequantize(found, scale[neurons])

    def first_scale(self, layer: int) -> Tensor:
        """The scales of these rows in a store of int8: [ffn] float32."""
        return self._store.scales(self._store.family.matrices[0].format(layer))


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
