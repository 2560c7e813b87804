"""Planning reads: which records become one read, and where in memory its parts go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST_READ = 256 * 1024  # bytes; where the drives measured reach their sequential rate
MOST_PARTS = 1024  # Linux takes no more buffers than this (IOV_MAX) in one vectored read

IOVEC = np.dtype([("base", "u8"), ("length", "u8")])


@dataclass(frozen=True)
class Reads:
    """A batch of n vectored reads; read i fills the buffers `iovecs[first[i] : first[i] + count[i]]`.

    offset, nbytes: [n] int64, bytes; first, count: [n] int64; iovecs: [records] of IOVEC.
    """

    offset: np.ndarray
    nbytes: np.ndarray
    first: np.ndarray
    count: np.ndarray
    iovecs: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)


def merge_adjacent(offsets: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    """Where a new read begins among records sorted by offset.

    A record joins the read before it if it starts where that one ends and the read has fewer than `most` records.
    offsets, sizes: [records] int64, bytes. Returns the first record of each read: [reads] int64. (Paper: section 3.2)
    """
    if len(offsets) == 0:
        return np.zeros(0, np.int64)
    gap = np.empty(len(offsets), bool)
    gap[0] = True
    np.not_equal(offsets[1:], offsets[:-1] + sizes[:-1], out=gap[1:])
    runs = np.flatnonzero(gap)
    index = np.arange(len(offsets))
    place_in_run = index - np.repeat(runs, np.diff(runs, append=len(offsets)))
    return np.flatnonzero(place_in_run % most == 0)


def plan_reads(offsets: np.ndarray, sizes: np.ndarray, addresses: np.ndarray, largest: int = LARGEST_READ) -> Reads:
    """Reads that fetch these records, adjacent ones merged while they would stay within `largest` bytes.

    offsets, sizes: [records] int64, bytes in the file; addresses: [records] uint64, where each record goes in memory.
    """
    if len(offsets) > 1 and (offsets[1:] < offsets[:-1]).any():
        order = np.argsort(offsets, kind="stable")
        offsets, sizes, addresses = offsets[order], sizes[order], addresses[order]
    iovecs = np.empty(len(offsets), IOVEC)
    iovecs["base"], iovecs["length"] = addresses, sizes
    most = min(MOST_PARTS, max(1, largest // int(sizes.max(initial=1))))
    first = merge_adjacent(offsets, sizes, most)
    nbytes = np.add.reduceat(sizes, first) if len(first) else np.zeros(0, np.int64)
    return Reads(offsets[first], nbytes, first, np.diff(first, append=len(offsets)), iovecs)
