"""What the parts of published OPTs weigh, against transformers' own models."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY
from transformers import OPTConfig, OPTForCausalLM

from flashlite.families.opt import resident_and_streamed
from flashlite.storage.store import Store

PUBLISHED = {  # as in their config.json: width, layers, heads, ffn, width of the embedding
    "125m": (768, 12, 12, 3072, 768),
    "350m": (1024, 24, 16, 4096, 512),
    "1.3b": (2048, 24, 32, 8192, 2048),
    "6.7b": (4096, 32, 32, 16384, 4096),
}


def published_config(name: str) -> OPTConfig:
    d, layers, heads, ffn, embedding = PUBLISHED[name]
    return OPTConfig(
        hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=ffn, word_embed_proj_dim=embedding,
        do_layer_norm_before=name != "350m",
    )  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_published_models_add_up(name: str) -> None:
    config = published_config(name)
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    streamed = sum(size for n, size in sizes.items() if n.endswith(("fc1.weight", "fc2.weight")))
    assert resident_and_streamed(config) == (sum(sizes.values()) - streamed, streamed)


def test_a_store_holds_just_these_weights(tiny_store: Store) -> None:
    assert 4 * sum(resident_and_streamed(OPTConfig(**TINY))) == tiny_store.weight_bytes
