"""Published checkpoints: a configuration and named tensors, read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashlite.arguments import WEIGHT_FILES
from flashlite.errors import CheckpointError, one_line
from flashlite.families.activation import RELU
from flashlite.families.configured import expected_shapes, read_config
from flashlite.families.known import activation_of, family_of
from flashlite.storage.safetensors_file import DTYPES
from flashlite.storage.side_files import CONFIG, side_files
from flashlite.storage.weights import (
    choose_weights,
    open_weights,
    read_json,
    refuse_pointer,
    weight_files,
)  # fmt: skip

ADAPTER = "adapter_config.json"
QUANTIZED = ("quantize_config.json", "quant_config.json")  # beside weights that GPTQ or AWQ tools of old have written


class Checkpoint:
    """A checkpoint folder whose tensors are read one by one.

    config: the content of config.json, where tie_word_embeddings is false if the checkpoint has a head of its own.
    settings: the same as transformers' own configuration.
    family: what its weights are called.
    activation: what its neurons compute.
    names: the model's tensors, as transformers spells them.
    published: the torch.dtype in which transformers would load it; None if it would not.
    own_dtype: the same as "fp32", "bf16" or "fp16"; float64, which no store has, becomes fp32.

    Raises CheckpointError if a file or a tensor is missing, has another shape than the configuration says, or is of a
    kind that can't be streamed. Nothing in the folder is ever run.

    any_activation: whether activations that can't be streamed are taken too; `activation` is RELU then.
    """

    def __init__(self, folder: Path, any_activation: bool = False) -> None:
        self.folder = folder
        _refuse_adapter(folder)
        self.config = read_json(folder / CONFIG)
        self.family = family_of(self.config)
        with one_line(folder, CheckpointError):
            for name in side_files(folder):
                refuse_pointer(folder / name)
        _refuse_quantized(folder, self.config)
        try:
            self.settings = read_config(self.config, self.family)
            self.activation = RELU if any_activation else activation_of(self.settings, self.family)
            shapes = expected_shapes(self.settings, self.family)
        except ValueError as error:
            kind = self.config["model_type"]
            raise CheckpointError(f"{folder / CONFIG} does not describe a model of type {kind}: {error}") from None
        files = weight_files(folder, choose_weights(folder, self.config))
        self._places = self._find_tensors(files, shapes)
        self._settle_head()
        self.names = sorted(expected_shapes(self.settings, self.family))
        for name in self.names:
            if name not in self._places:
                raise CheckpointError(_lacks(folder, name))
        self.published = _published_dtype(self.config, files[0])
        kinds = {torch.float64: "fp32"} | {kind: name for name, kind in DTYPES.items()}
        self.own_dtype = kinds.get(self.published) if self.published else None

    def tensor(self, name: str) -> Tensor:
        """One tensor, copied out of its file."""
        path, original = self._places[name]
        try:
            return open_weights(path).copy(original)
        except (RuntimeError, MemoryError):
            raise CheckpointError(f"{path}: {original} is too large for this machine's memory") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading its data."""
        path, original = self._places[name]
        return open_weights(path).shape(original)

    def _find_tensors(self, files: list[Path], shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[Path, str]]:
        """The file and the name there of each tensor that the model may have."""
        shapes = {self.family.head: shapes[self.family.embedding_weight]} | shapes
        places: dict[str, tuple[Path, str]] = {}
        for path in files:
            opened = open_weights(path)
            for original in opened.names():
                if (name := self.family.canonical(original)) not in shapes:
                    continue
                if (shape := opened.shape(original)) != (asked := shapes[name]):
                    raise CheckpointError(
                        f"{path}: {original} has shape {shape}, config.json asks for {asked}: is it this model's?"
                    )
                if opened.float_dtype(original) is None:
                    raise CheckpointError(
                        f"{path}: {original} does not hold plain floating-point numbers: is the model quantized?"
                    )
                if original != places.setdefault(name, (path, original))[1]:
                    raise CheckpointError(f"{path} holds a tensor twice, as {places[name][1]} and as {original}")
                places[name] = (path, original)
        return places

    def _settle_head(self) -> None:
        """Do as transformers does with a head that should be the embedding.

        One of the two may be missing; two that are equal are one; two that differ are both used.
        """
        head, embedding = self.family.head, self.family.embedding_weight
        if not self.settings.tie_word_embeddings or head not in self._places:
            return
        if embedding not in self._places:
            self._places[embedding] = self._places[head]
        elif not _equal(self.tensor(embedding), self.tensor(head)):
            self.config = self.config | {"tie_word_embeddings": False}
            self.settings.tie_word_embeddings = False


def _refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError if a folder holds an adapter alone."""
    if (folder / ADAPTER).exists() and not any((folder / name).exists() for name in WEIGHT_FILES):
        raise CheckpointError(f"{folder} holds an adapter, not a model: merge it into its model and name the result")


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError if config.json says that the weights are quantized."""
    if not (settings := config.get("quantization_config")):
        return
    known = settings if isinstance(settings, dict) else {}
    by_default = "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & known.keys() else "unknown"
    method = str(known.get("quant_method") or by_default)
    raise CheckpointError(
        f"{folder} is quantized (quantization_config in config.json, method {method!r:.40}): flashlite streams fp32, "
        "bf16 or fp16 weights: name the checkpoint that it was made from"
    )


def _lacks(folder: Path, name: str) -> str:
    quantized = next((f" (it has a {file})" for file in QUANTIZED if (folder / file).exists()), "")
    return f"{folder} has no tensor {name}: is the checkpoint {'quantized' if quantized else 'complete'}{quantized}?"


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.double(), other.double())


def _published_dtype(config: dict[str, Any], first: Path) -> torch.dtype | None:
    """What config.json says, or else the dtype of the first tensor of floating-point numbers in the first file."""
    if (said := config.get("dtype") or config.get("torch_dtype")) is None:
        opened = open_weights(first)
        return next(filter(None, map(opened.float_dtype, opened.names())), None)
    dtype = getattr(torch, said, None) if isinstance(said, str) else None
    return dtype if isinstance(dtype, torch.dtype) else None
