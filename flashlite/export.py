"""A packed model as a checkpoint again, in the form that transformers and its like load."""

from __future__ import annotations

import json
from pathlib import Path

from flashlite.atomic import new_folder, write_file
from flashlite.dense import DOWN, UP, published_tensors
from flashlite.files import Specs, new_safetensors
from flashlite.packing import copy_files
from flashlite.store import TOKENIZER, Store

WEIGHTS = "model.safetensors"


def export(store: Store, out: Path | str) -> Path:
    """Write a store's weights to the folder `out` as config.json and model.safetensors; returns it.

    Needs one layer's DRAM, and as much room on the drive as the model has weights. Raises StoreError if `out` exists or
    can't be written, and then leaves nothing behind.
    """
    with new_folder(Path(out)) as folder:
        config = store.config.to_dict() | {"dtype": str(store.dtype).removeprefix("torch.")}
        write_file(folder / "config.json", json.dumps(config | {"architectures": ["OPTForCausalLM"]}, indent=1))
        with new_safetensors(folder / WEIGHTS, _specs(store)) as writer:
            for name, tensor in published_tensors(store):
                writer.write(name, tensor)
        copy_files(store.path, folder, TOKENIZER)
    return Path(out)


def _specs(store: Store) -> Specs:
    """Names, dtypes and shapes in the order of `published_tensors`."""
    specs: Specs = {}
    for i, group in enumerate(store.groups, start=-1):
        specs |= {name: (extent.dtype, extent.shape) for name, extent in group.tensors.items()}
        if i >= 0:
            neurons, width = store.shape.neurons, store.shape.d_model
            specs |= {UP.format(i): (store.dtype, (neurons, width)), DOWN.format(i): (store.dtype, (width, neurons))}
    return specs
