"""MiniCPM-S: FATReLU, and Llama with factors of its own, which transformers' Granite has by other names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flashlite.families.llama import LLAMA


def as_granite(config: dict[str, Any]) -> dict[str, Any]:
    """A MiniCPM's config.json as a Granite's. Raises what Python raises where a size is missing or senseless.

    Both multiply the embeddings, and what each block adds; MiniCPM divides the head's input, Granite its output.
    """
    width, heads, layers = (config[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    return {"tie_word_embeddings": True, "num_key_value_heads": heads} | config | {
        "embedding_multiplier": config.get("scale_emb", 1.0),
        "residual_multiplier": config.get("scale_depth", 1.0) / layers**0.5,
        "attention_multiplier": (width // heads) ** -0.5,
        "logits_scaling": width / config.get("dim_model_base", 1.0),
    }  # fmt: skip


MINICPM = replace(LLAMA, model_type="granite", stock=as_granite)
