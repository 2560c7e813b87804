"""The model without flashlite, all of its weights in DRAM, with which every stage is compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import OPTForCausalLM

from flashlite.drive.direct import aligned_buffer
from flashlite.engine.resident import ResidentWeights
from flashlite.families.opt import OPT
from flashlite.storage.bundle import unpack_bundles
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import Store

UP, DOWN = OPT.up, OPT.down


def published_tensors(store: Store) -> Iterator[tuple[str, Tensor]]:
    """A packed model's tensors as transformers names and shapes them, layer after layer.

    Only one layer is in memory at a time: a tensor is a view that holds until the next layer's is asked for.
    """
    resident = ResidentWeights(store, persistent=False)
    views = resident.tensors()
    file, neurons = NeuronFile(store, store.layouts[0]), np.arange(store.shape.neurons)
    buffer = aligned_buffer(len(neurons), store.shape.record_bytes)
    up, down = unpack_bundles(torch.from_numpy(buffer).view(store.dtype), store.shape.d_model)
    embeddings, *layers = store.groups
    resident.read(embeddings.name)
    yield from ((name, views[name]) for name in embeddings.tensors)
    for i, group in enumerate(layers):
        resident.read(group.name)
        file.read(i, neurons, buffer, neurons)
        yield from ((name, views[name]) for name in group.tensors)
        yield from ((UP.format(i), up), (DOWN.format(i), down.T))


def load_dense(store: Store) -> OPTForCausalLM:
    """Transformers' own OPT with a packed model's weights, all in DRAM."""
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in published_tensors(store)}
    return dense_model(store, weights)


def dense_model(store: Store, weights: dict[str, Tensor]) -> OPTForCausalLM:
    """Transformers' own OPT on these weights, none of which is copied. weights: all of a store's, by published name."""
    with torch.device("meta"):
        model = OPTForCausalLM(store.config)
    model.load_state_dict(weights, strict=False, assign=True)  # a store has all weights but a head that is tied
    model.tie_weights()
    return model.requires_grad_(False).eval()
