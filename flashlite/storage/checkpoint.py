"""Published checkpoints, one tensor at a time: safetensors or pickled `.bin`, in one file or in shards."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from flashlite.errors import CheckpointError
from flashlite.families.opt import OPT, family_of
from flashlite.storage.strict_json import read_object

BUNDLED_MODEL = Path(__file__).parents[1] / "opt_mini"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SMALL_FILES = ["*.json", "*.txt"]
FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
LARGEST = {  # beyond any published OPT, and small enough to be thought through in no time
    "vocab_size": 2**20, "hidden_size": 2**16, "num_hidden_layers": 2**10, "ffn_dim": 2**18,
    "max_position_embeddings": 2**20, "word_embed_proj_dim": 2**16, "num_attention_heads": 2**10,
}  # fmt: skip
OTHER_FIELDS = (
    "do_layer_norm_before", "_remove_final_layer_norm", "enable_bias", "layer_norm_elementwise_affine",
    "tie_word_embeddings", "activation_function", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip


def find_checkpoint(model: str | Path) -> Path:
    """The folder of a checkpoint: `opt-mini`, a local folder, or a hub id, which is downloaded if need be.

    Raises CheckpointError if there is no such folder and the hub can't be reached.
    """
    if str(model) == "opt-mini":
        return BUNDLED_MODEL
    if os.path.isdir(model):
        return Path(model)
    if os.path.exists(model):
        raise CheckpointError(f"{model} is a file: name the folder that holds config.json and the weights")
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        files = set(list_repo_files(str(model)))
        pattern = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "pytorch_model*.bin"
        return Path(snapshot_download(str(model), allow_patterns=[*SMALL_FILES, pattern]))
    except Exception as error:  # the hub's client raises many kinds, and each means that the model can't be had
        with contextlib.suppress(Exception):  # unless it was downloaded before
            cached = Path(snapshot_download(str(model), local_files_only=True))
            if any((cached / name).exists() for name in WEIGHT_FILES):
                return cached
        raise CheckpointError(
            f"{model} is no local folder, and downloading it from the hub failed ({type(error).__name__}); "
            "check the name and the network"
        ) from error


class Checkpoint:
    """A checkpoint folder whose tensors are read one by one.

    config: the content of config.json; opt: the same as OPTConfig; family: its layer names; names: the model's tensors,
    as transformers spells them. Raises CheckpointError if a file or a tensor is missing, of another shape than the
    configuration says, or of a kind that can't be streamed. Nothing in the folder is ever run: of config.json
    only sizes and switches are read, and of a pickle only tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = self._read_json("config.json")
        self.family = family_of(self.config)
        expected = self._expected_shapes()
        self.names = sorted(expected)
        self._file_of: dict[str, tuple[Path, str]] = {}
        for path in self._weight_files():
            for name in _open_weights(path).names():
                if (canonical := self.family.canonical(name)) in expected:
                    self._file_of[canonical] = (path, name)
                    if self.shape(canonical) != expected[canonical]:
                        raise CheckpointError(
                            f"{path}: {name} has shape {self.shape(canonical)}, config.json asks for "
                            f"{expected[canonical]}: is it this model's?"
                        )
        for name in self.names:
            if name not in self._file_of:
                raise CheckpointError(f"{self.folder} has no tensor {name}: is the checkpoint complete?")

    def tensor(self, name: str) -> Tensor:
        """One tensor, copied out of its file, whose pages are then dropped from memory."""
        path, original = self._file_of[name]
        mapped = _open_weights(path)[original]
        if mapped.layout != torch.strided or mapped.is_meta or mapped.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {original} holds no plain floating-point numbers: is the model quantized?")
        try:
            content = mapped.clone(memory_format=torch.contiguous_format)
        except (RuntimeError, MemoryError):
            raise CheckpointError(f"{path}: {original} is too large for this machine's memory") from None
        _drop_pages(mapped)
        return content

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading its data."""
        path, original = self._file_of[name]
        return tuple(_open_weights(path).shape(original))

    def _expected_shapes(self) -> dict[str, tuple[int, ...]]:
        try:
            self.opt = read_config(self.config)
            return expected_shapes(self.opt)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.folder / 'config.json'} describes no OPT: {error}") from None

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return read_object(self.folder / name)
        except FileNotFoundError:
            raise CheckpointError(f"{self.folder} has no {name}: is it a checkpoint folder?") from None
        except OSError as error:
            raise CheckpointError(f"{self.folder / name} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{self.folder / name} is not valid JSON: {error}") from None

    def _weight_files(self) -> list[Path]:
        """The files of weights, all of them in the folder by name. Links are followed, wherever they lead: the
        hub's own cache is made of them."""
        found = next((f for f in WEIGHT_FILES if (self.folder / f).is_file()), None)
        if found is None:
            raise CheckpointError(f"{self.folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")
        if not found.endswith(".index.json"):
            return [self.folder / found]
        weight_map = self._read_json(found).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise CheckpointError(f"{self.folder / found} has no map from tensors to shards")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if Path(shard).name != shard or shard in {"", ".."} or "\\" in shard:
                raise CheckpointError(f"{self.folder / found} names a shard outside its folder: {shard!r}")
            if not (self.folder / shard).is_file():
                raise CheckpointError(f"{self.folder} lacks the shard {shard!r}")
        return [self.folder / shard for shard in shards]


