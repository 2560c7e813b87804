"""Persimmon: squared ReLU, biases everywhere."""

from __future__ import annotations

from flashlite.families.family import Family

PERSIMMON = Family(model_type="persimmon", first="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h")
