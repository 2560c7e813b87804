"""Where a call's time goes: every moment of it is charged to one part. (Paper: section 2.1)"""

from __future__ import annotations

import time
from dataclasses import dataclass

from flashlite.drive.flash import Counters

REST, IO, MEMORY, PRODUCT = range(4)  # parts of a call; REST is all that is none of the others


class Clock:
    """Sums the seconds of each part: `switch(part)` charges what has passed since the last switch to the part before.

    IO is waiting for flash, MEMORY managing neurons in DRAM, PRODUCT the FFNs' multiplications.
    """

    def __init__(self) -> None:
        self.seconds = [0.0] * 4
        self._part, self._since = REST, 0.0

    def start(self) -> None:
        """A call begins: the time before it is nobody's."""
        self._part, self._since = REST, time.perf_counter()

    def switch(self, part: int) -> None:
        """From now on time is charged to this part."""
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now


@dataclass(frozen=True, slots=True)
class Meter:
    """What an engine has spent so far.

    seconds: by part of the clock
    read: everything that was read from flash
    prefetched: bytes read before the layer that needs them knew its input
    wasted: those of them that it then didn't need
    """

    seconds: tuple[float, ...]
    read: Counters
    prefetched: int
    wasted: int


@dataclass(frozen=True, slots=True)
class CallCost:
    """What one call of the model cost: times in ms, and what was read from flash.

    tokens: new ones of each sequence
    io_ms, memory_ms: waiting for flash, managing neurons in DRAM
    compute_ms: all the rest of total_ms
    product_ms: the part of compute_ms that the FFNs' products take
    records, reads, bytes: as Counters has them
    prefetched, wasted: as Meter has them
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

    @classmethod
    def between(cls, before: Meter, after: Meter, tokens: int) -> CallCost:
        """What a call cost of that many tokens, by what the meter showed before and after it."""
        rest, io, memory, product = [1e3 * (b - a) for a, b in zip(before.seconds, after.seconds, strict=True)]
        read = after.read - before.read
        return cls(
            tokens=tokens, io_ms=io, memory_ms=memory, compute_ms=rest + product,
            total_ms=rest + io + memory + product, product_ms=product,
            records=read.records, reads=read.reads, bytes=read.bytes,
            prefetched=after.prefetched - before.prefetched, wasted=after.wasted - before.wasted,
        )  # fmt: skip
