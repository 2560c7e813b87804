"""Resident weights on a device: read through a small buffer of the host's memory and sent on."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from flashlite.drive.direct import PAGE
from flashlite.drive.flash import FlashFile, Ticket
from flashlite.engine.device.bus import Bus
from flashlite.engine.device.memory import Memory
from flashlite.engine.resident import CHUNK, tensors_in, turns
from flashlite.engine.timing import COPY, IO, Clock
from flashlite.storage.bundle import round_up
from flashlite.storage.neurons import wait_all
from flashlite.storage.store import Group, Store

HALF = 8 * 2**20  # bytes of each half of the host's buffer: whole reads of the largest size


class DeviceGroup:
    """A device's memory for one group of resident tensors at a time.

    memory: the device's
    file: the resident weights on flash
    groups: the groups that take turns in it, which is as large as the largest of them

    nbytes: its size
    """

    def __init__(self, memory: Memory, file: FlashFile, groups: list[Group]) -> None:
        self._begins = {g.name: g.begin // file.alignment * file.alignment for g in groups}
        self.nbytes = max(round_up(g.end - self._begins[g.name], PAGE) for g in groups)
        self.flat: Tensor = memory.rows(1, self.nbytes)[0]

    def begin(self, group: Group) -> int:
        """Where in the file its memory begins, in bytes."""
        return self._begins[group.name]

    def views(self, group: Group) -> dict[str, Tensor]:
        """The group's tensors as views of the memory."""
        return tensors_in(self.flat, group, self.begin(group))


class DeviceResident:
    """ResidentWeights whose tensors are on a device.

    store, persistent: as ResidentWeights has them
    memory: the device's
    bus: the way there
    clock: the engine's

    nbytes: what they take of the device's memory
    host_bytes: what the buffer takes of the host's
    """

    host_bytes = 2 * HALF

    def __init__(self, store: Store, persistent: bool, memory: Memory, bus: Bus, clock: Clock) -> None:
        self.file, self._check, self._bus, self._clock = store.open_resident(), store.check_read, bus, clock
        shared = turns(store, persistent)
        self._groups = {group.name: group for groups in shared for group in groups}
        places = [DeviceGroup(memory, self.file, groups) for groups in shared]
        self._place_of = {name: place for place in places for name in place._begins}
        self.nbytes = sum(place.nbytes for place in places)
        self._buffer = bus.buffer(2, HALF)
        for name in self._groups:
            self.read(name)
        if persistent:
            del self._buffer

    def read(self, name: str) -> None:
        """Read a group's weights from flash and send them on, one half of the buffer while the other is read.

        Raises ReadError.
        """
        group, place = self._groups[name], self._place_of[name]
        self._bus.follow()  # the device may still multiply what is there
        nbytes = group.end - place.begin(group)
        begins = range(0, nbytes, HALF)
        tickets = self._submit(group, place, 0)
        for i, begin in enumerate(begins):
            wait_all(tickets)
            if begin + HALF < nbytes:
                tickets = self._submit(group, place, i + 1)
            self._clock.switch(COPY)
            size = min(HALF, nbytes - begin)
            self._bus.send(place.flat[begin : begin + size], self._buffer[i % 2, :size])
            self._bus.wait()
            self._clock.switch(IO)
        self._check(group, lambda group: {name: tensor.cpu() for name, tensor in place.views(group).items()})

    def _submit(self, group: Group, place: DeviceGroup, i: int) -> list[Ticket]:
        """Begin to read the group's i-th part into its half of the buffer."""
        begin = place.begin(group) + i * HALF
        half, size = self._buffer[i % 2], min(HALF, group.end - begin)
        whole, rest = divmod(size, CHUNK)
        end = whole * CHUNK
        tickets = []
        if whole:
            chunks = np.arange(whole)
            tickets.append(self.file.submit(begin + chunks * CHUNK, CHUNK, half[:end].reshape(-1, CHUNK), chunks))
        if rest:  # by itself, because it may end off the drive's grid
            tickets.append(self.file.submit(np.array([begin + end]), rest, half[None, end:], np.array([0])))
        return tickets

    def tensors(self) -> dict[str, Tensor]:
        """Every resident tensor, by name, as a view of its memory on the device."""
        views: dict[str, Tensor] = {}
        for name, group in self._groups.items():
            views |= self._place_of[name].views(group)
        return views
