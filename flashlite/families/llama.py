"""Llama: gated neurons, which ReLU models such as ReluLLaMA let fire by their gate."""

from __future__ import annotations

from flashlite.families.family import Family

LLAMA = Family(model_type="llama", first="mlp.gate_proj", down="mlp.down_proj", second="mlp.up_proj")
