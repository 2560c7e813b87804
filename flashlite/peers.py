"""What people use today when a model doesn't fit: set up as its own documentation says, on the same weights.

A peer is a function of a store and of the same weights as a checkpoint; it returns a transformers model, all of whose
weights take part in every token. `flashlite bench --peers` measures each under the stages' memory cap.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import OPTForCausalLM

from flashlite.dense import dense_model
from flashlite.errors import FlashliteError
from flashlite.export import WEIGHTS
from flashlite.store import Store

Peer = Callable[[Store, Path], OPTForCausalLM]


def ffn_on_disk(store: Store, checkpoint: Path) -> OPTForCausalLM:
    """accelerate's disk offload of the FFNs; embeddings and attention stay in DRAM, as in stage 1."""
    return _offloaded(store, checkpoint, lambda name: name.endswith((".fc1", ".fc2")))


def layers_on_disk(store: Store, checkpoint: Path) -> OPTForCausalLM:
    """accelerate's disk offload of whole layers; only the embeddings stay in DRAM."""
    return _offloaded(store, checkpoint, lambda name: ".layers." in name)


def mapped(store: Store, checkpoint: Path) -> OPTForCausalLM:
    """The checkpoint mapped into memory: the system reads pages when they are touched, and drops them when it must."""
    return dense_model(store, load_file(checkpoint / WEIGHTS))


PEERS: dict[str, Peer] = {
    "accelerate, FFN on disk": ffn_on_disk,
    "accelerate, layers on disk": layers_on_disk,
    "memory-mapped safetensors": mapped,
}


def check_installed() -> None:
    """Raise FlashliteError where a peer's own package is missing."""
    if importlib.util.find_spec("accelerate") is None:
        raise FlashliteError("--peers measures accelerate, which is not installed: pip install accelerate")


def _offloaded(store: Store, checkpoint: Path, on_disk: Callable[[str], bool]) -> OPTForCausalLM:
    """A model some of whose modules are read from the checkpoint's file when they are called, and dropped again."""
    with torch.device("meta"):
        modules = dict(OPTForCausalLM(store.config).named_modules())
    names = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
    places = {name: "disk" if on_disk(name) else "cpu" for name in names}
    return OPTForCausalLM.from_pretrained(
        checkpoint, dtype="auto", device_map=places, offload_folder=checkpoint / "offload"
    )
