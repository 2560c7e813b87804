"""What a measuring process runs before it measures, so that libraries have what they allocate once."""

from __future__ import annotations

import copy
import gc

import torch

from flashlite.bench.decoding import WARM_UP, forced
from flashlite.engine.product import ffn_product
from flashlite.families.configured import empty_model, move_buffers
from flashlite.storage.store import Store

SMALL_VOCABULARY = 512


def warm_up(store: Store, prompt: list[int], device: torch.device) -> None:
    """Run one random layer of the model's own width, so that what torch and transformers allocate for their work, such
    as copies for matrix products, counts to the base and not to a stage. Its vocabulary and its FFN are small, because
    the layer itself must not count."""
    config = copy.deepcopy(store.config)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, SMALL_VOCABULARY, None
    setattr(config, store.family.neurons, config.hidden_size)
    one_layer, kind = empty_model(config, store.family), store.compute_dtype
    sizes = {name: torch.randn(part.shape, dtype=kind, device=device) for name, part in one_layer.named_parameters()}
    one_layer.load_state_dict(sizes, strict=False, assign=True)
    one_layer.tie_weights()
    one_layer.eval()
    move_buffers(one_layer, device)
    ids = [token % SMALL_VOCABULARY for token in prompt]
    forced(one_layer, ids, ids[:WARM_UP])
    rows = torch.zeros(1, store.shape.record_bytes // store.shape.itemsize, dtype=store.dtype, device=device)
    predictors = {torch.int8} if device.type == "cpu" else set()
    for dtype in {store.dtype} | predictors:  # what multiplies weights, and what trained predictors, is compiled once
        ffn_product(rows[:, : store.shape.d_model], rows.to(dtype), rows[:, 0], store.shape.d_model)
    del one_layer, rows
    gc.collect()
