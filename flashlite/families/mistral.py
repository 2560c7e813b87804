"""Mistral: Llama's names, with a sliding window of attention."""

from __future__ import annotations

from dataclasses import replace

from flashlite.families.llama import LLAMA

MISTRAL = replace(LLAMA, model_type="mistral")
