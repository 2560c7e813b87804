"""Reads that go on while the caller computes, because a thread hands over those that the drive has no room for yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashlite.drive.backends import Backend, Batch
from flashlite.drive.jobs import Job, Workers
from flashlite.drive.reads import Reads


class Background:
    """A backend that has another one carry out its batches. `submit` returns at once, and reads go on while the caller
    computes.

    The drive gets a batch that fits the other's depth at once. Of a larger one, the rest is handed over as reads end:
    a thread does that, one batch after the other.
    """

    name = "background"

    def __init__(self, backend: Backend) -> None:
        self.depth = backend.depth
        self._backend, self._thread = backend, Workers(1, "flash-early")

    def submit(self, fd: int, reads: Reads) -> Batch:
        if reads.number <= self.depth:
            return self._backend.submit(fd, reads)
        job = Job(lambda: self._backend.submit(fd, reads).wait())
        try:
            self._thread.submit(job)
        except BaseException:
            job.call_off()
            raise
        return _Later(job)


class _Later:
    """A batch that the thread carries out when it comes to it."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def wait(self) -> np.ndarray:
        return self._job.wait()  # type: ignore[no-any-return]

    def let_go(self) -> Sequence[Job]:
        """See Batch. The job holds the reads until it is over."""
        return (self._job,)
