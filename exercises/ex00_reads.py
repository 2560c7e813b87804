# Exercises 0.1. With `--impl ref,ex00=mine` this file takes the place of flashlite.drive.reads.
# Everything without a TODO is provided, and runs as it stands.
"""Planning reads: which records become one read, and where in memory its parts land."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_READ = 256 * 1024  # bytes; with such reads the drives that we measured reach their sequential rate
MOST_PARTS = 1024  # Linux takes no more buffers than this (IOV_MAX) in one vectored read

IOVEC = np.dtype([("base", "u8"), ("length", "u8")])


@dataclass(slots=True)
class Reads:
    """A batch of vectored reads; read i fills the buffers `iovecs[first[i] : first[i] + count[i]]`.

    number: how many reads there are
    offset, nbytes: [number] int64, bytes
    first, count: [number] int64
    iovecs: [records] of IOVEC
    alive: whatever must not be freed before the reads have ended: the open file, and the memory in which they land
    """

    number: int
    offset: np.ndarray
    nbytes: np.ndarray
    first: np.ndarray
    count: np.ndarray
    iovecs: np.ndarray
    alive: Any = None


def merge_adjacent(offsets: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    """Where a new read begins among records sorted by offset.

    A record joins the read before it if it starts where that one ends and the read has fewer than `most` records.
    offsets, sizes: [records] int64, bytes. Returns the first record of each read: [reads] int64. (Paper: section 3.2)
    """
    # TODO 0.1  merge adjacent records into one read (warm-up, 15 minutes, paper section 3.2)
    # A drive answers one large read sooner than many small ones, so records that lie side by side in the file should be
    # one read. Go through the records in order: record i joins the read of record i - 1 if it starts exactly where
    # record i - 1 ends (offsets[i] == offsets[i - 1] + sizes[i - 1]) and that read has fewer than `most` records so
    # far; otherwise a new read begins with record i. Records may differ in size.
    # Return the index i of each record that begins a read: an int64 array, rising, its first element 0. With no records
    # it is an empty int64 array. `most` is at least 1, and counting starts again with each new read.
    # Records may overlap, or be asked for twice: then one doesn't start where the one before ends, so it begins a new
    # read. Leave offsets and sizes as they are. A loop is correct; NumPy is faster.
    # Example: with offsets [0 10 20 40 50] and sizes [10 10 10 10 10]:
    #   most = 100 -> [0 3]      two reads: records 0 1 2, and records 3 4 after the gap at 30
    #   most = 2   -> [0 2 3]    three reads: records 0 1, record 2, records 3 4
    # Provided: NumPy. plan_reads, below, shows what the result is used for.
    # In the engine: flashlite bench --stage 5 --impl ref,0.1=mine
    raise NotImplementedError("exercise 0.1: delete this line and write merge_adjacent, see the TODO above")


def plan_reads(offsets: np.ndarray, sizes: np.ndarray, addresses: np.ndarray, largest: int = LARGEST_READ) -> Reads:
    """Reads that fetch these records, adjacent ones merged while they would stay within `largest` bytes.

    offsets, sizes: [records] int64, bytes in the file
    addresses: [records] uint64, where in memory each record lands
    largest: bytes
    """
    n = len(offsets)
    if n > 1 and (offsets[1:] < offsets[:-1]).any():
        order = np.argsort(offsets, kind="stable")
        offsets, sizes, addresses = offsets[order], sizes[order], addresses[order]
    iovecs = np.empty(n, IOVEC)
    iovecs["base"], iovecs["length"] = addresses, sizes
    most = min(MOST_PARTS, max(1, largest // int(sizes.max(initial=1))))
    first = merge_adjacent(offsets, sizes, most)
    if len(first) == n:  # nothing to merge, as for most neurons of one token
        return Reads(n, offsets.copy(), sizes.copy(), first, np.ones(n, np.int64), iovecs)
    count = np.append(first[1:], n) - first
    return Reads(len(first), offsets[first], np.add.reduceat(sizes, first), first, count, iovecs)
