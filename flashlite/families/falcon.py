"""Falcon: 7B, 40B, 180B and Falcon 2 attend beside the FFN, RefinedWeb models such as falcon-rw-1b before it."""

from __future__ import annotations

from typing import Any

from flashlite.families.family import Family


def early_norm(config: Any) -> str | None:
    """The norm whose output enters the FFN, where attention doesn't change that."""
    if not config.parallel_attn:
        return None
    norms = config.num_ln_in_parallel_attn or (2 if config.new_decoder_architecture else 1)
    return "ln_mlp" if norms == 2 and config.new_decoder_architecture else "input_layernorm"


def cached_heads(config: Any) -> int:
    """One head where all queries share it. Newer Falcons share heads too, but cache them once for each query head."""
    if config.multi_query and not config.new_decoder_architecture:
        return 1
    return int(config.num_attention_heads if config.new_decoder_architecture else config.num_kv_heads)


FALCON = Family(
    model_type="falcon",
    first="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    layers="transformer.h",
    embedding="word_embeddings",
    neurons="ffn_hidden_size",
    activation="activation",
    early_norm=early_norm,
    cached_heads=cached_heads,
)
