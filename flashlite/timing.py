"""Where a token's time goes: waiting for flash, managing memory, multiplying."""

from __future__ import annotations

import time
from types import TracebackType


class Timer:
    """Sums the seconds spent inside `with timer:`. Timers must not be nested."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds += time.perf_counter() - self._began


class Timing:
    """The timers of one model; product is the FFN's multiplications alone, a part of compute."""

    def __init__(self) -> None:
        self.io, self.memory, self.product = Timer(), Timer(), Timer()

    def seconds(self) -> tuple[float, float, float]:
        """Sums so far: I/O, memory management, FFN products."""
        return self.io.seconds, self.memory.seconds, self.product.seconds
