"""Which neurons will fire, known before their weights are read. (Paper: section 3.1, predicting ReLU sparsity)

A predictor is called with what enters a layer's FFN, x [tokens, d_model], and returns the neurons that any of these
tokens needs: [n] int64, sorted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flashlite.bundle import FFNShape
from flashlite.errors import PredictorError
from flashlite.flash import aligned_buffer
from flashlite.neurons import NeuronFile

FORMAT = 1


class Predictor(Protocol):
    """Says which neurons of one layer fire."""

    nbytes: int

    def mask(self, x: Tensor) -> Tensor:
        """By token: [tokens, ffn] bool. x: [tokens, d_model]."""


def active_set(predictor: Predictor, x: Tensor) -> np.ndarray:
    """The neurons that at least one token needs: [n] int64, sorted. x: [tokens, d_model]."""
    mask = predictor.mask(x)
    return np.flatnonzero(mask[0].numpy() if len(mask) == 1 else mask.any(0).numpy())


class LowRankPredictor:
    """Two thin matrices that stand in for the up projection: a neuron is predicted active where its score is positive.

    a: [rank, d_model]; b: [ffn, rank]; bias: [ffn], with the calibrated threshold already subtracted.
    """

    def __init__(self, a: Tensor, b: Tensor, bias: Tensor) -> None:
        self.a, self.b, self.bias = a, b, bias.to(b.dtype)
        self.nbytes = a.nbytes + b.nbytes + self.bias.nbytes

    @property
    def rank(self) -> int:
        """The width of the bottleneck."""
        return len(self.a)

    def scores(self, x: Tensor) -> Tensor:
        """[tokens, ffn], positive where a neuron should fire. x: [tokens, d_model]."""
        return F.linear(F.linear(x.to(self.a.dtype), self.a), self.b, self.bias)

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        return self.scores(x) > 0


class OraclePredictor:
    """The true active set, computed by reading the whole up projection from flash for every token.

    It makes every stage exact, so it separates the system's errors from the predictor's. It is slow, and its reads and
    its buffer of 1 MiB are not counted with the model's.
    """

    BUFFER_BYTES = 1 << 20

    def __init__(self, file: NeuronFile, layer: int, bias: Tensor) -> None:
        self.nbytes = 0
        self._file, self._layer, self._bias = file, layer, bias
        rows = min(file.shape.neurons, max(1, self.BUFFER_BYTES // file.shape.record_bytes))
        self._parts = np.array_split(np.arange(file.shape.neurons), -(-file.shape.neurons // rows))

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        buffer = aligned_buffer(len(self._parts[0]), self._file.shape.record_bytes)
        up = torch.from_numpy(buffer).view(x.dtype)[:, : self._file.shape.d_model]
        masks = []
        for part in self._parts:
            self._file.read(self._layer, part, buffer, np.arange(len(part)))
            masks.append(torch.addmm(self._bias[torch.from_numpy(part)], x, up[: len(part)].T) > 0)
        return torch.cat(masks, 1)


@dataclass(frozen=True)
class LayerReport:
    """How good one layer's predictor is on held-out text.

    active (truly) and predicted: shares of all neurons; recall: predicted share of the active ones; false_negatives:
    missed share of the active ones; false_positives: wrongly predicted share of the inactive ones; window_rows[k-1]:
    mean size of the union of k tokens' predicted sets, s_agg(k), in neurons.
    """

    rank: int
    active: float
    predicted: float
    recall: float
    false_negatives: float
    false_positives: float
    window_rows: tuple[float, ...]


@dataclass(frozen=True)
class PredictorSet:
    """The predictors of all layers with what is known of them."""

    layers: Sequence[LowRankPredictor]
    reports: Sequence[LayerReport]

    def save(self, path: Path) -> None:
        """Write one safetensors file, under a temporary name until it is complete."""
        tensors: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            tensors |= {f"layers.{i}.{name}": getattr(layer, name).contiguous() for name in ("a", "b", "bias")}
        metadata = {"format": str(FORMAT), "reports": json.dumps([vars(report) for report in self.reports])}
        unfinished = path.with_name(f".{path.name}.writing-{os.getpid()}")
        try:
            save_file(tensors, unfinished, metadata)
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            raise PredictorError(f"{path} cannot be written: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, layers: int, shape: FFNShape) -> PredictorSet:
        """Read the file of a model with these layers. Raises PredictorError if it is missing, damaged or another's."""
        if not path.exists():
            raise PredictorError(
                f"{path.parent} has no predictor: run `flashlite train-predictor {path.parent} --text FILES`, "
                "or use predictor='oracle'"
            )
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                if metadata.get("format") != str(FORMAT):
                    raise PredictorError(f"{path} has another format than {FORMAT}: train the predictor again")
                parts = [[file.get_tensor(f"layers.{i}.{name}") for name in ("a", "b", "bias")] for i in range(layers)]
                reports = [
                    LayerReport(**report | {"window_rows": tuple(report["window_rows"])})
                    for report in json.loads(metadata["reports"])
                ]
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise PredictorError(f"{path} is damaged or another model's: {error}; train the predictor again") from None
        for a, b, bias in parts:
            if a.shape != (len(a), shape.d_model) or b.shape != (shape.neurons, len(a)) or len(bias) != shape.neurons:
                raise PredictorError(f"{path} was trained for another model: train the predictor again")
        return cls([LowRankPredictor(*(t.clone() for t in part)) for part in parts], reports)
