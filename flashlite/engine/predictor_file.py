"""The predictors of a model as one file, with what is known of each: how often it is right, how much it asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from flashlite.engine.predictor import Int8Matrix, LowRankPredictor
from flashlite.errors import PredictorError, check_limit_of_files
from flashlite.storage.atomic import new_file
from flashlite.storage.bundle import FFNShape
from flashlite.storage.strict_json import LARGEST, parse_object

FORMAT = 2
PARTS = ("a", "a_scale", "b", "b_scale", "bias")
LARGEST_FIGURE = 2**20  # in a report: more than any layer has neurons


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
        """Write one safetensors file that appears only when complete, with a checksum of all that it says."""
        tensors: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            parts = zip(PARTS, (layer.a.values, layer.a.scale, layer.b.values, layer.b.scale, layer.bias), strict=True)
            tensors |= {f"layers.{i}.{name}": tensor.contiguous() for name, tensor in parts}
        reports = json.dumps([vars(report) for report in self.reports])
        metadata = {"format": str(FORMAT), "reports": reports, "sha256": _digest(tensors, reports)}
        try:
            with new_file(path) as unfinished:
                save_file(tensors, unfinished, metadata)
        except (OSError, SafetensorError) as error:
            raise PredictorError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: Path, layers: int, shape: FFNShape) -> PredictorSet:
        """Read the file of a model with these layers. Raises PredictorError if it is missing, altered or another's."""
        if not path.is_file():
            raise PredictorError(
                f"{path.parent} has no predictor: run `flashlite train-predictor {path.parent} --text FILES`, "
                "or use predictor='oracle'"
            )
        try:
            if path.stat().st_size > largest_file(layers, shape):
                raise PredictorError(f"{path} is larger than any predictor of this model: train the predictor again")
            content = path.read_bytes()  # not mapped: cut while it is read, a mapped file ends the process
            tensors, metadata = load_tensors(content), _metadata(content)
            if metadata.get("format") != str(FORMAT):
                raise PredictorError(f"{path} has another format than {FORMAT}: train the predictor again")
            if metadata["sha256"] != _digest(tensors, metadata["reports"]):
                raise PredictorError(f"{path} was altered: train the predictor again")
            parts = [[tensors[f"layers.{i}.{name}"] for name in PARTS] for i in range(layers)]
            reports = [_report(content) for content in json.loads(metadata["reports"])]
        except OSError as error:
            check_limit_of_files(path, error)
            raise PredictorError(f"{path} cannot be read: {error.strerror}") from None
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise PredictorError(f"{path} is damaged or another model's: {error}; train the predictor again") from None
        if len(reports) != layers or any(not _fit(part, shape) for part in parts):
            raise PredictorError(f"{path} was trained for another model: train the predictor again")
        predictors = [LowRankPredictor(Int8Matrix(p[0], p[1]), Int8Matrix(p[2], p[3]), p[4]) for p in parts]
        return cls(predictors, reports)


def largest_file(layers: int, shape: FFNShape) -> int:
    """Bytes of the largest predictor that makes sense, whose rank is d_model, and of its header."""
    int8, bf16 = shape.d_model * (shape.d_model + shape.neurons), 2 * (shape.d_model + 2 * shape.neurons)
    return layers * (int8 + bf16) + LARGEST


def _metadata(content: bytes) -> dict[str, Any]:
    """What a safetensors file says of itself."""
    length = int.from_bytes(content[:8], "little")
    return parse_object(content[8 : 8 + length]).get("__metadata__") or {}


def _digest(tensors: dict[str, Tensor], reports: str) -> str:
    """The SHA-256 of what a predictor's file says, in whichever order it says it."""
    digest = hashlib.sha256(f"{FORMAT} {reports}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fit(parts: Sequence[Tensor], shape: FFNShape) -> bool:
    """Whether the tensors of a layer's predictor are those of a model of this shape."""
    rank = max((1, *parts[0].shape[:1]))
    shapes = [(rank, shape.d_model), (rank,), (shape.neurons, rank), (shape.neurons,), (shape.neurons,)]
    dtypes = [torch.int8, torch.bfloat16, torch.int8, torch.bfloat16, torch.bfloat16]
    return [(part.dtype, tuple(part.shape)) for part in parts] == list(zip(dtypes, shapes, strict=True))


def _report(content: dict[str, Any]) -> LayerReport:
    report = LayerReport(**content | {"window_rows": tuple(content["window_rows"])})
    numbers = [value for name, value in vars(report).items() if name != "window_rows"]
    if not report.window_rows or not all(0 <= number <= LARGEST_FIGURE for number in (*numbers, *report.window_rows)):
        raise ValueError("a report holds what is no number")
    return report
