"""The resident weights, all but the FFNs': kept in DRAM, or at stage 0 read again for every token.

To keep them is the paper's selective persistence. (Paper: section 3.1)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flashlite.drive.direct import PAGE, aligned_buffer, direct_alignment
from flashlite.drive.flash import FlashFile
from flashlite.families.family import EMBEDDINGS
from flashlite.storage.bundle import round_up
from flashlite.storage.neurons import wait_all
from flashlite.storage.store import RESIDENT, Group, Store

CHUNK = 64 * 1024  # bytes in which a group is read


def tensors_in(flat: Tensor, group: Group, begin: int) -> dict[str, Tensor]:
    """A group's tensors as views of the memory that holds it.

    flat: [bytes] uint8
    begin: where in the file the memory begins, in bytes
    """
    return {
        name: flat[e.begin - begin : e.begin - begin + e.nbytes].view(e.dtype).view(e.shape)
        for name, e in group.tensors.items()
    }


def turns(store: Store, persistent: bool) -> list[list[Group]]:
    """Which groups share memory: none where all weights are persistent, else all layers."""
    layers = [group for group in store.groups if group.name != EMBEDDINGS]
    embeddings = [group for group in store.groups if group.name == EMBEDDINGS]
    return [embeddings, *([group] for group in layers)] if persistent else [embeddings, layers]


class GroupBuffer:
    """Memory for one group of resident tensors at a time, read from flash to where the model uses them.

    file: the resident weights on flash
    groups: the groups that take turns in the buffer, which is as large as the largest of them

    nbytes: its size
    """

    def __init__(self, file: FlashFile, groups: list[Group]) -> None:
        self._file = file
        self._begins = {g.name: g.begin // file.alignment * file.alignment for g in groups}
        self.nbytes = max(round_up(g.end - self._begins[g.name], PAGE) for g in groups)
        self._flat = aligned_buffer(1, self.nbytes)[0]

    def views(self, group: Group) -> dict[str, Tensor]:
        """The group's tensors as views of the buffer; they hold its weights after `read(group)`."""
        return tensors_in(torch.from_numpy(self._flat), group, self._begins[group.name])

    def read(self, group: Group) -> None:
        """Fill the buffer from flash. Raises ReadError."""
        begin = self._begins[group.name]
        whole, rest = divmod(group.end - begin, CHUNK)
        chunks, end = np.arange(whole), whole * CHUNK
        tickets = [self._file.submit(begin + chunks * CHUNK, CHUNK, self._flat[:end].reshape(-1, CHUNK), chunks)]
        if rest:  # by itself, because it may end off the drive's grid
            tickets.append(self._file.submit(np.array([begin + end]), rest, self._flat[None, end:], np.array([0])))
        wait_all(tickets)


class ResidentWeights:
    """All resident tensors of a store, by the name that transformers gives them.

    store: the packed model
    persistent: whether all are read once and stay in DRAM; if not, the embeddings have one buffer and all layers
        another, and `read(name)` must be called before a group is used

    nbytes: the DRAM that they take
    """

    def __init__(self, store: Store, persistent: bool) -> None:
        self.file, self._check = store.open_resident(), store.check_read
        self._groups = {g.name: g for g in store.groups}
        buffers = [GroupBuffer(self.file, groups) for groups in turns(store, persistent)]
        self._buffer_of = {g.name: b for b in buffers for g in store.groups if g.name in b._begins}
        self.nbytes = sum(buffer.nbytes for buffer in buffers)
        for group in store.groups:
            self.read(group.name)

    def read(self, name: str) -> None:
        """Read a group's weights from flash. Raises ReadError."""
        group, buffer = self._groups[name], self._buffer_of[name]
        buffer.read(group)
        self._check(group, buffer.views)

    def tensors(self) -> dict[str, Tensor]:
        """Every resident tensor, by name, as a view of its buffer."""
        views: dict[str, Tensor] = {}
        for name, group in self._groups.items():
            views |= self._buffer_of[name].views(group)
        return views

    @staticmethod
    def bytes_needed(store: Store, persistent: bool) -> int:
        """The DRAM that the resident weights of a store take, at most."""
        grid = max(PAGE, direct_alignment(store.path / RESIDENT))
        sizes = {g.name: round_up(g.end - g.begin + grid, PAGE) for g in store.groups}
        embeddings = sizes.pop(EMBEDDINGS)
        return embeddings + (sum(sizes.values()) if persistent else max(sizes.values()))
