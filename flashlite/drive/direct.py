"""Direct I/O: files opened past the page cache, the grid that their reads must keep, and memory on that grid."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import sys
from pathlib import Path

import numpy as np

from flashlite.errors import ReadError, one_line

log = logging.getLogger("flashlite")

PAGE = 4096
HUGE_PAGE = 2**21
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def aligned_buffer(rows: int, row_bytes: int) -> np.ndarray:
    """Page-aligned memory [rows, row_bytes] uint8 for direct reads, zeroed, and given back when freed.

    Where the system allows it the memory lies on huge pages. Memory in scattered pages of 4 KiB costs the drive a
    transfer for each page.
    """
    nbytes = rows * row_bytes
    slack = HUGE_PAGE if nbytes >= HUGE_PAGE else 0  # never touched, so it takes no memory
    memory = mmap.mmap(-1, max(1, nbytes + slack), **PRIVATE)
    whole = np.frombuffer(memory, np.uint8)
    begin = -whole.ctypes.data % HUGE_PAGE if slack else 0
    if slack and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE, begin, nbytes // HUGE_PAGE * HUGE_PAGE)  # no page reaches into the slack
    return whole[begin : begin + nbytes].reshape(rows, row_bytes)


def address(array: np.ndarray) -> int:
    """Where an array begins in memory. It is asked as bytes, because NumPy answers five times as slowly where the items
    have named fields."""
    return int(array.view(np.uint8).__array_interface__["data"][0])


class Descriptor:
    """The descriptor of an open file, closed when its last owner is gone. Its owners are the file and every read under
    way, because the system gives the number of a closed file to the next one that is opened."""

    def __init__(self, number: int) -> None:
        self._number, self._close = number, os.close

    def __del__(self) -> None:
        self._close(self._number)


def open_direct(path: Path) -> tuple[int, bool]:
    """Open a file for direct reads. Where the system refuses these, open it for buffered reads and log one line.

    Returns the descriptor's number and whether reads are direct. Raises ReadError if the file can't be opened.
    """
    if not hasattr(os, "preadv"):
        raise ReadError(f"{path}: this system can't read to many places at once: use Linux, macOS, or WSL on Windows")
    why = "this system has no direct reads"
    with one_line(path, ReadError, "cannot be opened"):
        if hasattr(os, "O_DIRECT"):
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECT), True
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            why = "this file system refuses direct reads"
        if path.is_dir():
            raise ReadError(f"{path} cannot be opened: it is a folder")
        fd = os.open(path, os.O_RDONLY)
    if sys.platform == "darwin":  # untested here: macOS has no O_DIRECT but can turn its cache off
        import fcntl

        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return fd, True
    log.warning("flashlite: %s: reads are buffered, because %s", path, why)
    return fd, False


def direct_alignment(path: Path | str) -> int:
    """The grid, in bytes, that direct reads of this file must keep; a page where the system doesn't tell."""
    if sys.platform != "linux":
        return PAGE
    statx, answer = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    if not hasattr(statx, "statx"):
        return PAGE
    at_cwd, dio_align = -100, 0x2000
    if statx.statx(at_cwd, os.fsencode(path), 0, dio_align, answer) != 0:
        return PAGE
    memory, offset = np.frombuffer(answer.raw, np.uint32, count=2, offset=152)
    return int(max(memory, offset)) or PAGE