def read_config(content: dict[str, Any]) -> OPTConfig:
    """What an OPT's inference needs of a config.json; all else is left out, such as the names of code to load.

    Raises ValueError, one line, if a field is senseless.
    """
    known = {name: content[name] for name in (*LARGEST, *OTHER_FIELDS) if name in content}
    if known.get("word_embed_proj_dim", 0) is None:  # as wide as the rest
        del known["word_embed_proj_dim"]
    for name in LARGEST.keys() & known:
        if type(known[name]) is not int or not 1 <= known[name] <= LARGEST[name]:
            raise ValueError(f"{name} is {known[name]!r:.40}, not a whole number from 1 to {LARGEST[name]}")
    try:
        return OPTConfig.from_dict(known)
    except StrictDataclassError as error:
        raise ValueError(_one_line(error)) from None


def expected_shapes(config: OPTConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that an OPT needs, by name; the head is the embedding, so it isn't among them.

    Raises ValueError, one line, if there is no such OPT.
    """
    one_layer = copy.deepcopy(config)
    one_layer.num_hidden_layers = 1  # all are alike
    try:
        with torch.device("meta"):
            state = OPTForCausalLM(one_layer).state_dict()
    except (ValueError, TypeError, RuntimeError, KeyError, AssertionError) as error:
        raise ValueError(_one_line(error)) from None
    first, layers = OPT.layer.format(0), range(config.num_hidden_layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if OPT.canonical(name)}
    alike = {name.removeprefix(first): shapes.pop(name) for name in list(shapes) if name.startswith(first)}
    return shapes | {OPT.layer.format(i) + name: shape for i in layers for name, shape in alike.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> list[int]:
        return self._file.get_slice(name).get_shape()

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class _Pickle:
    """A `.bin` file, opened without running any code in it: tensors are mapped, and read only when touched."""

    def __init__(self, path: Path) -> None:
        self._tensors = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
        if not isinstance(self._tensors, dict):
            raise TypeError(f"expected a dict of tensors, found {type(self._tensors).__name__}")

    def names(self) -> list[str]:
        named = [(name, value) for name, value in self._tensors.items() if isinstance(name, str)]
        return [name for name, value in named if isinstance(value, Tensor) and not value.is_nested]

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].shape

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


_opened: tuple[object, _Safetensors | _Pickle] | None = None


def _open_weights(path: Path) -> _Safetensors | _Pickle:
    """An opened weights file. Only the last one is kept, so that a sharded model is never mapped as a whole."""
    global _opened
    found = path.stat()  # a file that was replaced since is another one
    key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
    if _opened is None or _opened[0] != key:
        _opened = None
        try:
            _opened = (key, _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path))
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise CheckpointError(_why_unreadable(path, error)) from error
    return _opened[1]


def _why_unreadable(path: Path, error: Exception) -> str:
    reason = str(error).split("\n")[0][:160]
    return f"{path} cannot be read as weights: it is truncated, damaged or not made of plain tensors ({reason})"


def _drop_pages(tensor: Tensor) -> None:
    """Tell the system that a mapped tensor's pages are no longer needed; a hint, which only saves memory."""
    # A contiguous tensor lies inside its file; an expanded one would reach beyond it, into memory of others.
    if hasattr(mmap, "MADV_DONTNEED") and os.name == "posix" and tensor.is_contiguous():
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - begin
        if length > mmap.PAGESIZE:
            whole = length // mmap.PAGESIZE * mmap.PAGESIZE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)
