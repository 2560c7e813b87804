"""The drive: direct, parallel reads of records into memory that the caller owns. (Paper: sections 2.2 and 3.2)

    file = FlashFile("model.safetensors")
    buffer = aligned_buffer(rows=100, row_bytes=4096)
    file.read(offsets, 4096, buffer, rows)      # record i lands in buffer[rows[i]]

Reads go past the page cache, adjacent records are merged into one read, and every read is counted. `submit` starts
reads and returns a ticket at once; the ticket's `wait` ends them. An interrupt leaves no read without an owner.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashlite.drive.aio import NativeAio
from flashlite.drive.backends import Backend, Batch, Threads
from flashlite.drive.background import Background
from flashlite.drive.direct import Descriptor, aligned_buffer, direct_alignment, open_direct
from flashlite.drive.jobs import Job
from flashlite.drive.reads import LARGEST_READ, Reads, merge_adjacent, plan_reads
from flashlite.errors import ReadError

log = logging.getLogger("flashlite")


@dataclass
class Counters:
    """Sums over some reads.

    records: how many records were asked for
    reads: how many reads fetched them, after merging
    bytes: how many bytes came from the drive
    """

    records: int = 0
    reads: int = 0
    bytes: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(self.records + other.records, self.reads + other.reads, self.bytes + other.bytes)

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(self.records - earlier.records, self.reads - earlier.reads, self.bytes - earlier.bytes)


@functools.cache
def default_backend() -> Backend:
    """Native AIO where the system offers it, else 32 threads, and one line is logged. The whole process shares it."""
    return _native_or_threads()


os.register_at_fork(after_in_child=default_backend.cache_clear)  # neither queues nor threads survive a fork


def _native_or_threads(**options: Any) -> Backend:
    try:
        return NativeAio(**options)
    except OSError as error:
        log.warning("flashlite: reading with 32 threads, because native AIO is refused (%s)", error)
        return Threads()


def background_backend() -> Backend:
    """The backend that reads while the caller computes: it is like `default_backend`, but in a thread that sleeps
    whenever it can."""
    shared = default_backend()
    return Background(_native_or_threads(patience=0.0) if isinstance(shared, NativeAio) else shared)


class FlashFile:
    """A file on the drive, open for direct reads.

    path: of the file
    backend: carries out the reads; default_backend() unless given

    counters: sums over all reads of this file
    under_way: the tickets that nobody has waited for
    left: jobs that still read for tickets which are gone

    Raises ReadError if the file can't be opened.
    """

    def __init__(self, path: Path | str, backend: Backend | None = None) -> None:
        self.path = Path(path)
        self.fd, self.direct = open_direct(self.path)
        self._descriptor = Descriptor(self.fd)
        self.backend = backend or default_backend()
        self.size = os.fstat(self.fd).st_size
        self.alignment = direct_alignment(self.path) if self.direct else 1
        self.counters = Counters()
        self.under_way: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self.left: list[Job] = []

    def read(self, offsets: np.ndarray, sizes: np.ndarray | int, out: np.ndarray, rows: np.ndarray) -> None:
        """Read records and wait for them; see `submit`."""
        self.submit(offsets, sizes, out, rows).wait()

    def submit(self, offsets: np.ndarray, sizes: np.ndarray | int, out: np.ndarray, rows: np.ndarray) -> Ticket:
        """Start reading records: record i, `sizes[i]` bytes at `offsets[i]`, lands at the beginning of `out[rows[i]]`.

        offsets: [records] int64, bytes
        sizes: bytes, one number for all records or [records] int64
        out: [rows, row_bytes] uint8, each row contiguous; it may be some columns of a wider matrix
        rows: [records] int64

        Raises ReadError if a record is not inside the file or doesn't fit a row.
        """
        if not isinstance(sizes, np.ndarray):
            sizes = np.full(len(offsets), sizes, np.int64)
        if len(offsets):
            self._check_bounds(offsets, sizes, out, rows)
        addresses = out.__array_interface__["data"][0] + rows * out.strides[0]
        together = np.bitwise_or.reduce(offsets | sizes | addresses, initial=0)
        if together % self.alignment:  # direct I/O wants offsets, sizes and addresses on its grid
            return _BouncedTicket(self, offsets, sizes, out, rows)
        return Ticket(self, plan_reads(offsets, sizes, addresses), len(offsets), out)

    def _check_bounds(self, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        largest, row_bytes = np.maximum.reduce, out.shape[1] * out.itemsize
        begins, ends, sized, placed = [part.view(np.uint64) for part in (offsets, offsets + sizes, sizes, rows)]
        if (  # as numbers without a sign, negative ones are larger than all others
            max(largest(begins), largest(ends)) <= self.size and largest(sized) <= row_bytes
            and largest(placed) < len(out) and out.strides[1] == out.itemsize
        ):  # fmt: skip
            return
        outside = (offsets < 0) | (sizes < 0) | (offsets + sizes > self.size)
        if outside.any():
            i = int(np.argmax(outside))
            raise ReadError(
                f"{self.path}: {sizes[i]} bytes at offset {offsets[i]} are not inside the file of {self.size} bytes; "
                "was it truncated?"
            )
        raise ReadError(
            f"{self.path}: records of {sizes.max()} bytes don't fit the buffer at rows {rows.min()} to {rows.max()}: "
            f"it has {len(out)} rows of {row_bytes} bytes"
        )

    def finish_reads(self) -> None:
        """Wait for all reads that a caller left under way when it was broken off. Their errors are ignored."""
        for ticket in list(self.under_way):
            with contextlib.suppress(ReadError):
                ticket.wait()
        for job in list(self.left):
            with contextlib.suppress(ReadError):
                job.wait()
            self.left.remove(job)

    def __reduce__(self) -> str:
        raise ReadError(
            f"{self.path}: an open file can't be copied, because two owners would close it twice: open it again"
        )


class Ticket:
    """Reads that were submitted.

    A ticket keeps the destination of its reads alive until they have ended. If an interrupt breaks `wait` off, they
    stay under way until somebody waits for them again.
    """

    def __init__(self, file: FlashFile, reads: Reads, records: int, out: np.ndarray) -> None:
        self._file, self._reads, self._records, self._out = file, reads, records, out
        self._failure: ReadError | None = None
        self._batch: Batch | None = None
        self._process = os.getpid()
        reads.alive = file, out
        file.under_way.add(self)
        try:
            if reads.number:
                self._batch = file.backend.submit(file.fd, reads)
        except ReadError as error:
            raise self._fail(0, str(error)) from None

    def wait(self) -> None:
        """Return when all reads are complete. Raises ReadError if one failed or ended short, each time it is called."""
        if self._failure is not None:
            raise self._failure
        batch, file, counters = self._batch, self._file, self._file.counters
        try:
            done = batch.wait() if batch is not None else None
        except ReadError as error:  # nothing is known of any read
            raise self._fail(0, str(error)) from None
        self._batch = None
        file.under_way.discard(self)
        if done is None:  # there was nothing to read, or somebody has waited before
            return
        self._land(done)
        if not file.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        counters.records += self._records
        counters.reads += self._reads.number
        counters.bytes += int(done.sum())

    def _fail(self, i: int, what: str) -> ReadError:
        """Make the error that each `wait` raises from now on, because read i failed. Nothing is under way any more."""
        self._batch = None
        self._file.under_way.discard(self)
        self._failure = ReadError(f"{self._file.path}: read at offset {self._reads.offset[i]} failed: {what}")
        return self._failure

    def _land(self, done: np.ndarray) -> None:
        """Check the results of the reads, done [reads]: bytes, or minus an error number. The records have landed where
        the caller wants them."""
        wrong = done != self._reads.nbytes
        if wrong.any():
            i = int(np.argmax(wrong))
            what = os.strerror(-done[i]) if done[i] < 0 else f"only {done[i]} of {self._reads.nbytes[i]} bytes"
            exhausted = ": the system's AIO is exhausted, end other programs that read with it"
            raise self._fail(i, what + (exhausted if done[i] == -errno.EAGAIN else ""))

    def __del__(self) -> None:
        batch = getattr(self, "_batch", None)
        if batch is not None and self._process == os.getpid():  # never free memory that the drive still writes to
            self._file.left += batch.let_go()


class _BouncedTicket(Ticket):
    """Reads of records off the drive's grid: a buffer takes the whole blocks around neighbours, and each is copied."""

    def __init__(
        self, file: FlashFile, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, rows: np.ndarray
    ) -> None:
        most = max(1, LARGEST_READ // int(sizes.max(initial=1)))
        first = merge_adjacent(offsets, sizes, most)
        count = np.diff(first, append=len(offsets))
        begin = offsets[first] // file.alignment * file.alignment
        last = first + count - 1
        span = -(-(offsets + sizes)[last] // file.alignment) * file.alignment - begin
        base = np.cumsum(span) - span  # where the blocks of each read begin in the buffer
        self._bounce = aligned_buffer(1, int(span.sum()))[0]
        self._begin = offsets - np.repeat(begin - base, count)  # of each record in the buffer
        self._sizes, self._destination, self._rows = sizes, out, rows
        super().__init__(file, plan_reads(begin, span, self._bounce.ctypes.data + base), len(offsets), self._bounce)

    def _land(self, done: np.ndarray) -> None:
        # The last block of a file may be cut by its end; the records in it were checked to lie inside the file.
        reaches_end = (done >= 0) & (self._reads.offset + done == self._file.size)
        super()._land(np.where(reaches_end, self._reads.nbytes, done))
        parts = zip(self._rows.tolist(), self._begin.tolist(), self._sizes.tolist(), strict=True)
        for row, begin, size in parts:
            self._destination[row, :size] = self._bounce[begin : begin + size]
