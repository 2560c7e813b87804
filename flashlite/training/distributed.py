"""Processes that train together: one alone, or those that `torchrun` starts on one machine or several.

    torchrun --nproc-per-node 2 -m flashlite relufy CHECKPOINT OUT --text FILES

Processes speak over gloo, which needs no GPU. They exchange numbers and files of tensors, never pickles.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes that train together, seen from one of them.

    rank: this process's number, from 0; the first one speaks and writes
    size: how many there are
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same in each. values: of the same shape in each, float."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, content: bytes) -> list[bytes]:
        """What each process gives, in order of rank, in each process."""
        return [self._send(content, source) for source in range(self.size)]

    def _send(self, content: bytes, source: int) -> bytes:
        """What one process gives, in each."""
        if self.size == 1:
            return content
        mine = source == self.rank
        length = torch.tensor([len(content) if mine else 0])
        dist.broadcast(length, source)
        sent = torch.frombuffer(bytearray(content), dtype=torch.uint8) if mine else torch.empty(int(length)).byte()
        dist.broadcast(sent, source)
        return sent.numpy().tobytes()


ALONE = Group()


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun has put this process in, or a group of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
