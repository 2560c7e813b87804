"""Reads that go on while the caller computes, because a thread waits for them in the caller's place."""

from __future__ import annotations

import numpy as np

from flashlite.drive.backends import Backend, Batch
from flashlite.drive.jobs import Job, Workers
from flashlite.drive.reads import Reads


class Background:
    """A backend that has another one carry out its batches, in a thread of its own, one after the other. `submit`
    returns at once, and reads go on while the caller computes."""

    name = "background"

    def __init__(self, backend: Backend) -> None:
        self.depth = backend.depth
        self._backend, self._thread = backend, Workers(1, "flash-early")

    def submit(self, fd: int, reads: Reads) -> Batch:
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

    def let_go(self) -> None:
        """The job holds the reads until it is over."""
