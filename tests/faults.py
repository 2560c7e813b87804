"""Reads that fail as a drive's do, by a plan: behind the interface of backends, and behind native AIO's system calls.

plan = Plan()
backend = Faulty(NativeAio(), plan)
plan.arm(Fault("eio", batch=7, pick=0.5))       # half-way down the seventh batch of reads from now on
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashlite.drive import aio as native
from flashlite.drive.aio import NativeAio
from flashlite.drive.backends import Backend, Batch
from flashlite.drive.jobs import Job
from flashlite.drive.reads import Reads
from flashlite.errors import ReadError

POISON = 0xFF  # NaN in every type of weights: what is multiplied before it was read shows in the logits
ERRORS = ("eio", "short", "refused")  # a read fails, ends half-way, or its batch isn't even begun
INTERRUPTS = ("interrupted wait", "interrupted submit")
KINDS = (*ERRORS, *INTERRUPTS, "late")  # late: from that batch on, reads begin only when somebody waits for them


@dataclass(frozen=True)
class Fault:
    """What goes wrong in which batch, counted from when it is armed. pick: which of its reads, from 0 to 1."""

    kind: str
    batch: int
    pick: float


class Plan:
    """What backends that share it must do. batches: submitted since it was armed; hits: path and offset of each read
    that a fault met; under_way: batches that were begun and not ended."""

    def __init__(self) -> None:
        self.hits: list[tuple[Path, int]] = []
        self.under_way = 0
        self.arm(None)

    def arm(self, fault: Fault | None) -> None:
        """Count batches from here; the fault is met once."""
        self.fault, self.batches, self.late = fault, 0, False

    def next(self, fd: int, reads: Reads) -> tuple[str, int]:
        """The kind of fault that this batch meets, "" for none, and which of its reads."""
        self.batches += 1
        if self.fault is None or self.batches != self.fault.batch:
            return "", 0
        fault, self.fault = self.fault, None
        victim = min(reads.number - 1, int(fault.pick * reads.number))
        self.hits.append((Path(os.readlink(f"/proc/self/fd/{fd}")), int(reads.offset[victim])))
        self.late |= fault.kind == "late"
        return fault.kind, victim


def poison(reads: Reads, i: int | None = None, kept: int = 0) -> None:
    """Fill the memory that reads go to, or only that of read i but for its first `kept` bytes."""
    buffers = reads.iovecs if i is None else reads.iovecs[reads.first[i] : reads.first[i] + reads.count[i]]
    for base, length in buffers.tolist():
        ctypes.memset(base + min(kept, length), POISON, length - min(kept, length))
        kept = max(0, kept - length)


class Faulty:
    """Any backend, whose batches meet the faults of a plan. Where reads will land is poisoned first."""

    def __init__(self, backend: Backend, plan: Plan) -> None:
        self.name, self.depth = backend.name, backend.depth
        self._backend, self._plan = backend, plan

    def submit(self, fd: int, reads: Reads) -> Batch:
        poison(reads)
        kind, victim = self._plan.next(fd, reads)
        if kind == "refused":
            raise ReadError("io_setup: Resource temporarily unavailable")
        if kind == "interrupted submit":
            raise KeyboardInterrupt
        return _FaultyBatch(self._plan, kind, victim, reads, lambda: self._backend.submit(fd, reads))


class _FaultyBatch:
    def __init__(self, plan: Plan, kind: str, victim: int, reads: Reads, begin: Callable[[], Batch]) -> None:
        self._plan, self._kind, self._victim, self._reads, self._begin = plan, kind, victim, reads, begin
        self._batch = None if plan.late else begin()
        plan.under_way += 1

    def wait(self) -> np.ndarray:
        if self._kind == "interrupted wait":
            self._kind = ""
            raise KeyboardInterrupt
        done = (self._batch or self._begin()).wait().copy()
        self._plan.under_way -= 1
        if self._kind in ("eio", "short"):
            kept = int(self._reads.nbytes[self._victim]) // 2 if self._kind == "short" else 0
            poison(self._reads, self._victim, kept)
            done[self._victim] = kept or -errno.EIO
        return done

    def let_go(self) -> Sequence[Job]:
        with contextlib.suppress(ReadError):
            self.wait()
        return ()


KERNEL_ERRORS = ("exhausted", "EINVAL", "lost")  # no room for ever; a read refused; no answer about reads in flight
KERNEL_NUISANCES = ("partial", "busy", "few", "EINTR")  # what a program must cope with


class FaultyKernel:
    """System calls of native AIO that go wrong once armed: from the n-th io_submit on, or the n-th io_getevents where
    it is about answers. `met` counts how often. It takes the place of native._syscall, or of libc for EINTR."""

    def __init__(self, aio: NativeAio) -> None:
        self._submit, self._getevents = aio.iosubmit, aio.getevents
        self._real, self._libc = native._syscall, native.libc
        self.arm("", 1)

    def arm(self, kind: str, nth: int) -> None:
        """From the n-th call on: what goes on goes on, what comes once comes once."""
        self.kind, self._left, self.met, self.busy = kind, nth, 0, 3

    def _strikes(self, number: int) -> bool:
        about = self._getevents if self.kind in ("few", "lost") else self._submit
        if number != about or not self.kind:
            return False
        self._left -= 1
        return self._left <= 0

    def __call__(self, number: int, *args: Any) -> int:
        if self.kind == "EINTR" or not self._strikes(number):
            return self._real(number, *args)
        self.met += 1
        if self.kind == "partial":
            return self._real(number, args[0], ctypes.c_long(1), *args[2:])
        if self.kind == "few":
            return self._real(number, *args[:2], ctypes.c_long(1), *args[3:])
        if self.kind == "busy":
            self.busy -= 1
            return -errno.EAGAIN if self.busy % 4 else self._real(number, *args)
        if self.kind == "exhausted":
            return -errno.EAGAIN
        self.kind = ""
        return -errno.EINVAL

    def syscall(self, number: ctypes.c_long, *args: Any) -> int:
        """As the C library's own, interrupted by a signal before it did anything."""
        if self.kind == "EINTR" and self._strikes(number.value) and self.met < 3:
            self.met += 1
            ctypes.set_errno(errno.EINTR)
            return -1
        return self._libc.syscall(number, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libc, name)
