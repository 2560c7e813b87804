"""Threads that share one product, of which none waits for a thread that hasn't begun.

Torch's own threads meet at the end of every product. Where another process takes a core, all of them wait there for the
one that was put aside, and spin away the time that it needs. Here a product is cut into parts, and whoever is running
takes the next one. If no other thread gets a core, the caller does all parts by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, njit, types

from flashlite.engine.kernels import threads
from flashlite.engine.kernels.native import fetch_add, native, pointer

PARTS, FIRST, WORDS = 2, 3, 16  # a job is so many numbers: the part to take, those done, how many, and arguments
ITEM = 8  # bytes of each number
SPINS = 4000  # how often the caller looks whether the last parts are done before it sleeps
PAUSE = 2e-5  # seconds
Body = Callable[[int, int], None]  # a compiled function of the addresses of a job and of a matrix


@njit(inline="always")
def job_at(address: int) -> Any:
    """The numbers of a job: [WORDS] int64."""
    return carray(pointer(address), WORDS, types.int64)


@njit(inline="always")
def take(address: int) -> int:
    """The next part of a job that nobody has taken; its number is PARTS or more if none is left."""
    return fetch_add(address, 1)


@njit(inline="always")
def note_done(address: int) -> None:
    """Note that one more part is done."""
    fetch_add(address + ITEM, 1)


def _missing(address: int) -> int:
    parts = job_at(address)[PARTS]
    for _ in range(SPINS):
        if fetch_add(address + ITEM, 0) == parts:
            return 0
    return 1


_missing_code = native(types.int64(types.int64), _missing)
_is_missing = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(_missing_code.address)  # whether parts take long


@dataclass(frozen=True)
class _Job:
    """What a thread is woken for. alive: whatever holds the memory that the body works on."""

    body: Body
    address: int
    matrix: int
    alive: Any


class _Helper:
    """A thread that takes parts of whatever job is at hand whenever it is woken."""

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._asleep = threading.Lock()
        self._asleep.acquire()
        threading.Thread(target=self._work, name="flash-product", daemon=True).start()

    def wake(self, job: _Job) -> None:
        self._job = job
        with contextlib.suppress(RuntimeError):  # it was woken, perhaps by another caller, and hasn't looked yet
            self._asleep.release()

    def _work(self) -> None:
        while True:
            self._asleep.acquire()
            job, self._job = self._job, None
            if job is not None:
                job.body(job.address, job.matrix)
            del job  # so that a thread that sleeps holds no memory of a model's


_helpers: list[_Helper] = []
os.register_at_fork(after_in_child=_helpers.clear)  # threads don't survive a fork


def run(body: Body, matrix: int, parts: int, arguments: tuple[int, ...], alive: Any) -> None:
    """Do all parts of a job, with as many threads as torch has outside of such calls.

    body: the compiled function; it takes parts until none is left
    matrix: its address
    parts: how many there are
    arguments: the job's numbers from FIRST on
    alive: whatever holds the memory that the body works on
    """
    numbers = np.array((0, 0, parts, *arguments), np.int64)
    job = _Job(body, numbers.ctypes.data, matrix, (numbers, alive))
    helping = min(threads.count(), parts) - 1
    while len(_helpers) < helping:
        _helpers.append(_Helper())
    for helper in _helpers[:helping]:
        helper.wake(job)
    body(job.address, matrix)
    while helping and _is_missing(job.address):
        time.sleep(PAUSE)


def compiled(function: Any, kind: Any) -> Body:
    """A function of a job's address and a pointer to a matrix, compiled for weights of one kind.

    While it runs, Python's other threads run too.
    """
    code = native(types.void(types.int64, types.CPointer(kind)), function)
    body: Any = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(code.address)
    body.code = code
    return body  # type: ignore[no-any-return]
