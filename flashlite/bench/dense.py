"""The model without flashlite, all of its weights in DRAM, with which every stage is compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from flashlite.drive.direct import aligned_buffer
from flashlite.engine.device.memory import HOST
from flashlite.engine.int8.modules import install_int8
from flashlite.engine.resident import ResidentWeights
from flashlite.families.activation import Activation
from flashlite.families.configured import empty_model, expected_shapes, move_buffers
from flashlite.storage.int8.resident import scale_name
from flashlite.storage.int8.rounding import dequantize
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import Store


class OwnActivation(nn.Module):
    """An activation that transformers doesn't have, for the FFN of one of its models."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, first: Tensor) -> Tensor:
        """first: [sequences, tokens, ffn]. Returns the neurons' values, the same shape."""
        return self.activation(first.clone())


def stored_tensors(store: Store) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A packed model's weights, the embeddings' group first and then layer after layer, by transformers' names.

    For each group its resident tensors, in int8 with the scales of all of its matrices, and its FFN's matrices, each
    [ffn, d_model]. Only one group is in memory at a time: a tensor is a view that holds until the next is asked for.
    """
    resident = ResidentWeights(store, persistent=False)
    views = resident.tensors()
    file, neurons = NeuronFile(store, store.layouts[0]), np.arange(store.shape.neurons)
    buffer = aligned_buffer(len(neurons), store.shape.record_bytes)
    columns = torch.from_numpy(buffer).view(store.dtype).split(store.shape.d_model, 1)
    for i, group in enumerate(store.groups, start=-1):
        resident.read(group.name)
        matrices = {}
        if i >= 0:
            file.read(i, neurons, buffer, neurons)
            matrices = {name.format(i): columns[at] for at, name in enumerate(store.family.matrices)}
        yield {name: views[name] for name in group.tensors}, matrices


def published_tensors(store: Store) -> Iterator[tuple[str, Tensor]]:
    """A packed model's tensors as transformers names and shapes them, each a view as in `stored_tensors`.

    Matrices in int8 are given as the float32 weights that they stand for.
    """
    published = expected_shapes(store.config, store.family)
    for resident, matrices in stored_tensors(store):
        for name, tensor in (resident | matrices).items():
            if name in published:
                scale = resident.get(scale_name(name))
                weights = tensor if scale is None else dequantize(tensor, scale)
                yield name, weights.T if name in matrices and _is_down(store, name) else weights


def _is_down(store: Store, name: str) -> bool:
    return name.endswith(f".{store.family.down}.weight")


def load_dense(store: Store, device: torch.device = HOST.device) -> PreTrainedModel:
    """Transformers' own model with a packed model's weights, all in DRAM or in a device's memory.

    Weights in int8 stay int8: modules that multiply them take the place of transformers' own.
    """
    if store.quantized:
        groups = ((resident | matrices).items() for resident, matrices in stored_tensors(store))
        return dense_model(store, {name: tensor.clone() for group in groups for name, tensor in group})
    weights = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor)
        for name, tensor in published_tensors(store)
    }
    model = dense_model(store, weights)
    move_buffers(model, device)
    return model


def dense_model(store: Store, weights: dict[str, Tensor]) -> PreTrainedModel:
    """Transformers' own model on these weights, none of which is copied.

    weights: all of a store's, by published name, as `published_tensors` has them, or in int8 as `stored_tensors` does
    """
    model = empty_model(store.config, store.family)
    if weights[store.family.embedding_weight].dtype == torch.int8:
        install_int8(model, store.family, weights)
    model.load_state_dict(weights, strict=False, assign=True)  # a store has all weights but a head that is tied
    model.tie_weights()
    if getattr(store.config, store.family.activation) not in ACT2FN:
        for layer in model.get_submodule(store.family.layers):
            layer.mlp.act_fn = OwnActivation(store.activation)
            if store.activation.both:
                layer.mlp.up_proj.register_forward_hook(lambda module, args, second: second.relu())
    return model.requires_grad_(False).eval()
