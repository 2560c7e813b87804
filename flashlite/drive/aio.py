"""Linux native AIO by its raw system calls, the fastest backend. (Paper: appendix, many reads in flight)

The kernel reads the structures below, so a whole batch is one NumPy array of control blocks and needs no Python loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flashlite.drive.backends import Batch, libc
from flashlite.drive.reads import IOVEC, Reads
from flashlite.errors import ReadError

_SYSCALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_PREADV = 7
POLL_SECONDS = 2e-3
PAUSES = tuple(1e-3 * 2**i for i in range(10))  # a second in all, for a system that has no room for reads
_IOCB = np.dtype(
    [
        *(("data", "u8"), ("key", "u4"), ("rw", "u4"), ("opcode", "u2"), ("priority", "i2"), ("fd", "i4")),
        *(("buffers", "u8"), ("count", "u8"), ("offset", "i8"), ("reserved", "u8"), ("flags", "u4"), ("eventfd", "u4")),
    ]
)
_EVENT = np.dtype([("data", "u8"), ("iocb", "u8"), ("result", "i8"), ("result2", "i8")])


def _syscall(number: int, *args: Any) -> int:
    """A raw system call, begun again after a signal; minus the error number if it fails."""
    while True:
        result = libc.syscall(ctypes.c_long(number), *args)
        if result >= 0:
            return result
        if (code := ctypes.get_errno()) != errno.EINTR:
            return -code


class NativeAio:
    """Linux native AIO: a batch of reads is one array of control blocks, handed over with one system call.

    patience: seconds for which it asks again and again before it sleeps until reads have finished. Raises OSError where
    the system refuses it, and `submit` ReadError where it refuses more of it. Threads may share it.
    """

    name = "aio"

    def __init__(self, depth: int = 128, patience: float = POLL_SECONDS) -> None:
        self.depth, self.patience = depth, patience
        if sys.platform != "linux" or platform.machine() not in _SYSCALLS:
            raise OSError(errno.ENOSYS, "native AIO is a Linux interface")
        self._setup, self._destroy, self.getevents, self.iosubmit = _SYSCALLS[platform.machine()]
        self._idle: list[int] = [self._new_queue()]  # a queue serves one batch at a time
        self._all = list(self._idle)
        self._pid = os.getpid()

    def _new_queue(self) -> int:
        queue = ctypes.c_ulong(0)
        if (code := _syscall(self._setup, ctypes.c_long(self.depth), ctypes.byref(queue))) < 0:
            full = "; fs.aio-max-nr bounds what all programs together may take" if -code == errno.EAGAIN else ""
            raise ReadError(f"io_setup: {os.strerror(-code)}{full}")
        return queue.value

    def submit(self, fd: int, reads: Reads) -> Batch:
        try:
            queue = self._idle.pop()
        except IndexError:
            self._all.append(queue := self._new_queue())
        try:
            return _AioBatch(self, queue, fd, reads)
        except BaseException:
            self.discard(queue)
            raise

    def release(self, queue: int) -> None:
        """Take back a queue that has nothing in flight."""
        self._idle.append(queue)

    def discard(self, queue: int) -> None:
        """Destroy a queue, by which all that it has in flight ends: after an interrupt nobody knows what that is."""
        self._all.remove(queue)
        _syscall(self._destroy, ctypes.c_ulong(queue))

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid():  # queues don't survive a fork
            for queue in self._all:
                _syscall(self._destroy, ctypes.c_ulong(queue))


class _AioBatch:
    def __init__(self, aio: NativeAio, queue: int, fd: int, reads: Reads) -> None:
        n = len(reads)
        self._aio, self._queue, self._reads = aio, queue, reads
        self._blocks = np.zeros(n, _IOCB)
        self._blocks["data"], self._blocks["opcode"], self._blocks["fd"] = np.arange(n), _PREADV, fd
        self._blocks["buffers"] = reads.iovecs.ctypes.data + reads.first * IOVEC.itemsize
        self._blocks["count"], self._blocks["offset"] = reads.count, reads.offset
        self._pointers = (self._blocks.ctypes.data + np.arange(n) * _IOCB.itemsize).astype(np.uint64)
        self._events = np.empty(min(n, aio.depth), _EVENT)
        self._results = np.full(n, -errno.ECANCELED, np.int64)
        self._submitted = self._done = 0
        self._fill_queue()

    def _fill_queue(self) -> None:
        """Hand over as many reads as the queue has room for. A read that is refused counts as failed, and if the system
        has no room for any, so do all that are left."""
        room = self._aio.depth - (self._submitted - self._done)
        while self._submitted < len(self._reads) and room > 0:
            left = len(self._reads) - self._submitted
            taken = self._hand_over(min(room, left))
            if taken == -errno.EAGAIN and self._submitted > self._done:
                return  # the system is busy: wait for some of ours first
            if taken < 0:
                refused = left if taken == -errno.EAGAIN else 1
                self._results[self._submitted : self._submitted + refused] = taken
                self._done += refused
                self._submitted += refused
            else:
                self._submitted += taken
                room -= taken

    def _hand_over(self, most: int) -> int:
        """How many of the next reads the system takes, or minus an error number. While it has no room, and nothing of
        ours is in flight whose end would make some, it is asked again after longer and longer pauses."""
        pointers = ctypes.c_void_p(self._pointers.ctypes.data + 8 * self._submitted)
        for pause in (*PAUSES, 0.0):
            taken = _syscall(self._aio.iosubmit, ctypes.c_ulong(self._queue), ctypes.c_long(most), pointers)
            if taken != -errno.EAGAIN or self._submitted > self._done:
                break
            time.sleep(pause)
        return taken

    def wait(self) -> np.ndarray:
        try:
            while self._done < len(self._reads):
                if self._submitted > self._done:
                    self._reap()
                self._fill_queue()
        except BaseException:
            self._leave(self._aio.discard)
            raise
        self._leave(self._aio.release)
        return self._results

    def _leave(self, queue_to: Callable[[int], None]) -> None:
        """Give up the queue, if that wasn't done before; then nothing is under way."""
        queue, self._queue = self._queue, 0
        if queue:
            queue_to(queue)
        self._submitted = self._done = len(self._reads)

    def _reap(self) -> None:
        """Note the reads that have finished, at least one. Asks again and again at first, because sleeping until the
        drive wakes us costs about as long as a small read takes, at every layer of every token."""
        until = time.perf_counter() + self._aio.patience
        while (got := self._finished(0)) == 0 and time.perf_counter() < until:
            pass
        few = 1 if self._aio.patience else max(1, (self._submitted - self._done) // 2)  # to be woken seldom
        finished = self._events[: got or self._finished(few)]
        self._results[finished["data"].astype(np.int64)] = finished["result"]
        self._done += len(finished)

    def _finished(self, least: int) -> int:
        """How many reads have finished, their events in `_events`; waits until there are `least`."""
        got = _syscall(
            self._aio.getevents, ctypes.c_ulong(self._queue), ctypes.c_long(least),
            ctypes.c_long(min(self._submitted - self._done, len(self._events))),
            ctypes.c_void_p(self._events.ctypes.data), ctypes.c_void_p(None),
        )  # fmt: skip
        if got < 0:
            raise ReadError(f"io_getevents: {os.strerror(-got)}")
        return got
