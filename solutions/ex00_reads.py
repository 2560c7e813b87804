# Solutions of exercises 0.1: flashlite.drive.reads as the engine runs it.
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
    # 0.1  A run is what lies side by side without a gap; a read is at most `most` records of one run. So number the
    # records within their run and cut at every multiple of `most`. The whole batch is planned by a few array
    # operations, because a Python loop over thousands of neurons would take longer than the reads.
    # Usual mistakes: counting `most` over the whole list instead of from where the read begins; cutting reads one
    # record too late; merging records that overlap, whose bytes would then land in the wrong place; failing for no
    # records.
    index = np.arange(len(offsets))
    gap = offsets[1:] != offsets[:-1] + sizes[:-1]
    run = np.zeros_like(index)  # the first record of the run that each record belongs to
    np.maximum.accumulate(np.where(gap, index[1:], 0), out=run[1:])
    return np.flatnonzero((index - run) % most == 0)


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
