"""What people use today when a model doesn't fit: set up as its own documentation says, on the same weights.

A peer is a function of a store and of the same weights as a checkpoint; it returns a transformers model, all of whose
weights take part in every token. `flashlite bench --peers` measures each under the stages' memory cap.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from flashlite.bench.dense import dense_model, published_tensors
from flashlite.errors import FlashliteError
from flashlite.families.configured import empty_model, expected_shapes
from flashlite.storage.atomic import new_folder, write_file
from flashlite.storage.safetensors_file import Specs, new_safetensors
from flashlite.storage.side_files import CONFIG, copy_files
from flashlite.storage.store import Store

WEIGHTS = "model.safetensors"
Peer = Callable[..., PreTrainedModel]
CPU = torch.device("cpu")


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


PEERS: dict[str, Peer] = {
    "accelerate, FFN on disk": ffn_on_disk,
    "accelerate, layers on disk": layers_on_disk,
    "memory-mapped safetensors": mapped,
}


def peers_on(device: str) -> list[str]:
    """The names of the peers of somebody whose model runs on this device."""
    return [name for name, peer in PEERS.items() if device == "cpu" or peer is not mapped]


def check_installed() -> None:
    """Raise FlashliteError where a peer's own package is missing."""
    if importlib.util.find_spec("accelerate") is None:
        raise FlashliteError("--peers measures accelerate, which is not installed: pip install accelerate")


def _offloaded(store: Store, checkpoint: Path, device: torch.device, on_disk: Callable[[str], bool]) -> PreTrainedModel:
    """A model some of whose modules are read from the checkpoint's file when they are called, and dropped again."""
    modules = dict(empty_model(store.config, store.family).named_modules())
    names = [name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None]
    here = "cpu" if device == CPU else device.index or 0
    places = {name: "disk" if on_disk(name) else here for name in names}
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(store.config)].from_pretrained(
        checkpoint, dtype="auto", device_map=places, offload_folder=checkpoint / "offload"
    )


def export(store: Store, out: Path | str) -> Path:
    """Write a store's weights to the folder `out` as config.json and model.safetensors; returns it.

    Needs one layer's DRAM, and as much room on the drive as the model has weights. Raises StoreError if `out` exists or
    can't be written, and then leaves nothing behind.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(store.config)].__name__
    with new_folder(Path(out)) as folder:
        config = store.config.to_dict() | {"dtype": str(store.compute_dtype).removeprefix("torch.")}
        write_file(folder / CONFIG, json.dumps(config | {"architectures": [kind]}, indent=1))
        with new_safetensors(folder / WEIGHTS, _specs(store)) as writer:
            for name, tensor in published_tensors(store):
                writer.write(name, tensor)
        copy_files(store.path, folder, store.manifest["copied"].keys() - {CONFIG})
    return Path(out)


def _specs(store: Store) -> Specs:
    """Names, dtypes and shapes in the order of `published_tensors`."""
    specs, published = Specs(), expected_shapes(store.config, store.family)
    for i, group in enumerate(store.groups, start=-1):
        names = (name for name in group.tensors if name in published)
        specs |= {name: (store.compute_dtype, published[name]) for name in names}
        if i >= 0:
            neurons, width = store.shape.neurons, store.shape.d_model
            shapes = ((neurons, width), (width, neurons), (neurons, width))
            named = zip(store.family.matrices, shapes, strict=False)  # where none are gated, a shape is left over
            specs |= {name.format(i): (store.compute_dtype, shape) for name, shape in named}
    return specs
