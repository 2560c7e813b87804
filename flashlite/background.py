"""Reads that go on while the caller computes: a thread that waits for them in its place."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from flashlite.backends import Backend, Batch
from flashlite.reads import Reads


class Background:
    """Another backend, whose batches a thread of its own carries out, one after the other: `submit` returns at once,
    and reads go on while the caller computes."""

    name = "background"

    def __init__(self, backend: Backend) -> None:
        self.depth = backend.depth
        self._backend, self._thread = backend, ThreadPoolExecutor(1, thread_name_prefix="flash-ahead")

    class _Batch:
        def __init__(self, future: Future[np.ndarray]) -> None:
            self._future = future

        def wait(self) -> np.ndarray:
            return self._future.result()

    def submit(self, fd: int, reads: Reads) -> Batch:
        try:
            return self._Batch(self._thread.submit(lambda: self._backend.submit(fd, reads).wait()))
        except BaseException:
            self._thread.submit(int).result()  # after all that the thread was given before
            raise
