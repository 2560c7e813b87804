"""Nemotron, and Minitron: squared ReLU, not gated."""

from __future__ import annotations

from flashlite.families.family import Family

NEMOTRON = Family(model_type="nemotron", first="mlp.up_proj", down="mlp.down_proj")
