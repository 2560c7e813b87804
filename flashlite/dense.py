"""The model as it is without flashlite: all weights in DRAM. What every stage is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import OPTForCausalLM

from flashlite.bundle import unpack_bundles
from flashlite.direct import aligned_buffer
from flashlite.neurons import NeuronFile
from flashlite.resident import ResidentWeights
from flashlite.store import Store


def load_dense(store: Store) -> OPTForCausalLM:
    """Transformers' own OPT with a packed model's weights, all in DRAM."""
    weights = ResidentWeights(store, persistent=True).tensors()
    file, neurons = NeuronFile(store, store.layouts[0]), np.arange(store.shape.neurons)
    buffer = aligned_buffer(len(neurons), store.shape.record_bytes)
    for i in range(store.layers):
        file.read(i, neurons, buffer, neurons)
        up, down = unpack_bundles(torch.from_numpy(buffer).view(store.dtype), store.shape.d_model)
        weights[f"model.decoder.layers.{i}.fc1.weight"] = up.clone(memory_format=torch.contiguous_format)
        weights[f"model.decoder.layers.{i}.fc2.weight"] = down.T.clone(memory_format=torch.contiguous_format)
    with torch.device("meta"):
        model = OPTForCausalLM(store.config)
    missing = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    if set(missing) - {"lm_head.weight"}:
        raise ValueError(f"the store lacks {missing}")
    model.tie_weights()
    return model.requires_grad_(False).eval()


def product_bytes(model: nn.Module) -> int:
    """Bytes of FFN weights that a dense model multiplies for each token."""
    return sum(p.nbytes for name, p in model.named_parameters() if name.endswith(("fc1.weight", "fc2.weight")))
