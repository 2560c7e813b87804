"""Where a token's time goes: waiting for flash, managing memory, multiplying."""

from __future__ import annotations

import time
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CallCost:
    """What one call of the model cost: times in ms, and what was read from flash.

    compute_ms is all that is neither waiting for flash nor managing neurons in DRAM; product_ms is the part of it that
    the FFN's products take. prefetched: bytes read ahead of the layer that needs them; wasted: those of them that it
    then didn't need.
    """

    tokens: int
    io_ms: float
    memory_ms: float
    compute_ms: float
    total_ms: float
    product_ms: float
    records: int
    reads: int
    bytes: int
    prefetched: int
    wasted: int
