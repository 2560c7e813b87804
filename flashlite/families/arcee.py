"""Arcee's AFM: squared ReLU, not gated."""

from __future__ import annotations

from dataclasses import replace

from flashlite.families.nemotron import NEMOTRON

ARCEE = replace(NEMOTRON, model_type="arcee")
