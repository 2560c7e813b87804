"""Neurons on a device: reads land in the host's memory, and go on to the device's in one copy a layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flashlite.engine.device.bus import Bus
from flashlite.engine.device.memory import Memory
from flashlite.engine.pool import Landing, NeuronMemory, Pool
from flashlite.engine.stream import Stream
from flashlite.engine.timing import COPY, MEMORY, PRODUCT, Clock
from flashlite.families.activation import Activation
from flashlite.storage.neurons import NeuronFile


class DeviceStream(Stream):
    """A Stream whose parts go on to a buffer on the device, of the same two halves, where they are multiplied.

    One part is copied while the device multiplies the part before and the drive reads the part after.

    file, rows, dtype, clock, activation: as Stream has them
    bus: the way to the device
    memory: the device's

    arrived: [2 * rows, record_bytes] uint8, the device's buffer
    """

    def __init__(
        self, file: NeuronFile, rows: int, dtype: torch.dtype, clock: Clock, activation: Activation, bus: Bus,
        memory: Memory,
    ) -> None:  # fmt: skip
        super().__init__(file, rows, dtype, clock, activation, bus.buffer)
        self.arrived = memory.rows(2 * rows, file.shape.record_bytes)
        sizes = [buffer.size for buffer in self._buffers]
        self._targets = [part.view(2 * rows, -1) for part in self.arrived.view(-1)[: sum(sizes)].split(sizes)]
        self._matrices = [target.view(dtype) for target in self._targets]
        self._bus = bus
        self._used = {0: bus.mark(), rows: bus.mark()}  # by the first row of each half: behind its last product

    def _multiply(self, x: Tensor, landed: slice, bias: Tensor, part: np.ndarray, keep: Tensor | None) -> Tensor:
        """Send a part on and multiply it there: [tokens, d_model]."""
        self._clock.switch(COPY)
        halves, rows = range(landed.start, landed.stop, self.rows), slice(landed.start, landed.start + len(part))
        for half in halves:
            self._bus.follow(self._used[half])
        for target, buffer in zip(self._targets, self._buffers, strict=True):
            self._bus.send(target[rows], buffer[rows])
        self._bus.wait()  # the next read may land where this one did
        self._clock.switch(PRODUCT)
        out = super()._multiply(x, landed, bias, part, keep)
        self._used |= dict.fromkeys(halves, self._bus.mark())
        return out


class Staged:
    """Neurons in rows on a device, and the buffer in the host's memory through which they get there.

    memory: the rows, a Pool or a RebuiltMatrix on the device; which neuron is in which of them is its business
    buffer: [rows, record_bytes] uint8, of the host, with a row for each neuron that the memory has room for; reads of
        one layer at a time land there
    arrived: [n, record_bytes] uint8, of the device, through which rows pass
    bus: the way to the device
    clock: the engine's
    """

    spare = 0  # more than the memory itself needs

    def __init__(self, memory: NeuronMemory, buffer: np.ndarray, arrived: Tensor, bus: Bus, clock: Clock) -> None:
        self._memory, self._buffer, self._arrived, self._bus, self._clock = memory, buffer, arrived, bus, clock
        self._landing: Landing | None = None  # where the neurons go whose reads land in the buffer
        self._rows = np.zeros(0, np.int64)  # of the neurons that came last

    @property
    def moved(self) -> int:
        """See NeuronMemory."""
        return self._memory.moved

    @property
    def num_used(self) -> int:
        """See NeuronMemory."""
        return self._memory.num_used

    def place(self, load: np.ndarray, drop: np.ndarray) -> Landing:
        """See NeuronMemory. The rows are the buffer's."""
        self._landing = self._memory.place(load, drop)
        self._rows = self._landing.rows
        return Landing(self._buffer, np.arange(len(load)))

    def commit(self) -> None:
        """Send the neurons that have landed to their rows."""
        if (landing := self._landing) is not None and len(landing.rows):
            self._clock.switch(COPY)
            self._send(landing)
            self._clock.switch(MEMORY)
        self._landing = None
        self._memory.commit()

    def _send(self, landing: Landing) -> None:
        bus, size, matrix = self._bus, len(self._arrived), torch.as_tensor(landing.buffer)
        bus.follow()  # the device may still multiply what is in these rows
        for begin in range(0, len(landing.rows), size):
            rows = landing.rows[begin : begin + size]
            arrived = self._arrived[: len(rows)]
            bus.send(arrived, self._buffer[begin : begin + len(rows)])
            bus.put(matrix, rows, arrived)
        bus.wait()  # the buffer is the next layer's

    def product(self, x: Tensor) -> Tensor:
        """See NeuronMemory."""
        return self._memory.product(x)

    def activations(self, x: Tensor, neurons: np.ndarray) -> Tensor:
        """See Pool, which the memory must be."""
        assert isinstance(self._memory, Pool)
        return self._memory.activations(x, neurons)

    def product_after(self, h: Tensor, x: Tensor, neurons: np.ndarray, landed: np.ndarray) -> Tensor:
        """See Pool. landed: the buffer's rows, in place of which the memory's are taken."""
        assert isinstance(self._memory, Pool)
        return self._memory.product_after(h, x, neurons, self._rows)

    def clear(self) -> None:
        """See NeuronMemory."""
        self._landing = None
        self._memory.clear()
