"""Threads that carry out jobs for a caller who may be interrupted at any moment.

concurrent.futures is not enough: an interrupt that comes while the caller holds one of its locks can leave it locked,
and the next job waits for ever. (Python 3.14 lets interrupts in at each `with lock:`, see cpython issue 148874.) Here
the caller holds no lock: a queue written in C passes jobs on, and a job's result is noted before its caller is woken.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any


class Job:
    """Work for one of several threads, done once at most."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._taken, self._wake = threading.Lock(), threading.Lock()
        self._wake.acquire()
        self._over = False
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work, unless it was called off."""
        if not self._taken.acquire(blocking=False):
            return
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        del self._work  # otherwise the memory that it reads to would live as long as its result
        self._over = True
        self._wake.release()

    def wait(self) -> Any:
        """Wait for the work. Returns its result or raises its error, each time it is called."""
        while not self._over:  # it is set before the wake-up, which an interrupt may have swallowed
            self._wake.acquire()
        if self._error is not None:
            raise self._error
        return self._result

    def call_off(self) -> None:
        """Keep the work from beginning. If it has begun, wait until it is over."""
        if not self._taken.acquire(blocking=False):
            while not self._over:
                self._wake.acquire()


class Workers:
    """Some threads, which end when this object is gone."""

    def __init__(self, threads: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        for i in range(threads):
            threading.Thread(target=_serve, args=(self._jobs,), name=f"{name}-{i}", daemon=True).start()
        weakref.finalize(self, _dismiss, self._jobs, threads)

    def submit(self, job: Job) -> None:
        """Give a job to the next free thread. Jobs begin in the order in which they come."""
        self._jobs.put(job)


def _serve(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # otherwise its result would live until the next job comes


def _dismiss(jobs: queue.SimpleQueue[Job | None], threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)
