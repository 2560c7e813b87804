"""Llamas whose config.json names code of their own, but only for the FFN, which streams here: none of it is run.

ProSparse, `sparsellama`, has FATReLU. SparseLM, `llama_sparse_relu`, says "silu", but its code has ReLU in its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flashlite.families.llama import LLAMA


def as_llama(config: dict[str, Any]) -> dict[str, Any]:
    """A SparseLM's config.json as a Llama's with ReLU. Raises ValueError where its neurons are not gated."""
    if not config.get("sparsity_gated_mlp", True):
        raise ValueError("sparsity_gated_mlp is false: only gated SparseLMs stream")
    neurons = config.get("sparsity_new_intermediate_size") or config["intermediate_size"]
    return config | {"hidden_act": "relu", "intermediate_size": neurons}


PROSPARSE = LLAMA
SPARSELM = replace(LLAMA, stock=as_llama)
