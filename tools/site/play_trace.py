"""The trace that the interactive page replays: what each layer of opt-mini needs for each token, as short text.

A token's neurons are sorted; each is written as its distance from the one before, which is one of DIGITS. Where it is
further, each FURTHER before the digit stands for `len(DIGITS)` neurons. Tokens are separated by a space.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("trace.json")
DIGITS = string.digits + string.ascii_letters
FURTHER = "."


def encode(layer: Sequence[np.ndarray]) -> str:
    """A layer's trace as text. layer: for each token the neurons that it needs, [n] int64, sorted."""
    return " ".join("".join(map(_step, np.diff(active, prepend=-1) - 1)) for active in layer)


def _step(gap: int) -> str:
    """A distance: how many neurons lie between one that is needed and the next."""
    return FURTHER * (gap // len(DIGITS)) + DIGITS[gap % len(DIGITS)]


def decode(text: str) -> list[np.ndarray]:
    """What `encode` was given."""
    return [_neurons(word) for word in text.split(" ")]


def _neurons(word: str) -> np.ndarray:
    found, at = [], -1
    for mark in word:
        if mark == FURTHER:
            at += len(DIGITS)
        else:
            at += DIGITS.index(mark) + 1
            found.append(at)
    return np.array(found, np.int64)


def read() -> dict[str, Any]:
    """The recorded trace: its text, token by token, the sizes, and `layers`, each decoded."""
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    return {**recorded, "layers": [decode(layer) for layer in recorded["layers"]]}
