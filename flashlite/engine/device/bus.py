"""The bus between the host's memory and a device's: copies that go on while the device computes.

All copies to a device are sent on a stream of their own, one after the other. The host waits for them before the memory
that they come from is read into again, and before the device multiplies what has arrived.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashlite.drive.direct import aligned_buffer

log = logging.getLogger("flashlite")


class Bus:
    """The way to a device. This one leads to the CPU, taken for a device: each copy is over when its call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def buffer(self, rows: int, row_bytes: int) -> np.ndarray:
        """Memory of the host [rows, row_bytes] uint8 for direct reads, from which copies go at full speed."""
        return aligned_buffer(rows, row_bytes)

    def send(self, target: Tensor, source: np.ndarray) -> None:
        """Copy bytes to the device. target: uint8 there, of the shape of source."""
        target.copy_(torch.from_numpy(source))

    def put(self, target: Tensor, rows: np.ndarray, source: Tensor) -> None:
        """Copy source [n, row_bytes], on the device, to the rows of target, once all that was sent has arrived."""
        _words(target).index_copy_(0, torch.from_numpy(rows), _words(source))

    def mark(self) -> Any:
        """A mark behind what the device was given to compute so far."""

    def follow(self, mark: Any = None) -> None:
        """Let later copies begin when the device has computed all up to a mark, or all that it was given so far."""

    def wait(self) -> None:
        """Wait until all copies have ended."""

    def finish(self) -> None:
        """Wait until the device has computed all that it was given."""


class CudaBus(Bus):
    """The way to an NVIDIA GPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)

    def buffer(self, rows: int, row_bytes: int) -> np.ndarray:
        """See Bus. The memory is pinned where the driver allows it; where it doesn't, copies are slower."""
        buffer = aligned_buffer(rows, row_bytes)
        if buffer.nbytes and not _pin(buffer, self.device):
            log.warning(
                "flashlite: %d bytes of the host's memory could not be pinned: copies are slower", buffer.nbytes
            )
        return buffer

    def send(self, target: Tensor, source: np.ndarray) -> None:
        """See Bus."""
        with torch.cuda.stream(self._stream):
            target.copy_(torch.from_numpy(source), non_blocking=True)

    def put(self, target: Tensor, rows: np.ndarray, source: Tensor) -> None:
        """See Bus."""
        with torch.cuda.stream(self._stream):
            _words(target).index_copy_(0, torch.from_numpy(rows).to(self.device), _words(source))

    def mark(self) -> torch.cuda.Event:
        """See Bus."""
        return torch.cuda.current_stream(self.device).record_event()

    def follow(self, mark: torch.cuda.Event | None = None) -> None:
        """See Bus."""
        self._stream.wait_event(self.mark() if mark is None else mark)

    def wait(self) -> None:
        """See Bus."""
        self._stream.synchronize()

    def finish(self) -> None:
        """See Bus."""
        torch.cuda.current_stream(self.device).synchronize()


def _words(rows: Tensor) -> Tensor:
    """Rows of bytes as the longest items that fill them, because torch copies item by item."""
    return rows.view(torch.int64) if rows.shape[1] % 8 == 0 else rows


def _pin(buffer: np.ndarray, device: torch.device) -> bool:
    """Register memory with CUDA until no array lies in it any more. Returns whether the driver took it.

    torch's own pinned memory is not used, because direct reads want memory on their grid, on huge pages if possible.
    """
    runtime, where = torch.cuda.cudart(), buffer.ctypes.data
    with torch.cuda.device(device):  # otherwise the first GPU would be woken, and the memory would be pinned for it
        taken = int(runtime.cudaHostRegister(where, buffer.nbytes, 0)) == 0
    if not taken:
        with contextlib.suppress(RuntimeError):  # CUDA keeps the error, and torch would raise it at the next kernel
            torch.zeros(1, device=device)
        return False
    owner = buffer if buffer.base is None else buffer.base  # which every view of the memory keeps alive
    weakref.finalize(owner, _unpin, runtime, where, device).atexit = False
    return True


def _unpin(runtime: Any, where: int, device: torch.device) -> None:
    with torch.cuda.device(device):
        runtime.cudaHostUnregister(where)


def bus_to(device: torch.device) -> Bus:
    """The way to a device."""
    return CudaBus(device) if device.type == "cuda" else Bus(device)
