"""Backends, which carry out batches of reads: with threads, or one read at a time. The fastest one is in aio.py.

A backend starts a batch with `submit(fd, reads)` and returns it. `batch.wait()` gives one result a read: the bytes
read, or minus an error number. The memory that reads land in must stay alive until `wait` or `let_go` returns. If an
interrupt breaks `wait` off, reads may still be under way, and `wait` can be called again.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from flashlite.drive.direct import address
from flashlite.drive.jobs import Job, Workers
from flashlite.drive.reads import IOVEC, Reads

libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
if hasattr(libc, "preadv"):
    libc.preadv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
    libc.preadv.restype = ctypes.c_ssize_t


class Batch(Protocol):
    """Reads under way."""

    def wait(self) -> np.ndarray:
        """Wait for all reads. Returns their results in order: [reads] int64, bytes read or minus an error number."""

    def let_go(self) -> Sequence[Job]:
        """Leave the reads to the batch, because nobody will ask for their results: it waits for them, or sees to it
        that `reads.alive` lives until they have ended. The garbage collector calls this, in whatever thread it runs:
        it must not wait for a thread, which may be this one. Returns the jobs that still read."""


class Backend(Protocol):
    """One way of reading.

    name: for tables
    depth: the most reads that it keeps in flight
    """

    name: str
    depth: int

    def submit(self, fd: int, reads: Reads) -> Batch:
        """Start all reads. Raises ReadError if the system refuses. After an error or an interrupt none is under way."""


def _read_one(fd: int, reads: Reads, i: int) -> int:
    """Make one vectored read of a batch, once more after each signal. Returns its result, see Batch."""
    buffers = address(reads.iovecs) + int(reads.first[i]) * IOVEC.itemsize
    while True:
        done = libc.preadv(fd, buffers, int(reads.count[i]), int(reads.offset[i]))
        if done >= 0:
            return done
        if (code := ctypes.get_errno()) != errno.EINTR:
            return -code


class Serial:
    """One read after the other, as in a simple loop over a file."""

    name, depth = "serial", 1

    class _Batch:
        def __init__(self, fd: int, reads: Reads) -> None:
            self._fd, self._reads = fd, reads

        def wait(self) -> np.ndarray:
            return np.array([_read_one(self._fd, self._reads, i) for i in range(self._reads.number)], np.int64)

        def let_go(self) -> Sequence[Job]:
            """See Batch. Nothing is under way, because only `wait` reads."""
            return ()

    def submit(self, fd: int, reads: Reads) -> Batch:
        return self._Batch(fd, reads)


class Threads:
    """The paper's way: a pool of threads, each with one read in flight. (Paper: appendix, 32 threads)"""

    name = "threads"

    def __init__(self, depth: int = 32) -> None:
        self.depth = depth
        self._workers = Workers(depth, "flash")

    class _Batch:
        def __init__(self, parts: list[Job]) -> None:
            self._parts = parts

        def wait(self) -> np.ndarray:
            return np.array([done for part in self._parts for done in part.wait()], np.int64)

        def let_go(self) -> Sequence[Job]:
            """See Batch. Each thread holds the reads until its part is over."""
            return self._parts

    def submit(self, fd: int, reads: Reads) -> Batch:
        def read_part(part: range) -> list[int]:
            return [_read_one(fd, reads, i) for i in part]

        share = -(-reads.number // self.depth) or 1
        ranges = [range(i, min(i + share, reads.number)) for i in range(0, reads.number, share)]
        parts = [Job(partial(read_part, part)) for part in ranges]
        try:
            for part in parts:
                self._workers.submit(part)
        except BaseException:
            for part in parts:
                part.call_off()
            raise
        return self._Batch(parts)
