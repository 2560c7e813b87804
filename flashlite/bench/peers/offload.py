"""Transformers' own model, the usual ways: all in DRAM, or on disk by accelerate, or mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from flashlite.bench.dense import dense_model
from flashlite.bench.peers.checkpoint import WEIGHTS
from flashlite.families.configured import empty_model
from flashlite.storage.store import Store

CPU = torch.device("cpu")


def in_dram(store: Store, checkpoint: Path, device: torch.device = CPU) -> PreTrainedModel:
    """The checkpoint as from_pretrained loads it."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(store.config)].from_pretrained(checkpoint, dtype="auto").to(device)


def ffn_on_disk(store: Store, checkpoint: Path, device: torch.device = CPU) -> PreTrainedModel:
    """accelerate's disk offload of the FFNs; embeddings and attention stay in DRAM, or on the device, as in stage 1."""
    family = store.family
    matrices = tuple(f".{name}" for name in (family.first, family.down, family.second) if name)
    return _offloaded(store, checkpoint, device, lambda name: name.endswith(matrices))


def layers_on_disk(store: Store, checkpoint: Path, device: torch.device = CPU) -> PreTrainedModel:
    """accelerate's disk offload of whole layers; only the embeddings stay in DRAM, or on the device."""
    return _offloaded(store, checkpoint, device, lambda name: name.startswith(store.family.layers + "."))


def mapped(store: Store, checkpoint: Path, device: torch.device = CPU) -> PreTrainedModel:
    """The checkpoint mapped into memory: the system reads pages when they are touched, and drops them when it must.
    There is no such way to a device."""
    return dense_model(store, load_file(checkpoint / WEIGHTS))


def _offloaded(store: Store, checkpoint: Path, device: torch.device, on_disk: Callable[[str], bool]) -> PreTrainedModel:
    """A model some of whose modules are read from the checkpoint's file when they are called, and dropped again."""
    modules = dict(empty_model(store.config, store.family).named_modules())
    names = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
    here = "cpu" if device == CPU else device.index or 0
    places = {name: "disk" if on_disk(name) else here for name in names}
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(store.config)].from_pretrained(
        checkpoint, dtype="auto", device_map=places, offload_folder=checkpoint / "offload"
    )
