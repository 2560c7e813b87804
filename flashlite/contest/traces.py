"""Traces: what every layer's predictor said of a text, token by token, in a file that is checked when it is read.

A file is safetensors: `scores` [layers, tokens, neurons] int8, `capacity` [layers] int64, and `ids`, the tokens of the
text, int64. A neuron is needed where its score is above 0, see `rounded`. What else is known is JSON in the header.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from flashlite.course.manifest import find_course
from flashlite.engine.policies.rules import Token
from flashlite.errors import FlashliteError, one_line
from flashlite.storage.atomic import new_file

ENDING = ".safetensors"
PUBLIC = "chapters/traces"  # in a clone of the course
HEADER = "flashlite-trace"
VERSION = 1
LARGEST_FILE = 256 * 2**20  # bytes
_training: list[Path] | None = None  # the files that `past` gives; the public ones unless set


@dataclass(frozen=True)
class Trace:
    """One text as every layer's predictor saw it.

    scores: [layers, tokens, neurons] int8, positive for neurons that the token needs
    capacity: how many neurons of each layer DRAM has room for, [layers]
    ids: the tokens of the text, the last `tokens` of which have scores
    record_bytes: what one neuron takes on flash
    model: the name of the model
    kind: what the text is: "text", "greedy" or "sampled"
    seed: of the command that recorded it
    """

    scores: np.ndarray
    capacity: tuple[int, ...]
    ids: tuple[int, ...]
    record_bytes: int
    model: str
    kind: str
    seed: int

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.scores.shape[0]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.scores.shape[1]

    @property
    def neurons(self) -> int:
        """How many neurons each layer has."""
        return self.scores.shape[2]

    def needed(self, layer: int, token: int) -> np.ndarray:
        """The neurons that a token needs: [n] int64, sorted."""
        return np.flatnonzero(self.scores[layer, token] > 0)

    def token(self, layer: int, token: int, needed: np.ndarray) -> Token:
        """What a policy is told of a token: copies, which lead to no other token. needed: [n], what fits of it."""
        return Token(needed.copy(), lambda: self.scores[layer, token].copy())

    def to_bytes(self) -> bytes:
        """The content of a file, the same whenever the trace is."""
        facts = {"version": VERSION, "model": self.model, "kind": self.kind, "seed": self.seed}
        header = json.dumps(facts | {"record_bytes": self.record_bytes})
        lists = {"capacity": np.array(self.capacity, np.int64), "ids": np.array(self.ids, np.int64)}
        scores = np.ascontiguousarray(self.scores)  # of a view safetensors would write what lies beside it
        return save({"scores": scores, **lists}, {HEADER: header})

    def save(self, path: Path) -> None:
        """Write a file that appears only when complete. Raises FlashliteError."""
        with one_line(path, FlashliteError, "cannot be written"), new_file(path) as unfinished:
            unfinished.write_bytes(self.to_bytes())


def read_trace(path: Path) -> Trace:
    """The trace in a file. Raises FlashliteError, one line, if it is missing, damaged or of another kind."""
    with one_line(path, FlashliteError):
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise FlashliteError(f"{path} is not a trace, which is a file of at most {LARGEST_FILE} bytes")
        try:
            with safe_open(path, "numpy") as file:
                facts = json.loads((file.metadata() or {})[HEADER])
            return _checked(load(path.read_bytes()), facts)
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise FlashliteError(f"{path} is not a trace, or is damaged: {reason}; record it again") from None


def _checked(tensors: dict[str, np.ndarray], facts: dict[str, Any]) -> Trace:
    """The trace of these tensors. Raises KeyError, TypeError or ValueError if they are none."""
    scores, capacity, ids = tensors["scores"], tensors["capacity"], tensors["ids"]
    if facts["version"] != VERSION:
        raise ValueError(f"it is of version {facts['version']!r:.20}, and {VERSION} is understood")
    if scores.dtype != np.int8 or scores.ndim != 3 or not scores.size:
        raise ValueError("its scores are not [layers, tokens, neurons] int8")
    if capacity.dtype != np.int64 or capacity.shape != scores.shape[:1] or capacity.min() < 1:
        raise ValueError("its capacities are not a whole number from 1 for each layer")
    if ids.dtype != np.int64 or ids.ndim != 1 or len(ids) < scores.shape[1]:
        raise ValueError("its text has fewer tokens than its scores")
    if type(facts["record_bytes"]) is not int or facts["record_bytes"] < 1 or type(facts["seed"]) is not int:
        raise ValueError("its header holds a size that is not a whole number")
    if not isinstance(facts["model"], str) or not isinstance(facts["kind"], str):
        raise ValueError("its header names no model")
    names = ("record_bytes", "model", "kind", "seed")
    return Trace(scores, tuple(capacity.tolist()), tuple(ids.tolist()), *(facts[name] for name in names))


def trace_files(folder: Path) -> list[Path]:
    """The traces in a folder, by name. Raises FlashliteError if there are none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ENDING and path.name[0] != ".")
    except OSError as error:
        raise FlashliteError(f"{folder} cannot be read: {error.strerror}") from None
    if not files:
        raise FlashliteError(f"{folder} holds no traces: record some with `flashlite contest --record {folder}`")
    return files


def public_folder() -> Path:
    """Where the traces that come with the course are. Raises FlashliteError outside a clone of it."""
    return find_course().root / PUBLIC


def of_layer(files: Sequence[Path], layer: int, neurons: int) -> list[np.ndarray]:
    """What the traces in these files have of a layer: [tokens, neurons] int8 each, without those of other models."""
    traces = [_read_once(path) for path in files]
    return [trace.scores[layer] for trace in traces if trace.neurons == neurons and layer < trace.layers]


@functools.cache
def _read_once(path: Path) -> Trace:
    return read_trace(path)


def train_on(files: Sequence[Path]) -> None:
    """Have `past` give these traces, and no others, in this process."""
    global _training
    _training = list(files)


def past(layer: int, neurons: int) -> list[np.ndarray]:
    """What a layer's predictor said of other texts, to learn from: [tokens, neurons] int8 for each text.

    layer: its number
    neurons: how many it has

    These are the traces that come with the course. While an entry is graded on one of them, this one is not among them.
    The list is empty for models of which there are none.
    """
    return of_layer(trace_files(public_folder()) if _training is None else _training, layer, neurons)
