"""Linux native AIO by its raw system calls, the fastest backend. (Paper: appendix, many reads in flight)

The kernel reads the structures below, so a whole batch is one NumPy array of control blocks and needs no Python loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flashlite.drive.backends import Batch, libc
from flashlite.drive.direct import address
from flashlite.drive.jobs import Job
from flashlite.drive.reads import IOVEC, Reads
from flashlite.errors import ReadError

_SYSCALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_PREADV = 7
POLL_SECONDS = 2e-3
POINTER_BYTES = 8
AT_ONCE = 16  # reads handed over together: the drive begins with them while the next ones are on their way to it
PAUSES = tuple(1e-3 * 2**i for i in range(10))  # seconds; together one, for which a full system is asked again
_IOCB = np.dtype(
    [
        *(("data", "u8"), ("key", "u4"), ("rw", "u4"), ("opcode", "u2"), ("priority", "i2"), ("fd", "i4")),
        *(("buffers", "u8"), ("count", "u8"), ("offset", "i8"), ("reserved", "u8"), ("flags", "u4"), ("eventfd", "u4")),
    ]
)
_EVENT = np.dtype([("data", "u8"), ("iocb", "u8"), ("result", "i8"), ("result2", "i8")])


def _syscall(number: int, *args: Any) -> int:
    """Make a raw system call, once more after each signal. Returns its result, or minus the error number."""
    while True:
        result = libc.syscall(ctypes.c_long(number), *args)
        if result >= 0:
            return result
        if (code := ctypes.get_errno()) != errno.EINTR:
            return -code


class NativeAio:
    """Linux native AIO: a batch of reads is one array of control blocks, handed over with few system calls.

    depth: the most reads of a batch in flight
    patience: seconds for which it asks the system again and again, before it sleeps until reads have finished

    Raises OSError where the system refuses native AIO. `submit` raises ReadError where the system refuses another
    queue. Threads may share it.
    """

    name = "aio"

    def __init__(self, depth: int = 128, patience: float = POLL_SECONDS) -> None:
        self.depth, self.patience = depth, patience
        if sys.platform != "linux" or platform.machine() not in _SYSCALLS:
            raise OSError(errno.ENOSYS, "native AIO is a Linux interface")
        self._setup, self._destroy, self.getevents, self.iosubmit = _SYSCALLS[platform.machine()]
        self.idle = [_Queue(self._setup, self.depth)]  # queues with nothing in flight; each serves one batch at a time
        self._all = list(self.idle)
        self._pid = os.getpid()

    def submit(self, fd: int, reads: Reads) -> Batch:
        try:
            queue = self.idle.pop()
        except IndexError:
            self._all.append(queue := _Queue(self._setup, self.depth))
        try:
            return _AioBatch(self, queue, fd, reads)
        except BaseException:
            self.discard(queue)
            raise

    def discard(self, queue: _Queue) -> None:
        """Destroy a queue, which ends all its reads: after an interrupt nobody knows which of them are in flight."""
        self._all.remove(queue)
        _syscall(self._destroy, queue.handle)

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid():  # queues don't survive a fork
            for queue in self._all:
                _syscall(self._destroy, queue.handle)


def _insist(order: tuple[Any, ...]) -> int:
    """Make a system call again after longer and longer pauses, because the system had no room for its reads. Returns
    its last result. It is for a batch with nothing in flight, because the end of such reads would make room."""
    for pause in PAUSES:
        time.sleep(pause)
        if (result := _syscall(*order)) != -errno.EAGAIN:
            break
    return result


class _Queue:
    """A queue of the system, and the memory in which reads are handed over to it and their results come back.

    setup: the number of the system call that makes a queue
    depth: the most reads in flight

    Raises ReadError if the system refuses another queue.
    """

    def __init__(self, setup: int, depth: int) -> None:
        self.handle = ctypes.c_ulong(0)
        if (code := _syscall(setup, ctypes.c_long(depth), ctypes.byref(self.handle))) < 0:
            full = "; fs.aio-max-nr bounds what all programs together may take" if -code == errno.EAGAIN else ""
            raise ReadError(f"io_setup: {os.strerror(-code)}{full}")
        self._blocks = np.zeros(depth, _IOCB)
        self._blocks["opcode"] = _PREADV
        self._pointers = address(self._blocks) + np.arange(depth) * _IOCB.itemsize
        self.pointers = address(self._pointers)
        self._events = np.empty(depth, _EVENT)
        self.events = ctypes.c_void_p(address(self._events))
        self._fields = [self._blocks[name] for name in ("data", "fd", "buffers", "count", "offset")]
        self._read, self._result = (self._events[name] for name in ("data", "result"))

    def describe(self, fd: int, reads: Reads, begin: int, end: int) -> None:
        """Fill in the first control blocks: for the reads from `begin` to `end`, at most as many as the depth."""
        part = slice(begin, end)
        buffers = address(reads.iovecs) + reads.first[part] * IOVEC.itemsize
        values = np.arange(begin, end), fd, buffers, reads.count[part], reads.offset[part]
        for field, value in zip(self._fields, values, strict=True):
            field[: end - begin] = value

    def note(self, got: int, results: np.ndarray) -> None:
        """Write the results of the first `got` events where they belong. results: [reads] int64."""
        results[self._read[:got].astype(np.int64)] = self._result[:got]


class _AioBatch:
    """One batch in a queue of its own. The first _submitted reads were handed over, and _done of them have a result."""

    def __init__(self, aio: NativeAio, queue: _Queue, fd: int, reads: Reads) -> None:
        self._aio, self._fd, self._reads, self._number = aio, fd, reads, reads.number
        self._queue, self._left = queue, False
        self._results = np.full(reads.number, -errno.ECANCELED, np.int64)
        self._submitted = self._done = 0
        self._fill_queue()

    def _fill_queue(self) -> None:
        """Hand over as many reads as the queue has room for. A read that is refused counts as failed. If the
        system has no room for any, all reads that are left count as failed."""
        begin, queue = self._submitted, self._queue
        end = min(self._number, begin + self._aio.depth - (begin - self._done))
        queue.describe(self._fd, self._reads, begin, end)
        while self._submitted < end:
            most = ctypes.c_long(min(AT_ONCE, end - self._submitted))
            pointers = ctypes.c_void_p(queue.pointers + POINTER_BYTES * (self._submitted - begin))
            order = self._aio.iosubmit, queue.handle, most, pointers
            taken = _syscall(*order)
            if taken == -errno.EAGAIN and self._submitted > self._done:
                return  # the system is busy: wait for some of ours first
            if taken == -errno.EAGAIN:
                taken = _insist(order)
            if taken >= 0:
                self._submitted += taken
                continue
            refused = self._number - self._submitted if taken == -errno.EAGAIN else 1
            self._results[self._submitted : self._submitted + refused] = taken
            self._done += refused
            self._submitted += refused

    def wait(self) -> np.ndarray:
        """See Batch."""
        try:
            while self._done < self._number:
                if self._submitted > self._done:
                    self._reap()
                if self._submitted < self._number:
                    self._fill_queue()
        except BaseException:
            self._leave(self._aio.discard)
            raise
        self._leave(self._aio.idle.append)
        return self._results

    def let_go(self) -> Sequence[Job]:
        """See Batch. The drive writes to the memory until the reads have ended, and no thread holds it."""
        with contextlib.suppress(ReadError):
            self.wait()
        return ()

    def _leave(self, queue_to: Callable[[_Queue], None]) -> None:
        """Give up the queue, unless that was done before. Afterwards nothing is under way."""
        left, self._left = self._left, True
        if not left:
            queue_to(self._queue)
        self._submitted = self._done = self._number

    def _reap(self) -> None:
        """Note the reads that have finished: at least one, and all of them if none is left to be handed over.

        At first it asks again and again. To sleep until the drive wakes the thread would cost about as long as a small
        read takes, at every layer of every token.
        """
        patience = self._aio.patience
        until = time.perf_counter() + patience
        while self._done < self._submitted:
            in_flight = self._submitted - self._done
            few = 1 if patience else max(1, in_flight // 2)  # so that it wakes seldom
            got = self._finished(in_flight, 0 if time.perf_counter() < until else few)
            if got:
                self._queue.note(got, self._results)
                self._done += got
                if self._submitted < self._number:
                    return
                until = time.perf_counter() + patience

    def _finished(self, in_flight: int, least: int) -> int:
        """Wait until at least `least` reads have finished. Returns how many have; their events are in the queue."""
        queue = self._queue
        got = _syscall(
            self._aio.getevents, queue.handle, ctypes.c_long(least), ctypes.c_long(in_flight), queue.events, None
        )
        if got < 0:
            raise ReadError(f"io_getevents: {os.strerror(-got)}")
        return got
