"""Phi: one norm before attention and the FFN, which run beside each other; its head has a bias."""

from __future__ import annotations

from flashlite.families.family import Family

PHI = Family(model_type="phi", first="mlp.fc1", down="mlp.fc2", early_norm=lambda config: "input_layernorm")
