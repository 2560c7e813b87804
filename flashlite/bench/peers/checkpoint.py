"""A store's weights as a checkpoint, which is what peers read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from flashlite.bench.dense import published_tensors
from flashlite.families.configured import expected_shapes
from flashlite.storage.atomic import new_folder, write_file
from flashlite.storage.safetensors_file import Specs, new_safetensors
from flashlite.storage.side_files import CONFIG, copy_files
from flashlite.storage.store import Store

WEIGHTS = "model.safetensors"


def export(store: Store, out: Path | str) -> Path:
    """Write a store's weights to the folder `out` as config.json and model.safetensors; returns it.

    What is int8 becomes bfloat16, the dtype in which such a model is used today; that rounds once more. Needs one
    layer's DRAM, and as much room on the drive as the checkpoint takes. Raises StoreError if `out` exists or can't be
    written, and then leaves nothing behind.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(store.config)].__name__
    dtype = exported_dtype(store)
    with new_folder(Path(out)) as folder:
        config = store.config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
        write_file(folder / CONFIG, json.dumps(config | {"architectures": [kind]}, indent=1))
        with new_safetensors(folder / WEIGHTS, _specs(store, dtype)) as writer:
            for name, tensor in published_tensors(store):
                writer.write(name, tensor.to(dtype))
        copy_files(store.path, folder, store.manifest["copied"].keys() - {CONFIG})
    return Path(out)


def exported_dtype(store: Store) -> torch.dtype:
    """The dtype of a store's checkpoint."""
    return torch.bfloat16 if store.quantized else store.dtype


def _specs(store: Store, dtype: torch.dtype) -> Specs:
    """Names, dtypes and shapes in the order of `published_tensors`."""
    specs, published = Specs(), expected_shapes(store.config, store.family)
    for i, group in enumerate(store.groups, start=-1):
        specs |= {name: (dtype, published[name]) for name in group.tensors if name in published}
        if i >= 0:
            neurons, width = store.shape.neurons, store.shape.d_model
            shapes = ((neurons, width), (width, neurons), (neurons, width))
            named = zip(store.family.matrices, shapes, strict=False)  # where none are gated, a shape is left over
            specs |= {name.format(i): (dtype, shape) for name, shape in named}
    return specs
