"""Files of weights as they are published, one tensor at a time: safetensors or pickled `.bin`, whole or in shards."""

from __future__ import annotations

import ctypes
import mmap
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from flashlite.arguments import WEIGHT_FILES
from flashlite.errors import CheckpointError, one_line
from flashlite.storage.strict_json import read_object

INDEX = ".index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file. Raises CheckpointError."""
    with one_line(path, CheckpointError):
        try:
            return read_object(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path.parent} has no {path.name}: is it a checkpoint folder?") from None
        except ValueError as error:
            _refuse_other_content(path)
            raise CheckpointError(f"{path} is not valid JSON: {error}") from None


def choose_weights(folder: Path, config: dict[str, Any], names: Collection[str] | None = None) -> str:
    """The name of the file of weights, or of the index, that transformers would load.

    folder: the checkpoint.
    config: its config.json, which may name the file.
    names: of the files that there are, if they aren't in the folder yet.

    Raises CheckpointError if there is none.
    """
    if (named := config.get("transformers_weights")) is not None:
        if not isinstance(named, str) or not is_plain_name(named):
            raise CheckpointError(f"{folder / 'config.json'} names weights outside its folder: {named!r:.60}")
        return named
    found = (name for name in WEIGHT_FILES if ((folder / name).is_file() if names is None else name in names))
    if (first := next(found, None)) is None:
        raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")
    return first


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files that a file of weights or an index stands for, all of them in the folder by name.

    Links are followed wherever they lead, because the hub's own cache is made of them. Raises CheckpointError if the
    index is malformed or a shard is missing.
    """
    shards = shards_in(folder / name) if name.endswith(INDEX) else [name]
    for shard in shards:
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder} lacks the shard {shard!r}")
    return [folder / shard for shard in shards]


def shards_in(index: Path) -> list[str]:
    """The names of the shards that an index lists. Raises CheckpointError if it is malformed or names another folder's
    file."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} has no map from tensors to shards")
    for shard in weight_map.values():
        if not is_plain_name(shard):
            raise CheckpointError(f"{index} names a shard outside its folder: {shard!r}")
    return sorted(set(weight_map.values()))


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file in the folder at hand, on every system."""
    return Path(name).name == name and name not in {"", ".."} and "\\" not in name and "\0" not in name


class SafetensorsFile:
    """A file of safetensors, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")

    def names(self) -> list[str]:
        """The names of all tensors, in the file's order."""
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._file.get_slice(name).get_shape())

    def float_dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor of plain floating-point numbers, or None if it holds anything else."""
        return FLOATS.get(self._file.get_slice(name).get_dtype())

    def copy(self, name: str) -> Tensor:
        """A tensor, copied out of the file, whose pages are then dropped from memory."""
        mapped = self._file.get_tensor(name)
        content = mapped.clone(memory_format=torch.contiguous_format)
        _drop_pages(mapped)
        return content


class PickledFile:
    """A `.bin` file, opened without running any code in it.

    A file of today's kind is mapped into memory. One of the older kind, which is not a zip archive, is read as a whole.
    """

    def __init__(self, path: Path) -> None:
        self._mapped = zipfile.is_zipfile(path)
        self._tensors = torch.load(path, mmap=self._mapped, weights_only=True, map_location="cpu")
        if not isinstance(self._tensors, dict):
            raise TypeError(f"expected a dict of tensors, found {type(self._tensors).__name__}")

    def names(self) -> list[str]:
        """The names of all tensors, in the file's order."""
        named = [(name, value) for name, value in self._tensors.items() if isinstance(name, str)]
        return [name for name, value in named if isinstance(value, Tensor) and not value.is_nested]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._tensors[name].shape)

    def float_dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor of plain floating-point numbers, or None if it holds anything else."""
        tensor = self._tensors[name]
        plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in FLOATS.values()
        return tensor.dtype if plain else None

    def copy(self, name: str) -> Tensor:
        """A tensor, copied out of the file, whose pages are then dropped from memory if it is mapped."""
        content = self._tensors[name].clone(memory_format=torch.contiguous_format)
        if self._mapped:  # else no file would give the pages back
            _drop_pages(self._tensors[name])
        return content


_opened: tuple[object, SafetensorsFile | PickledFile] | None = None


def open_weights(path: Path) -> SafetensorsFile | PickledFile:
    """An opened file of weights. Only the last one is kept, so that a sharded model is never mapped as a whole.

    Raises CheckpointError if it can't be read as weights.
    """
    global _opened
    with one_line(path, CheckpointError):
        found = path.stat()  # a file that was replaced since is another one
    key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
    if _opened is None or _opened[0] != key:
        _opened = None
        try:
            _opened = (key, SafetensorsFile(path) if path.suffix == ".safetensors" else PickledFile(path))
        except Exception as error:  # a damaged pickle can raise nearly anything
            _refuse_other_content(path)
            reason = str(error).split("\n")[0][:160]
            why = f"it is truncated, damaged or not made of plain tensors ({reason})"
            raise CheckpointError(f"{path} cannot be read as weights: {why}") from error
    return _opened[1]


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError if a file is what a clone without git-lfs leaves in its place."""
    if _begin(path).startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in {path.parent}")


def _refuse_other_content(path: Path) -> None:
    """Raise CheckpointError if a file is what clones and downloads often leave in its place."""
    refuse_pointer(path)
    if _begin(path).lstrip().startswith(b"<"):
        raise CheckpointError(f"{path} is a web page, not the file itself: download it again")


def _begin(path: Path) -> bytes:
    if not path.is_file():  # a pipe might never end
        return b""
    with one_line(path, CheckpointError), path.open("rb") as file:
        return file.read(64)


def _drop_pages(tensor: Tensor) -> None:
    """Tell the system that a mapped tensor's pages are no longer needed; a hint, which only saves memory."""
    # A contiguous tensor lies inside its file; an expanded one would reach beyond it, into memory of others.
    if hasattr(mmap, "MADV_DONTNEED") and os.name == "posix" and tensor.is_contiguous():
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - begin
        if length > mmap.PAGESIZE:
            whole = length // mmap.PAGESIZE * mmap.PAGESIZE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)
