"""Threads that carry out jobs: each once, whatever happens to those who wait."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from flashlite.drive.jobs import Job, Workers

HANGS = 20.0  # seconds


def alive(name: str) -> int:
    return sum(thread.name.startswith(f"{name}-") for thread in threading.enumerate())


@pytest.fixture
def busy() -> Iterator[tuple[Workers, threading.Event]]:
    """Workers, of which there is one, whose thread waits for an event."""
    workers, go = Workers(1, "busy"), threading.Event()
    workers.submit(Job(lambda: go.wait(HANGS)))
    yield workers, go
    go.set()


def test_jobs_are_done_in_order_and_their_results_kept() -> None:
    workers, done = Workers(1, "one"), []
    jobs = [Job(lambda n=n: done.append(n) or n) for n in range(100)]
    for job in jobs:
        workers.submit(job)
    assert [job.wait() for job in reversed(jobs)] == list(range(99, -1, -1))
    assert done == list(range(100))
    assert jobs[5].wait() == 5


def test_an_error_is_raised_each_time_and_the_thread_goes_on() -> None:
    workers, failing = Workers(1, "one"), Job(lambda: 1 // 0)
    workers.submit(failing)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing.wait()
    workers.submit(following := Job(lambda: 7))
    assert following.wait() == 7


def test_as_many_jobs_go_on_at_a_time_as_there_are_threads() -> None:
    workers, together = Workers(3, "three"), threading.Barrier(3, timeout=HANGS)
    jobs = [Job(together.wait) for _ in range(3)]
    for job in jobs:
        workers.submit(job)
    assert sorted(job.wait() for job in jobs) == [0, 1, 2]


def test_a_job_that_is_called_off_never_begins(busy: tuple[Workers, threading.Event]) -> None:
    workers, go = busy
    done: list[int] = []
    jobs = [Job(lambda n=n: done.append(n)) for n in range(3)]
    for job in jobs:
        workers.submit(job)
    jobs[1].call_off()
    go.set()
    jobs[2].wait()
    assert done == [0, 2]


def test_a_job_that_has_begun_is_over_when_it_is_called_off() -> None:
    workers, begun, done = Workers(1, "one"), threading.Event(), []

    def work() -> None:
        begun.set()
        time.sleep(0.05)
        done.append(1)

    workers.submit(job := Job(work))
    assert begun.wait(HANGS)
    job.call_off()
    assert done == [1]
    job.call_off()
    job.wait()


def test_threads_end_with_their_workers_and_results_with_their_jobs() -> None:
    workers = Workers(4, "ending")
    workers.submit(job := Job(lambda: np.zeros(1)))
    gone = threading.Event()
    weakref.finalize(job.wait(), gone.set)
    del job
    assert gone.wait(HANGS)
    assert alive("ending") == 4
    del workers
    gc.collect()
    until = time.monotonic() + HANGS
    while alive("ending") and time.monotonic() < until:
        time.sleep(0.01)
    assert alive("ending") == 0


def test_interrupts_at_any_moment_lock_nothing() -> None:
    """An interrupt breaks off what submits or waits; the job is then done or called off, and the next one is done."""
    workers, rng, done = Workers(2, "two"), np.random.default_rng(0), []

    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    met = 0
    try:
        while met < 300:
            job = Job(lambda: None)
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))
                while True:
                    job = Job(lambda: time.sleep(0))
                    workers.submit(job)
                    job.wait()
            except KeyboardInterrupt:
                met += 1
            job.call_off()
            workers.submit(following := Job(lambda: done.append(1)))
            following.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(done) == met
