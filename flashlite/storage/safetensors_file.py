"""flashlite's own files: safetensors, written tensor after tensor, and checked from end to end before they are used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from flashlite.drive.direct import PAGE
from flashlite.errors import StoreError, one_line
from flashlite.storage.strict_json import LARGEST, parse_object

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # that weights are published in
STORED = {**DTYPES, "int8": torch.int8}  # that a store may have
_SAFETENSORS_DTYPE = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.uint32: "U32",
    torch.int8: "I8",
}  # fmt: skip
_TORCH_DTYPE = {name: dtype for dtype, name in _SAFETENSORS_DTYPE.items()}
Specs = dict[str, tuple[torch.dtype, tuple[int, ...]]]
PART = 1024 * 1024  # bytes that are read at a time to take a digest
REPACK = "; pack the model again"


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in its file: begin in bytes, dtype, shape."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def end(self) -> int:
        """Where it ends in its file, in bytes."""
        return self.begin + self.nbytes


@contextlib.contextmanager
def new_safetensors(path: Path, specs: Specs) -> Iterator[SafetensorsWriter]:
    """A writer of a safetensors file, which is on the drive when the block has ended well. Raises OSError."""
    file = path.open("wb")
    try:
        yield SafetensorsWriter(file, specs)
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.raw.close()  # without another try to write what could not be written


class SafetensorsWriter:
    """A safetensors file written one tensor after the other, so that a model need not fit in DRAM.

    specs: {name: (dtype, shape)} in the order in which `write` will be called. Data begin on a page boundary, so that
    direct reads can start at the first tensor.
    """

    def __init__(self, file: BinaryIO, specs: Specs) -> None:
        header, position = {}, 0
        for name, (dtype, shape) in specs.items():
            end = position + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": _SAFETENSORS_DTYPE[dtype], "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % PAGE)
        head = len(text).to_bytes(8, "little") + text
        self._specs, self._waiting = specs, list(specs)
        self._bytes, self._header = len(head) + position, hashlib.sha256(head).hexdigest()
        self._digests: dict[str, str] = {}
        self._file = file
        self._file.write(head)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor; its name, dtype and shape must be the next ones announced."""
        expected = self._waiting.pop(0)
        if (name, (tensor.dtype, tuple(tensor.shape))) != (expected, self._specs[expected]):
            raise StoreError(f"tensor {name} {tuple(tensor.shape)} was written where {expected} was announced")
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        self._digests[name] = hashlib.sha256(data).hexdigest()
        self._file.write(data)

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of the file: bytes, and the SHA-256 of its header and of each tensor."""
        return {"bytes": self._bytes, "header": self._header, "sha256": self._digests}


def read_extents(path: Path) -> dict[str, Extent]:
    """Where each tensor of a safetensors file lies.

    Raises StoreError if the file is missing, cut or malformed, or if there are bytes between its tensors.
    """
    with one_line(path, StoreError, advice=REPACK):
        try:
            return _extents(path)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise StoreError(f"{path} is damaged: {error}{REPACK}") from None


def _extents(path: Path) -> dict[str, Extent]:
    size = path.stat().st_size
    if not path.is_file():  # a pipe or a device might never end
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST, size - 8):
            raise ValueError("its header does not fit the file")
        header = parse_object(file.read(length))
    if not all(name.isprintable() for name in header):
        raise ValueError("its header holds a name that can't be printed")
    extents = {name: _extent(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    end = 8 + length
    for extent in sorted(extents.values(), key=lambda e: (e.begin, e.nbytes)):
        if extent.begin != end:
            raise ValueError("its tensors don't follow one on the other")
        end += extent.nbytes
    if end > size:
        raise ValueError("a tensor ends behind the end of the file")
    return extents


def _extent(entry: dict, data_begin: int) -> Extent:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError("its header holds a size that is not a natural number")
    extent = Extent(data_begin + begin, _TORCH_DTYPE[entry["dtype"]], shape)
    if extent.nbytes != end - begin:
        raise ValueError("a tensor's size differs from its shape")
    if extent.begin % extent.dtype.itemsize:
        raise ValueError("a tensor begins off the grid of its numbers")
    return extent


def digest_of(path: Path, begin: int = 0, nbytes: int | None = None) -> str:
    """The SHA-256 of a file's bytes from `begin` on, `nbytes` of them or all. Raises StoreError if it can't be read."""
    digest, left = hashlib.sha256(), math.inf if nbytes is None else nbytes
    if path.exists() and not path.is_file():  # a pipe or a device might never end
        raise StoreError(f"{path} is not a file{REPACK}")
    with one_line(path, StoreError, advice=REPACK), path.open("rb") as file:
        file.seek(begin)
        while part := file.read(int(min(left, PART))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def drop_from_cache(path: Path) -> None:
    """Make the system drop a file from its page cache, where it offers that."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
