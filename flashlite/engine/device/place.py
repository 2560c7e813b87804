"""Where a model runs: in the host's memory, or on a device. All that differs between the two is asked of a place.

place = place_of("cuda")
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from flashlite.arguments import check_device
from flashlite.engine.budget import Budget
from flashlite.engine.device.bus import bus_to
from flashlite.engine.device.memory import HOST, Memory
from flashlite.engine.device.predictors import on_device
from flashlite.engine.device.resident import DeviceResident
from flashlite.engine.device.staged import DeviceStream, Staged
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.pool import NeuronMemory
from flashlite.engine.predictors.choice import Choice
from flashlite.engine.resident import ResidentWeights
from flashlite.engine.stages import Stage
from flashlite.engine.stream import Stream
from flashlite.engine.timing import Clock, DeviceClock
from flashlite.errors import FlashliteError
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import Store

STAGED = "staged"  # the CPU taken for a device: what tests and dry runs ask for


class Parts(Protocol):
    """Makes the parts of an engine where they belong.

    clock: the engine's
    """

    clock: Clock

    def resident(self) -> ResidentWeights | DeviceResident:
        """The resident weights."""

    def stream(self, file: NeuronFile) -> Stream:
        """The buffer through which whole layers pass."""

    def neurons(self, layer: int, bias: Tensor) -> NeuronMemory:
        """The memory of a layer's neurons. bias: of all rows, see StreamedFFN."""

    def finish(self) -> None:
        """Wait for copies that are under way."""


class Place(Protocol):
    """Where a model's weights lie and are multiplied.

    device: as torch calls it
    int8_bytes: what an int8 weight of a predictor takes here
    """

    device: torch.device
    int8_bytes: int

    def check_dtype(self, dtype: str | None) -> None:
        """Raise FlashliteError if weights of this dtype can't be multiplied here."""

    def predictors(self, choice: Choice) -> Choice:
        """Predictors as they are here."""

    def budget(self, budget: Budget, store: Store, stage: Stage) -> Budget:
        """A budget with what the host needs beside it."""

    def parts(self, store: Store, stage: Stage, budget: Budget) -> Parts:
        """What makes the parts of an engine here."""


class HostPlace:
    """The host's memory, and its processor."""

    device, int8_bytes = HOST.device, 1

    def check_dtype(self, dtype: str | None) -> None:
        """See Place: all of them can."""

    def predictors(self, choice: Choice) -> Choice:
        """See Place."""
        return choice

    def budget(self, budget: Budget, store: Store, stage: Stage) -> Budget:
        """See Place."""
        return budget

    def parts(self, store: Store, stage: Stage, budget: Budget) -> Parts:
        """See Place."""
        return HostParts(store, stage, budget)


class HostParts:
    """See Parts."""

    def __init__(self, store: Store, stage: Stage, budget: Budget) -> None:
        self._store, self._stage, self._budget, self.clock = store, stage, budget, Clock()

    def resident(self) -> ResidentWeights:
        """See Parts."""
        return ResidentWeights(self._store, self._stage.resident)

    def stream(self, file: NeuronFile) -> Stream:
        """See Parts."""
        return Stream(file, self._budget.stream_rows, self._store.dtype, self.clock, self._store.activation)

    def neurons(self, layer: int, bias: Tensor) -> NeuronMemory:
        """See Parts."""
        store, rows = self._store, self._budget.layer_rows[layer]
        return self._stage.memory(rows, store.shape, store.dtype, bias, store.activation)

    def finish(self) -> None:
        """See Parts."""


HERE = HostPlace()


class DevicePlace:
    """A device on which all weights lie and are multiplied, with buffers in the host's memory on the way there."""

    int8_bytes = 2

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def check_dtype(self, dtype: str | None) -> None:
        """See Place."""
        if dtype == "int8":
            raise FlashliteError("weights in int8 are multiplied on the CPU alone: leave device out, or use dtype bf16")

    def predictors(self, choice: Choice) -> Choice:
        """See Place."""
        return on_device(choice, self.device)

    def budget(self, budget: Budget, store: Store, stage: Stage) -> Budget:
        """See Place. The host needs read buffers, and one buffer of a layer's rows, or two where reads are early."""
        rows = _staging_buffers(stage) * max(budget.layer_rows, default=0)
        resident = (
            0 if stage.resident else DeviceResident.host_bytes
        )  # else it is needed only while the model is loaded
        return replace(budget, host=budget.buffers + rows * store.shape.record_bytes + resident)

    def parts(self, store: Store, stage: Stage, budget: Budget) -> Parts:
        """See Place."""
        return DeviceParts(self.device, store, stage, budget)


def _staging_buffers(stage: Stage) -> int:
    """How many layers' reads may be under way at the same time."""
    return 1 if stage.ffn is FlashFFN else 2


class DeviceParts:
    """See Parts."""

    def __init__(self, device: torch.device, store: Store, stage: Stage, budget: Budget) -> None:
        self._store, self._stage, self._budget = store, stage, budget
        self._bus, self._memory = bus_to(device), Memory.on(device)
        self.clock: Clock = DeviceClock(self._bus.finish)
        most, row_bytes = max(budget.layer_rows, default=0), store.shape.record_bytes
        self._staging = [self._bus.buffer(most, row_bytes) for _ in range(_staging_buffers(stage))]

    def resident(self) -> DeviceResident:
        """See Parts."""
        return DeviceResident(self._store, self._stage.resident, self._memory, self._bus, self.clock)

    def stream(self, file: NeuronFile) -> Stream:
        """See Parts."""
        store, bus = self._store, self._bus
        self._stream = DeviceStream(
            file, self._budget.stream_rows, store.dtype, self.clock, store.activation, bus, self._memory
        )
        return self._stream

    def neurons(self, layer: int, bias: Tensor) -> NeuronMemory:
        """See Parts. Layers that follow each other have buffers of their own where reads are early."""
        store, rows = self._store, self._budget.layer_rows[layer]
        memory = self._stage.memory(rows, store.shape, store.dtype, bias, store.activation, self._memory)
        buffer = self._staging[layer % len(self._staging)]
        return Staged(memory, buffer, self._stream.arrived, self._bus, self.clock)

    def finish(self) -> None:
        """See Parts."""
        self._bus.wait()


def place_of(name: str | torch.device) -> Place:
    """The place of a name: cpu, cuda, or cuda:1. Raises FlashliteError if there is none here."""
    name = check_device(str(name)) if str(name) != STAGED else STAGED
    if name == "cpu":
        return HERE
    if name == STAGED:
        return DevicePlace(torch.device("cpu"))
    number, devices = int(name.partition(":")[2] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not devices:
        raise FlashliteError(
            f"device {name!r} needs an NVIDIA GPU and a torch with CUDA, and torch finds none here: leave device out"
        )
    if number >= devices:
        raise FlashliteError(f"device {name!r} is not here: there are {devices}, the first is cuda:0")
    return DevicePlace(torch.device("cuda", number))
