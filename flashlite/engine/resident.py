"""The resident weights, all but the FFNs': kept in DRAM, or at stage 0 read again for every token.

To keep them is the paper's selective persistence. Beyond the paper, a token embedding that isn't the head as well stays
on flash: a token needs one row of it. (Paper: section 3.1)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flashlite.drive.direct import PAGE, aligned_buffer, direct_alignment
from flashlite.drive.flash import FlashFile
from flashlite.engine.timing import IO, REST, Clock
from flashlite.families.family import EMBEDDINGS
from flashlite.storage.bundle import round_up
from flashlite.storage.neurons import wait_all
from flashlite.storage.safetensors_file import Extent
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
    """Which groups share memory: none where all weights are persistent, else all layers.

    An embedding of which a token needs one row is in none of them where weights are persistent; see FlashEmbedding.
    """
    layers = [group for group in store.groups if group.name != EMBEDDINGS]
    embeddings = [group for group in store.groups if group.name == EMBEDDINGS]
    if not persistent:
        return [embeddings, layers]
    kept = [part for group in embeddings for part in _without(group, store.looked_up)]
    return [[group] for group in (*kept, *layers)]


def _without(group: Group, name: str | None) -> list[Group]:
    """A group without one of its tensors: what lies before it on flash, and what lies behind it."""
    if name is None:
        return [group]
    at = group.tensors[name].begin
    before = {other: extent for other, extent in group.tensors.items() if extent.begin < at}
    behind = {other: extent for other, extent in group.tensors.items() if extent.begin > at}
    return [Group.of(f"{group.name} {i}", part) for i, part in enumerate((before, behind)) if part]


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
        shared = turns(store, persistent)
        self._groups = {group.name: group for groups in shared for group in groups}
        buffers = [GroupBuffer(self.file, groups) for groups in shared]
        self._buffer_of = {name: buffer for buffer in buffers for name in buffer._begins}
        self.nbytes = sum(buffer.nbytes for buffer in buffers)
        for name in self._groups:
            self.read(name)

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
        sizes = [[round_up(g.end - g.begin + grid, PAGE) for g in groups] for groups in turns(store, persistent)]
        return sum(max(of_groups) for of_groups in sizes)


class FlashEmbedding(nn.Module):
    """A token embedding whose rows are read when a text needs them.

    file: the resident weights on flash
    extent: where the embedding lies there
    clock: the engine's
    device: where its rows are needed

    num_embeddings: how many rows it has
    """

    def __init__(self, file: FlashFile, extent: Extent, clock: Clock, device: torch.device) -> None:
        super().__init__()
        self._file, self._extent, self._clock, self._device = file, extent, clock, device
        self.num_embeddings = extent.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of tokens. ids: [sequences, tokens] int64. Returns [sequences, tokens, width]. Raises ReadError."""
        tokens, place = ids.cpu().unique(return_inverse=True)
        row_bytes = self._extent.nbytes // self.num_embeddings
        rows = aligned_buffer(len(tokens), row_bytes)
        self._clock.switch(IO)
        begins = self._extent.begin + tokens.numpy() * row_bytes
        self._file.read(begins, row_bytes, rows, np.arange(len(tokens)))
        self._clock.switch(REST)
        return torch.from_numpy(rows).view(self._extent.dtype)[place].to(self._device)


def leave_embedding(model: PreTrainedModel, store: Store, file: FlashFile, clock: Clock, device: torch.device) -> None:
    """Put a FlashEmbedding into a model whose token embedding may stay on flash."""
    family, name = store.family, store.looked_up
    if name is None:
        return
    extent = next(group.tensors[name] for group in store.groups if name in group.tensors)
    model.set_submodule(f"{family.body}.{family.embedding}", FlashEmbedding(file, extent, clock, device))
