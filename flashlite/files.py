"""Files of flashlite's own: safetensors written in a stream, and folders that appear only when complete."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashlite.direct import PAGE
from flashlite.errors import StoreError
from flashlite.objects import LARGEST, parse_object

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAFETENSORS_DTYPE = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
_TORCH_DTYPE = {name: dtype for dtype, name in _SAFETENSORS_DTYPE.items()}
Specs = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in its file: begin in bytes, dtype, shape."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class SafetensorsWriter:
    """A safetensors file written one tensor after the other, so that a model need not fit in DRAM.

    specs: {name: (dtype, shape)} in the order in which `write` will be called. Data begin on a page boundary, so that
    direct reads can start at the first tensor. `digests` holds each written tensor's SHA-256.
    """

    def __init__(self, path: Path, specs: Specs) -> None:
        header, position = {}, 0
        for name, (dtype, shape) in specs.items():
            end = position + dtype.itemsize * int(torch.Size(shape).numel())
            header[name] = {"dtype": _SAFETENSORS_DTYPE[dtype], "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % PAGE)
        self._specs, self._waiting = specs, list(specs)
        self.digests: dict[str, str] = {}
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor; its name, dtype and shape must be the next ones announced."""
        expected = self._waiting.pop(0)
        if (name, (tensor.dtype, tuple(tensor.shape))) != (expected, self._specs[expected]):
            raise StoreError(f"tensor {name} {tuple(tensor.shape)} was written where {expected} was announced")
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        self.digests[name] = hashlib.sha256(data).hexdigest()
        self._file.write(data)

    def close(self) -> None:
        """End the file on the drive."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_extents(path: Path) -> dict[str, Extent]:
    """Where each tensor of a safetensors file lies. Raises StoreError if the file is missing, cut or malformed."""
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe or a device might never end
            raise ValueError("it is no file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST, size - 8):
                raise ValueError("its header does not fit the file")
            header = parse_object(file.read(length))
        extents = {name: _extent(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
        if any(e.begin + e.nbytes > size for e in extents.values()):
            raise ValueError("a tensor ends behind the end of the file")
        return extents
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise StoreError(f"{path} is damaged: {error}; pack the model again") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; pack the model again") from None


def _extent(entry: dict, data_begin: int) -> Extent:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape)):
        raise ValueError("its header holds a size that is no natural number")
    extent = Extent(data_begin + begin, _TORCH_DTYPE[entry["dtype"]], shape)
    if extent.nbytes != end - begin:
        raise ValueError("a tensor's size differs from its shape")
    return extent


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes its name only when the block has ended well; else nothing is left of it.

    Raises StoreError if `path` exists and `replace` is False, or if it can't be written.
    """
    if os.path.lexists(path) and not replace:
        raise StoreError(f"{path} exists already: choose another name, or replace it with --force")
    unfinished = path.parent / f".{path.name}.writing-{os.getpid()}"
    try:
        unfinished.mkdir(parents=True)
        _remove_abandoned(path)
        yield unfinished
        _take_place(unfinished, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_place(unfinished: Path, path: Path) -> None:
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        path.rename(old)
    unfinished.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Delete what earlier writers of this folder left when they were killed."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.writing-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # where asking a process is not harmless
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_file(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    unfinished = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def drop_from_cache(path: Path) -> None:
    """Have the system forget what it keeps of a file in memory, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
