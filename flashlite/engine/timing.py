"""Where a call's time goes: every moment of it is charged to one part. (Paper: section 2.1)"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashlite.drive.flash import Counters

REST, IO, MEMORY, PRODUCT, COPY = range(5)  # parts of a call; REST is the time in none of the others


class Clock:
    """Sums the seconds of each part: `switch(part)` ends the part before, and charges it the time since its beginning.

    IO is the wait for flash, MEMORY the management of neurons in DRAM, PRODUCT the FFNs' multiplications, COPY the wait
    for a device's bus.
    """

    def __init__(self) -> None:
        self.seconds = [0.0] * 5
        self._part, self._since = REST, 0.0

    def start(self) -> None:
        """Begin a call: the time before it is charged to no part."""
        self._part, self._since = REST, time.perf_counter()

    def switch(self, part: int) -> None:
        """Charge the time from now on to this part."""
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now


class DeviceClock(Clock):
    """A Clock for a device that computes on while the host goes on.

    finish: waits until the device has computed all that it was given

    The clock waits for the device where REST begins and ends, so that what the device computes is charged to the part
    that gave it the work. It waits nowhere else, because copies, reads and products may go on together. That is hardly
    slower: a layer's predictor is asked at about the same time, and its answer must come back to the host anyway.
    """

    def __init__(self, finish: Callable[[], None]) -> None:
        super().__init__()
        self._finish = finish

    def switch(self, part: int) -> None:
        """See Clock."""
        if part == REST or self._part == REST:
            self._finish()
        super().switch(part)


@dataclass(frozen=True, slots=True)
class Meter:
    """The time and the reads that an engine has spent so far.

    seconds: by part of the clock
    read: all reads from flash
    prefetched: bytes that were read early, before the layer that needs them knew its input
    wasted: the bytes among these that the layer then didn't need
    """

    seconds: tuple[float, ...]
    read: Counters
    prefetched: int
    wasted: int


@dataclass(frozen=True, slots=True)
class CallCost:
    """The cost of one call of the model: times in ms, and reads from flash.

    tokens: how many new ones each sequence had
    io_ms: the wait for flash
    memory_ms: the management of neurons in DRAM
    compute_ms: the rest of total_ms
    total_ms: from the beginning of the call to its end
    product_ms: the part of compute_ms that the FFNs' products took
    records, reads, bytes: as Counters has them
    prefetched, wasted: as Meter has them
    copy_ms: the wait for copies to a device
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
    copy_ms: float = 0.0

    @classmethod
    def between(cls, before: Meter, after: Meter, tokens: int) -> CallCost:
        """The cost of a call of this many tokens, from the meter before it and after it."""
        rest, io, memory, product, copy = [1e3 * (b - a) for a, b in zip(before.seconds, after.seconds, strict=True)]
        read = after.read - before.read
        return cls(
            tokens=tokens, io_ms=io, memory_ms=memory, compute_ms=rest + product,
            total_ms=rest + io + memory + product + copy, product_ms=product,
            records=read.records, reads=read.reads, bytes=read.bytes,
            prefetched=after.prefetched - before.prefetched, wasted=after.wasted - before.wasted, copy_ms=copy,
        )  # fmt: skip


def spent(calls: Sequence[CallCost], budget_bytes: int) -> str:
    """One line: what calls took, and what a token after the prompt cost on average.

    budget_bytes: the model's budget, which the line names too
    """
    budget = f"budget {budget_bytes / 1e6:.1f} MB"
    if not calls:
        return f"[no calls yet; {budget}]"
    decoded = [call for call in calls if call.tokens == 1] or calls

    def mean(field: str) -> float:
        return sum(getattr(call, field) for call in decoded) / len(decoded)

    split = f"I/O {mean('io_ms'):.1f} + memory {mean('memory_ms'):.1f} + compute {mean('compute_ms'):.1f} ms"
    return (
        f"[{len(calls)} calls in {sum(call.total_ms for call in calls) / 1e3:.1f} s; a token: {split}, "
        f"{mean('bytes') / 1e6:.2f} MB in {mean('reads'):.0f} reads; {budget}]"
    )
