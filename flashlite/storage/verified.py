"""Reads that are compared with checksums, which finds flipped bits and records or layers that changed places.

    store = VerifiedStore("my-store")     # a Store like any other, so everything that reads from it is checked

When a model is packed, the CRC-32 of every record is written to checksums.safetensors. A read finds the checksum of its
record by the offset. Resident weights are compared with the manifest's SHA-256 each time that they are read.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashlite.drive.backends import Backend
from flashlite.drive.flash import FlashFile, Ticket
from flashlite.errors import ReadError
from flashlite.storage.bundle import pieces
from flashlite.storage.int8.resident import scale_name
from flashlite.storage.safetensors_file import REPACK
from flashlite.storage.store import CHECKSUMS, RESIDENT, Group, Store, ffn_file


def record_checksums(rows: np.ndarray) -> np.ndarray:
    """The CRC-32 of each row. rows: [n, nbytes] uint8, each row contiguous. Returns [n] uint32."""
    return _crc32(rows, len(rows))


def _crc32(records: Iterable[np.ndarray], count: int) -> np.ndarray:
    return np.fromiter((zlib.crc32(record.data) for record in records), np.uint32, count)


class Checksums:
    """The checksums of all records in one layout's file: 4 bytes of DRAM each, a 1024th of records of 4 KiB."""

    def __init__(self, store: Store, layout: str) -> None:
        parts = [(layer, piece) for layer in range(store.layers) for piece in pieces(layout, store.shape)]
        begins = [store.piece_offset(layout, layer, piece.name) for layer, piece in parts]
        order = np.argsort(begins)
        self._parts = [parts[i] for i in order]
        self._begins = np.array(begins)[order]
        self._row_bytes = np.array([piece.nbytes for _, piece in self._parts])
        self._sums = np.stack([store.checksums(layout, layer, piece.name) for layer, piece in self._parts])

    def of(self, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The checksums of the records at these offsets: [records] uint32. offsets, sizes: [records] int64, bytes.

        Raises ReadError if any of them isn't a whole record.
        """
        part, row, rest = self._find(offsets)
        whole = (rest == 0) & (row >= 0) & (row < self._sums.shape[1]) & (sizes == self._row_bytes[part])
        if not whole.all():
            raise ReadError(f"a read at offset {offsets[np.argmin(whole)]} is not a record, so it can't be verified")
        return self._sums[part, row]

    def name(self, offset: int) -> str:
        """The layer, the piece and the neuron of the record at an offset."""
        part, row, _ = self._find(np.array([offset]))
        layer, piece = self._parts[int(part[0])]
        return f"layer {layer}, {piece.name} of neuron {row[0]}"

    def _find(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each offset: the part of the file that it lies in, the row of that part, and the bytes into that row."""
        part = np.searchsorted(self._begins, offsets, "right") - 1
        row, rest = np.divmod(offsets - self._begins[part], self._row_bytes[part])
        return part, row, rest


class CheckedFile(FlashFile):
    """A FlashFile of records, each compared with its checksum when it has landed.

    Its tickets raise ReadError if one differs.
    """

    def __init__(self, path: Path, checksums: Checksums, backend: Backend | None = None) -> None:
        super().__init__(path, backend)
        self._checksums = checksums

    def submit(self, offsets: np.ndarray, sizes: np.ndarray | int, out: np.ndarray, rows: np.ndarray) -> Ticket:
        """See FlashFile."""
        sizes = np.broadcast_to(np.asarray(sizes, np.int64), offsets.shape)
        expected = self._checksums.of(offsets, sizes)

        def compare() -> None:
            landed = (out[row, :size] for row, size in zip(rows, sizes, strict=True))
            found = _crc32(landed, len(rows))
            if (found != expected).any():
                name = self._checksums.name(offsets[np.argmax(found != expected)])
                raise ReadError(f"{self.path}: {name} was altered{REPACK}")

        return _CheckedTicket(super().submit(offsets, sizes, out, rows), compare)


class _CheckedTicket(Ticket):
    """A ticket that waits for another one and then compares the records. It has no reads of its own."""

    def __init__(self, ticket: Ticket, compare: Callable[[], None]) -> None:
        self._ticket = ticket
        self._compare: Callable[[], None] | None = compare
        self._failure: ReadError | None = None

    def wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._ticket.wait()
        compare, self._compare = self._compare, None
        try:
            if compare is not None:  # only once, because other records may land in the same rows later
                compare()
        except ReadError as error:
            self._failure = error
            raise


class VerifiedStore(Store):
    """A store whose weights are compared with their checksums whenever they are read.

    The comparison takes time from each token, and 4 bytes of DRAM for each record of the layouts in use, on top of the
    budget. Raises StoreError if the checksums themselves were altered.
    """

    looked_up = None  # rows of an embedding have no checksums of their own, so it is read whole and stays in DRAM

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.verify_file(CHECKSUMS)
        self._checksums: dict[str, Checksums] = {}

    def _open_records(self, layout: str, backend: Backend | None) -> FlashFile:
        if layout not in self._checksums:
            self._checksums[layout] = Checksums(self, layout)
        return CheckedFile(self.path / ffn_file(layout), self._checksums[layout], backend)

    def scales(self, matrix: str) -> Tensor:
        """See Store. Raises ReadError that names the tensor."""
        found, name = super().scales(matrix), scale_name(matrix)
        self._compare({name: found})
        return found

    def check_read(self, group: Group, views: Callable[[Group], dict[str, Tensor]]) -> None:
        """Compare resident weights with the manifest's checksums. Raises ReadError that names the tensor."""
        self._compare(views(group))

    def _compare(self, tensors: dict[str, Tensor]) -> None:
        expected = self.manifest["files"][RESIDENT]["sha256"]
        for name, tensor in tensors.items():
            if hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest() != expected[name]:
                raise ReadError(f"{self.path / RESIDENT}: {name} was altered{REPACK}")
